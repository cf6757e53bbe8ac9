import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import decode
from maeclip_jax.errors import BadRecord, UserError
from maeclip_jax.prepare import crawl, image_text, records
from maeclip_jax.prepare.formats.raw import KINDS, Raw
from maeclip_jax.prepare.image_text import Dropped, Kept, Storing

SHARED = Path(os.environ.get("MAECLIP_SHARED_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))


def _pixels(height: int, width: int) -> np.ndarray:
    """Smooth, without symmetry: JPEG keeps it well, and a wrong rotation shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 127 // (width + height)], -1).astype(np.uint8)


def _encoded(pixels, format="JPEG", mode="RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("short_side, size", [(0, (300, 200)), (256, (300, 200)), (200, (300, 200))])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_that_is_small_enough_stays_byte_for_byte(short_side, size, mode):
    data = _encoded(_pixels(*size[::-1]), mode=mode)
    stored = image_text.store(data, Storing(short_side))
    assert stored.image == data and stored.verbatim
    assert (stored.width, stored.height) == (stored.source_width, stored.source_height) == size


@pytest.mark.parametrize("height, width, target", [(200, 300, (64, 96)), (300, 200, (96, 64)), (70, 1000, (64, 914))])
def test_larger_pictures_shrink_to_the_shorter_side(height, width, target):
    stored = image_text.store(_encoded(_pixels(height, width), quality=95), Storing(64))
    pixels = decode.decode(stored.image)
    assert pixels.shape[:2] == (stored.height, stored.width) == target
    assert (stored.source_height, stored.source_width) == (height, width) and not stored.verbatim
    assert np.abs(pixels.astype(int) - _pixels(*target)).mean() < 3


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP"])
def test_other_formats_become_jpeg_and_never_grow(format):
    stored = image_text.store(_encoded(_pixels(40, 60), format), Storing(256))
    assert stored.image[:2] == b"\xff\xd8" and (stored.width, stored.height) == (60, 40)
    assert np.abs(decode.decode(stored.image).astype(int) - _pixels(40, 60)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pictures_stand_upright_in_any_reader(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(_pixels(40, 60), quality=95, exif=exif)
    stored = image_text.store(data, Storing())
    blind = np.asarray(Image.open(io.BytesIO(stored.image)))  # this reader ignores EXIF
    assert np.abs(blind.astype(int) - decode.decode(data)).mean() < 3
    assert blind.shape[:2] == (stored.height, stored.width) == (stored.source_height, stored.source_width)
    assert stored.verbatim == (orientation == 1)


def test_cmyk_is_stored_as_rgb():
    data = _encoded(_pixels(40, 60), mode="CMYK")
    stored = image_text.store(data, Storing())
    assert Image.open(io.BytesIO(stored.image)).mode == "RGB"


def test_quality_is_what_is_asked_for():
    sizes = [len(image_text.store(_encoded(_pixels(90, 80)), Storing(64, quality=q)).image) for q in (30, 92)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("options", [{"short_side": -1}, {"quality": 0}, {"quality": 101}, {"max_pixels": 0}])
def test_storing_refuses_what_makes_no_sense(options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f"{name}={value}; valid: "):
        Storing(**options)


def _raw(**fields) -> Raw:
    data = _encoded(_pixels(30, 40))
    return Raw(**{"key": "k", "source": "s", "split": "train", "image": data, "texts": ("a",)} | fields)


def test_example_keeps_all_captions_and_counts_the_empty_ones():
    kept = image_text.example(_raw(texts=(" two words\n", "", "  ", "b")), Storing())
    assert kept.example["texts"] == ["two words", "b"] and kept.empty_captions == 2


@pytest.mark.parametrize(
    "fields, kind",
    [
        ({"texts": (" ", "")}, "empty_caption"),
        ({"texts": ("a\udcff",)}, "garbled_caption"),
        ({"split": "a/b"}, "bad_split"),
        ({"split": "all"}, "bad_split"),
        ({"image": b""}, "empty"),
        ({"image": b"<html>"}, "not_an_image"),
        ({"error": BadRecord("missing_image", "x")}, "missing_image"),
    ],
)
def test_example_names_why_a_record_cannot_be_used(fields, kind):
    with pytest.raises(BadRecord) as caught:
        image_text.example(_raw(**fields), Storing())
    assert caught.value.kind == kind and kind in {**KINDS, **decode.KINDS}


def test_serialized_examples_come_back_and_tfds_reads_them():
    example = image_text.example(_raw(key="ü/1", texts=("a", "日本")), Storing()).example
    data = image_text.serialize(example)
    assert image_text.parse(data) == example
    read = image_text.features().deserialize_example_np(data)
    assert read["key"].decode() == "ü/1" and [t.decode() for t in read["texts"]] == ["a", "日本"]
    assert read["image"].shape == (30, 40, 3) == (read["height"], read["width"], 3)


def test_a_key_that_failed_may_come_again_but_not_one_that_was_kept(monkeypatch):
    raw = [_raw(image=b""), _raw(), _raw(texts=("other",))]
    monkeypatch.setattr(records, "read", lambda reading, unit: iter(raw))
    found = list(image_text.outcomes(None, Storing(), None))
    assert [type(o) for o in found] == [Dropped, Kept, Dropped]
    assert [o.kind for o in found if isinstance(o, Dropped)] == ["empty", "duplicate_key"]


@pytest.mark.skipif(not (SHARED / "odd" / "manifest.jsonl").exists(), reason="no shared test data")
def test_every_odd_file_is_kept_or_named():
    plan = crawl.plan(str(SHARED / "odd"), image_column="file", caption_column="note")
    (unit,) = plan.units
    expected = [json.loads(line)["file"] for line in (SHARED / "odd" / "manifest.jsonl").read_text().splitlines()]
    keys = []
    for outcome in image_text.outcomes(plan.reading, Storing(128), unit):
        keys.append(outcome.key)
        if isinstance(outcome, Kept):
            pixels = decode.decode(outcome.example["image"])
            assert pixels.shape[:2] == (outcome.stored.height, outcome.stored.width)
            assert min(pixels.shape[:2]) <= 128
        else:
            assert outcome.kind in decode.KINDS and outcome.detail
    assert keys == expected


def test_examples_have_the_bytes_of_tfds():
    from tensorflow_datasets.core import example_serializer

    kind = image_text.features()
    serializer = example_serializer.ExampleSerializer(kind.get_serialized_info())
    for texts in (["a", "ü"], ["one"]):
        example = {
            "key": "k/ü",
            "image": _encoded(_pixels(4, 6)),
            "texts": texts,
            "width": 6,
            "height": 4,
            "source": "s",
        }
        expected = serializer.get_tf_example(kind.encode_example(example)).SerializeToString(deterministic=True)
        assert image_text.serialize(example) == expected


@pytest.mark.parametrize("size", [(40, 60), (400, 600)])
def test_a_picture_that_is_cut_anywhere_is_not_kept_byte_for_byte(size):
    data = _encoded(_pixels(*size), quality=95)
    for cut in range(len(data) // 3, len(data) - 2, len(data) // 37):
        with pytest.raises(BadRecord):
            image_text.store(data[:cut], Storing())
