"""Masks move with their pictures: where a picture's colour tells its id, it still does after any op."""

import io

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import mask_ops, source
from maeclip_jax.data.ops import parse
from maeclip_jax.errors import BadRecord, UserError
from tests.data.labelled_sources import png, raw_png
from tests.prepare.pair_sources import picture

CROPS = (
    "resize(16)",
    "resize((20,12),method='bilinear')",
    "resize_small(16)",
    "center_crop(12)",
    "random_crop((9,14))",
    "random_resized_crop(16,area=(0.1,1),antialias='exact')",
    "random_resized_crop(16,area=(0.1,1),antialias='fast')",
    "flip_lr(1.0)",
    "flip_lr(0.0)",
    "resize_small(20)|center_crop(16)|flip_lr(1.0)",
)


def rng(seed=0):
    return np.random.default_rng(seed)


def coded(height=48, width=64, block=16):
    """(PNG of a picture, ids): blocks of one colour each, id = red / 20."""
    y, x = np.mgrid[:height, :width]
    ids = ((y // block) * (width // block) + x // block).astype(np.uint8)
    pixels = np.stack([ids * 20, ids * 0 + 90, 255 - ids * 20], -1)
    return np.asarray(pixels, np.uint8), ids


@pytest.mark.parametrize("ops", CROPS)
@pytest.mark.parametrize("seed", range(4))
def test_mask_and_picture_stay_aligned(ops, seed):
    pixels, ids = coded()
    out = parse(f'decode|mask|{ops}|keep("image","mask")')({"image": pixels, "mask": png(ids, "P")}, rng(seed))
    assert out["mask"].shape == out["image"].shape[:2] and out["mask"].dtype == np.uint8
    expected = np.rint(out["image"][..., 0] / 20)
    right = out["mask"] == expected  # wrong only where a filter mixes two blocks
    assert right.mean() > 0.8 and set(np.unique(out["mask"])) <= set(range(12))
    inside = (np.abs(out["image"][..., 0] / 20 - expected) < 0.02) & (np.abs(np.gradient(expected)).sum(0) == 0)
    assert inside.sum() > 20 and right[inside].all()


def test_a_mask_of_the_size_asked_for_is_untouched():
    pixels, ids = coded()
    out = parse('decode|mask|resize((48,64))|keep("image","mask")')({"image": pixels, "mask": png(ids)}, rng())
    np.testing.assert_array_equal(out["mask"], ids)


def test_reduced_jpeg_decoding_keeps_the_mask_in_place():
    y, _ = np.mgrid[:512, :384]
    ids = (y >= 256).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.repeat(ids[..., None] * 255, 3, 2)).save(file, "JPEG", quality=95)
    ops = parse('decode|mask|random_resized_crop(32,area=(0.5,1),antialias="fast")|keep("image","mask")')
    for seed in range(5):
        out = ops({"image": file.getvalue(), "mask": png(ids)}, rng(seed))
        assert ((out["image"][..., 0] > 127) == out["mask"]).mean() > 0.96  # one row of 32 may differ


def test_fit_fills_the_mask_with_void():
    pixels, ids = coded()
    out = parse('decode|mask|fit(32,fill=7)|keep("image","mask")')({"image": pixels, "mask": png(ids)}, rng())
    band = np.zeros((32, 32), bool)
    band[:4] = band[-4:] = True
    assert (out["mask"][band] == 255).all() and (out["mask"][~band] != 255).all() and (out["image"][band] == 7).all()


def test_an_undecoded_mask_is_left_alone():
    pixels, ids = coded()
    out = parse('decode|resize(8)|keep("image")')({"image": pixels, "mask": png(ids)}, rng())
    assert set(out) == {"image"}


@pytest.mark.parametrize(
    "depth, row, ids",
    [(1, [0b10100000], [1, 0, 1]), (2, [0b00011011], [0, 1, 2, 3]), (4, [0x01, 0x2F], [0, 1, 2, 15]),
     (8, [0, 1, 255], [0, 1, 255]), (16, [0, 1, 0, 255], [1, 255])],
)  # fmt: skip
def test_ids_of_every_depth_are_as_they_are_stored(depth, row, ids):
    files = [raw_png(depth, 0, [bytes(row)] * 2, len(ids))]
    if depth <= 8:
        files.append(raw_png(depth, 3, [bytes(row)] * 2, len(ids), PLTE=bytes(3 << depth)))
    for data in files:
        read = mask_ops.read_mask(data)
        assert read.dtype == np.uint8 and read.tolist() == [ids, ids]


def test_channels_of_16_bits_are_refused():
    with pytest.raises(BadRecord, match="3 channels of 16 bits; ids are read from channels of 8 bits"):
        mask_ops.read_mask(raw_png(16, 2, [bytes(range(6))], 1), channel=0)


def test_values_void_and_channels():
    pixels = np.zeros((2, 3, 3), np.uint8)
    ids = np.array([[0, 1, 2], [20, 255, 0]])
    for mode in "PL":
        np.testing.assert_array_equal(mask_ops.read_mask(png(ids, mode)), ids)
    out = parse('mask(void=0)|keep("mask")')({"image": pixels, "mask": png(ids)}, rng())
    np.testing.assert_array_equal(out["mask"], np.where(ids == 0, 255, ids))
    colour = np.stack([ids, ids * 0 + 9, ids * 0], -1)  # ADE20K: class in red, instance in green
    out = parse('mask("annotation",channel=1)|keep("mask")')({"image": pixels, "annotation": png(colour)}, rng())
    assert (out["mask"] == 9).all()
    drawn = parse('mask|keep("mask")')({"image": pixels, "mask": ids.astype(np.uint8)}, rng())
    np.testing.assert_array_equal(drawn["mask"], ids)


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        (png(np.zeros((4, 4))), "mask_size", "the mask is 4x4, the picture 3x2 pixels"),
        (png(np.zeros((2, 3, 3))), "bad_mask", "3 channels (RGB); one id a pixel is expected, channel=0 to 2 takes"),
        (b"not a picture", "bad_mask", "13 bytes that are not a readable picture"),
        (png(np.arange(2500).reshape(50, 50) * 7 % 251)[:-300], "bad_mask", "not a readable picture"),
        (picture(1, (3, 2)), "bad_mask", "JPEG, which does not preserve ids; masks must be PNG"),
    ],
)
def test_a_bad_mask_is_a_bad_record(mask, kind, message):
    with pytest.raises(BadRecord) as e:
        parse('mask|keep("mask")')({"image": np.zeros((2, 3, 3), np.uint8), "mask": mask}, rng())
    assert e.value.kind == kind in mask_ops.KINDS and message in e.value.detail


