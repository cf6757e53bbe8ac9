"""VOC 2012 from a tar in the official layout."""

import sys

import numpy as np
import pytest

from maeclip_jax.data import mask_ops
from maeclip_jax.data.ops import parse
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.voc_segmentation import CLASSES, VocSegmentation
from tests.data.labelled_sources import opened, png, records, write_tree
from tests.prepare.pair_sources import picture, write_tar

ROOT, TAR = "VOCdevkit/VOC2012", "VOCtrainval_11-May-2012.tar"
NAMES = {"train": ("2007_000032", "2007_000039"), "val": ("2007_000033",)}


def ids(number: int) -> np.ndarray:
    """Every class, and void at the borders as VOC has it."""
    mask = (np.arange(30 * 40).reshape(30, 40) + number) % 21
    mask[::7] = 255
    return mask


def members(**changed) -> dict[str, bytes]:
    names = [n for split in NAMES.values() for n in split]
    files = {f"{ROOT}/JPEGImages/{n}.jpg": picture(i) for i, n in enumerate(names)}
    files |= {f"{ROOT}/SegmentationClass/{n}.png": png(ids(i), "P") for i, n in enumerate(names)}
    files[f"{ROOT}/JPEGImages/2008_000001.jpg"] = picture(9)  # most pictures of VOC have no mask
    lists = {**NAMES, "trainval": sum(NAMES.values(), ())}
    for split, those in lists.items():
        files[f"{ROOT}/ImageSets/Segmentation/{split}.txt"] = "".join(f"{n}\n" for n in those).encode()
    return {k: v for k, v in (files | {f"{ROOT}/{k}": v for k, v in changed.items()}).items() if v is not None}


def build(root, out, **changed):
    write_tar(root / TAR, list(members(**changed).items()))
    return manual.build(VocSegmentation, root, out)


def test_pictures_and_masks_are_the_official_ones(tmp_path):
    folder = build(tmp_path / "voc", tmp_path / "data")
    assert "tensorflow" not in sys.modules
    number = 0
    for split, names in NAMES.items():
        found = records(folder, split)
        assert set(found) == set(names)
        for name in names:
            assert found[name]["image"] == picture(number) and found[name]["mask"] == png(ids(number), "P")
            np.testing.assert_array_equal(mask_ops.read_mask(found[name]["mask"]), ids(number))
            number += 1
    assert len(opened(folder, "train+val")) == 3  # trainval
    source = opened(folder, "val")
    assert tuple(source.mask_classes) == CLASSES and len(CLASSES) == 21
    row = parse('decode|mask|resize_small(16)|center_crop(16)|keep("image","mask")')(source[0], np.random.default_rng())
    assert set(np.unique(row["mask"])) <= {*range(21), 255}


def test_the_unpacked_folder_serves_too(tmp_path):
    root = write_tree(tmp_path / "voc", members())
    assert len(opened(manual.build(VocSegmentation, root, tmp_path / "data"), "train")) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"SegmentationClass/2007_000039.png": None},
            "has no SegmentationClass/2007_000039.png below VOCdevkit/VOC2012",
        ),
        (
            {"SegmentationClass/2007_000039.png": None},
            "(1 of 2 of split train are missing); expected: VOCtrainval_11-May",
        ),
        (
            {"ImageSets/Segmentation/val.txt": None},
            "has no VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt; expected: V",
        ),
        ({"ImageSets/Segmentation/val.txt": b""}, "has no JPEGImages/*.jpg below"),
        ({"SegmentationClass/2007_000039.png": png(ids(1)[:9])}, "2007_000039: the mask is 40x9, the picture 40x30"),
        (
            {"SegmentationClass/2007_000039.png": png(ids(1) * 0 + 33)},
            "2007_000039 holds id 33; VOC has 0 to 20, and 255",
        ),
    ],
)
def test_a_wrong_archive_is_named(tmp_path, changed, message):
    with pytest.raises(UserError) as e:
        build(tmp_path / "voc", tmp_path / "data", **changed)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_missing_archive_says_what_is_expected_where(tmp_path):
    write_tree(tmp_path / "voc", {"VOC2012.zip": b""})
    with pytest.raises(UserError) as e:
        manual.build(VocSegmentation, tmp_path / "voc", tmp_path)
    assert str(e.value).startswith(
        f"{tmp_path / 'voc' / TAR} is expected: {TAR}, or as VOCdevkit (VOCdevkit/VOC2012 with "
    )
    assert "2.0 GB; http://host.robots.ox.ac.uk/pascal/VOC/voc2012/" in str(e.value)
    assert str(e.value).endswith("voc holds VOC2012.zip") and "\n" not in str(e.value)


def test_the_instructions_name_the_file_its_page_and_its_size():
    text = VocSegmentation.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert TAR in text and "2.0 GB" in text and "http://host.robots.ox.ac.uk" in text
