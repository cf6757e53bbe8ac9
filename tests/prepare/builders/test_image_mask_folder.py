"""Pictures with class masks: ids made dense, sizes and ids checked, splits from a table, lists or none."""

import json

import numpy as np
import pytest

from maeclip_jax.data import mask_ops
from maeclip_jax.data.ops import parse
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.image_mask_folder import ImageMaskFolder, read_layout
from tests.data.labelled_sources import opened, png, records, write_tree
from tests.prepare.pair_sources import picture

CLASSES = "0\tunlabeled\n3\tcat\n200\tgrass\n7\tdog\n"  # COCO's way: gaps, and 0 for what nobody labelled


def ids(number: int) -> np.ndarray:
    return np.random.default_rng(number).choice([0, 3, 7, 200, 255], (30, 40))


def rooms(root, count=4, **more):
    files = {f"images/{i}.jpg": picture(i) for i in range(count)}
    masks = {f"masks/{i}.png": png(ids(i), "LP"[i % 2]) for i in range(count)}
    return write_tree(root / "rooms", {**files, **masks, "classes.txt": CLASSES, **more})


def build(root, out, **kwargs):
    return manual.build(ImageMaskFolder, root, out, "rooms", **kwargs)


def test_ids_become_dense_and_unlabelled_is_void(tmp_path):
    folder = build(rooms(tmp_path), tmp_path / "data")
    assert opened(folder, "train").mask_classes == ["cat", "dog", "grass"]  # by id
    found = records(folder, "train")
    assert len(found) == 4
    for key, record in found.items():
        number = int(key.removesuffix(".jpg"))
        assert record["image"] == picture(number) and record["file_name"] == f"{number}.png"
        expected = np.select([ids(number) == i for i in (3, 7, 200)], [0, 1, 2], 255)
        np.testing.assert_array_equal(mask_ops.read_mask(record["mask"]), expected)
        row = parse('decode|mask|resize_small(16)|center_crop(16)|keep("image","mask")')(
            record, np.random.default_rng()
        )
        assert row["mask"].shape == (16, 16)
    assert json.loads((folder / "metadata.json").read_text())["ids_in_files"] == {
        "3": "cat",
        "7": "dog",
        "200": "grass",
    }


def test_background_is_a_class(tmp_path):
    root = rooms(tmp_path, **{"classes.txt": CLASSES.replace("unlabeled", "background")})
    folder = build(root, tmp_path / "data")
    assert opened(folder, "train").mask_classes == ["background", "cat", "dog", "grass"]
    np.testing.assert_array_equal(mask_ops.read_mask(records(folder, "train")["0.jpg"]["mask"]) == 0, ids(0) == 0)


def test_splits(tmp_path):
    rows = [{"image": f"{i}.jpg", "mask": f"{i}.png", "split": "test" if i else "val"} for i in range(3)]
    root = rooms(tmp_path, **{"split.jsonl": "\n".join(map(json.dumps, rows))})
    assert {s: sorted(records(build(root, tmp_path / "data"), s)) for s in ("val", "test")} == {
        "val": ["0.jpg"],
        "test": ["1.jpg", "2.jpg"],
    }
    (root / "split.jsonl").unlink()
    write_tree(root, {"train.txt": "0\n3\n", "test.txt": "1.jpg\n"})
    assert read_layout(root).splits == {
        "test": [("images/1.jpg", "masks/1.png")],
        "train": [("images/0.jpg", "masks/0.png"), ("images/3.jpg", "masks/3.png")],
    }
    assert list(read_layout(rooms(tmp_path / "again"), "val").splits) == ["val"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"masks/1.png": png(np.full((30, 40), 9))}, "masks/1.png holds ids 9, which "),
        ({"masks/1.png": png(np.full((30, 40), 9))}, "classes.txt does not name; it names: 0 unlabeled, 3 cat, 7 dog"),
        ({"masks/1.png": png(np.zeros((30, 41)))}, "the mask of 1.jpg: the mask is 41x30, the picture 40x30 pixels"),
        ({"masks/1.png": png(np.zeros((30, 40, 3)))}, "masks/1.png, the mask of 1.jpg: 3 channels (RGB)"),
        ({"masks/1.png": picture(1)}, "JPEG, which does not preserve ids"),
        ({"images/9.jpg": picture(9)}, "1 of 5 pictures of split 'train' have no file in "),
        ({"images/9.jpg": picture(9)}, "the first: a mask of 9.jpg"),
        ({"test.txt": "0\n1\n", "val.txt": "1.jpg\n"}, "1 pictures are in two splits, the first: 1.jpg in 'val' and"),
        ({"test.txt": "0\nnine\n"}, "1 of 2 pictures of split 'test' have no file in "),
        ({"split.jsonl": '{"image": "0.jpg"}'}, 'split.jsonl, line 1: \'{"image": "0.jpg"}\'; expected: {"image": ...'),
        ({"split.jsonl": "nothing"}, "split.jsonl, line 1: 'nothing'"),
        ({"classes.txt": "cat\t3\n"}, "begins with 'cat'; expected: id<TAB>name, ids 0 to 254"),
        ({"classes.txt": "255\tcat\n"}, "begins with '255'"),
        ({"classes.txt": "3\tcat\n4\tcat\n"}, "gives the name 'cat' to two ids"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, message):
    with pytest.raises(UserError) as e:
        build(rooms(tmp_path, **files), tmp_path / "data")
    assert message in str(e.value) and "\n" not in str(e.value)


def test_missing_parts(tmp_path):
    with pytest.raises(UserError) as e:
        build(write_tree(tmp_path / "src", {"images/1.jpg": picture(1), "classes.txt": CLASSES}), tmp_path)
    assert f"{tmp_path / 'src' / 'masks'} is expected; {tmp_path / 'src'} holds classes.txt, images; see --help" in str(
        e.value
    )


def test_a_bad_picture_is_dropped_with_its_mask(tmp_path):
    folder = build(rooms(tmp_path, **{"images/2.jpg": b"no picture"}), tmp_path / "data")
    assert sorted(records(folder, "train")) == ["0.jpg", "1.jpg", "3.jpg"]