def test_sixteen_bit_masks():
    for top, good in ((200, True), (300, False)):
        file = io.BytesIO()
        Image.fromarray(np.array([[0, top]], np.uint16)).save(file, "PNG")
        if good:
            assert mask_ops.read_mask(file.getvalue()).tolist() == [[0, 200]]
        else:
            with pytest.raises(BadRecord, match=r"whole numbers up to 255; this is .* up to 300"):
                mask_ops.read_mask(file.getvalue())


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ('decode|resize(8)|mask|keep("mask")', "mask must stand once, before object_classes and every op that changes"),
        ('decode|mask|mask|keep("mask")', "mask must stand once"),
        ('decode|object_classes|mask|keep("mask")', "mask must stand once, before object_classes"),
        ('decode|keep("mask")', 'keep("mask") needs mask before it'),
        ('decode|object_classes|keep("image")', "object_classes needs mask before it"),
        ('mask(channel=-1)|keep("mask")', "channel=-1 is not valid; valid: the number of a channel, from 0"),
        ('mask(void=256)|keep("mask")', "void=256 is not valid; valid: an id from 0 to 255"),
        ('labels|keep("labels")', "missing a required argument: 'count'; it is labels(count"),
        ('labels(0)|keep("labels")', "count=0 is not valid; valid: a whole number of labels, 1 or more"),
    ],
)
def test_a_wrong_string(ops, message):
    with pytest.raises(UserError) as e:
        parse(ops)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("ops", "record", "message"),
    [
        ('mask|keep("mask")', {"image": b"x"}, "the record has no 'mask'; it has: image"),
        ('mask|keep("mask")', {"image": b"x", "mask": png([[1]])}, "the picture is encoded; put decode before mask"),
        ('mask|keep("mask")', {"image": np.zeros((1, 1, 3)), "mask": 3}, "PNG bytes or uint8 [H,W], and 'mask' is int"),
        ('mask|keep("mask")', {"image": 0, "mask": np.zeros((1, 1))}, "'mask' is float64[1, 1]"),
        ('labels(1)|keep("labels")', {"labels": [1, 2]}, "'labels' holds 2 labels; valid: labels(2) or more"),
        ('labels(1)|keep("labels")', {"labels": ["a"]}, "not a list of integers"),
    ],
)  # fmt: skip
def test_a_string_that_does_not_suit_the_records(ops, record, message):
    with pytest.raises(UserError) as e:
        parse(ops)(record, rng())
    assert message in str(e.value)


def test_labels_are_filled_up():
    ops = parse('labels(4)|keep("labels")')
    for given in ([3, 1], np.array([3, 1])):
        out = ops({"labels": given}, rng())["labels"]
        assert out.tolist() == [3, 1, -1, -1] and out.dtype == np.int32
    assert ops({"labels": []}, rng())["labels"].tolist() == [-1] * 4


def test_objects_of_scenes_become_classes():
    drawn = source.make({"kind": "scenes", "truth": "all", "split": "test", "count": 4, "resolution": 32})
    assert drawn.mask_classes == ["background", *drawn.classes]
    ops = parse('decode|mask|object_classes|keep("mask")')
    for i in range(4):
        record = drawn[i]
        mask = ops(record, rng())["mask"]
        for n, thing in enumerate(record["objects"]):
            ids = set(mask[record["mask"] == n + 1].tolist())
            assert {drawn.mask_classes[j] for j in ids} == {f"{thing['colour']} {thing['shape']}"}
        np.testing.assert_array_equal(mask == 0, record["mask"] == 0)
    with pytest.raises(BadRecord, match="bad_mask: object 3 in the mask, and the record has 1 objects"):
        ops({"image": np.zeros((1, 1, 3), np.uint8), "mask": np.uint8([[3]]), "object_class": [5]}, rng())
