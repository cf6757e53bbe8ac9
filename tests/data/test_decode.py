import importlib.util
import io
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from maeclip_jax.data.decode import KINDS, MAX_PIXELS, Picture, decode, probe
from maeclip_jax.errors import BadRecord
from tests.data.labelled_sources import raw_png

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about metadata of broken files
SHARED = Path(os.environ.get("MAECLIP_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
ODD = SHARED / "odd"
MANIFEST = {}
if (ODD / "manifest.jsonl").exists():
    MANIFEST = {d["file"]: d for d in map(json.loads, (ODD / "manifest.jsonl").read_text().splitlines())}

REFUSED = {
    "bomb_30000x30000.png": "too_large",
    "pillow_decompression_bomb.gif": "too_large",
    "pillow_decompression_bomb.ico": "too_large",
    "empty.jpg": "empty",
    "text_named.jpg": "not_an_image",
    "html_error_page.jpg": "not_an_image",
    "random_bytes.jpg": "not_an_image",
    "leading_garbage.jpg": "not_an_image",
    "truncated_50pct.jpg": "truncated",
    "truncated_95pct.jpg": "truncated",
    "truncated_header_only.jpg": "truncated",
    "no_eoi.jpg": "truncated",
    "pillow_truncated_jpeg.jpg": "truncated",
    "pillow_truncated_image.png": "truncated",
    "pillow_ultrahdr.jpg": "truncated",
    "soi_only.jpg": "corrupt",
    "pillow_broken.png": "corrupt",
    "pillow_broken_data_stream.png": "corrupt",
    "pillow_zero_width.gif": "corrupt",
    "pillow_avif_hopper.heif": "unsupported",
}


@pytest.fixture
def odd():
    if not MANIFEST:
        pytest.skip(f"no odd files at {ODD}; set MAECLIP_SHARED_DATA")
    return lambda name: (ODD / name).read_bytes()


def oracle(data: bytes) -> np.ndarray:
    """The right picture by Pillow, uint8 or (before rounding) float [H,W,3], written independently of decode.py."""
    image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return np.repeat(np.asarray(image).astype(float)[..., None] / 257, 3, 2)
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA")).astype(float)
        alpha = rgba[..., 3:] / 255
        return rgba[..., :3] * alpha + 255 * (1 - alpha)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", MANIFEST or ["absent"])
def test_every_odd_file_is_the_right_picture_or_one_named_refusal(odd, name):
    data = odd(name)
    if name.endswith(".heif") and importlib.util.find_spec("pillow_heif"):
        same = decode(odd("pillow_avif_hopper.avif")).astype(int)  # by another codec
        assert np.abs(decode(data) - same).mean() < 6
        return
    if name in REFUSED:
        with pytest.raises(BadRecord) as e:
            decode(data)
        assert e.value.kind == REFUSED[name] and e.value.kind in KINDS
        assert e.value.detail and "\n" not in e.value.detail
        return
    pixels = decode(data)
    right = oracle(data)
    assert pixels.dtype == np.uint8 and pixels.shape == right.shape
    if right.dtype == np.uint8:
        np.testing.assert_array_equal(pixels, right)
    else:
        assert np.abs(pixels - right).max() <= 1.01  # rounding


def test_the_refused_are_what_pillow_refuses_too(odd):
    strict = {name for name, d in MANIFEST.items() if d["decodes_strict"]}
    assert strict.isdisjoint(REFUSED) and strict | set(REFUSED) == set(MANIFEST)


def test_exif_orientations_stand_as_the_upright_original(odd):
    upright = decode(odd("exif_orientation_1.jpg")).astype(int)
    for i in range(2, 9):
        turned = decode(odd(f"exif_orientation_{i}.jpg"))
        assert turned.shape == upright.shape
        assert np.abs(turned - upright).mean() < 3, i  # encoded anew after turning


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_a_turned_jpeg_is_that_part_of_the_upright_picture(odd, orientation):
    picture = probe(odd(f"exif_orientation_{orientation}.jpg"))
    whole, box = picture.read(), (24, 40, 64, 96)
    assert (picture.height, picture.width) == whole.shape[:2] == (160, 240)
    np.testing.assert_array_equal(picture.read(box), whole[24:88, 40:136])
    half = picture.read(box, reduce_to=(32, 48))
    assert half.shape == (32, 48, 3)
    means = whole[24:88, 40:136].reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(half - means).mean() < 3


def jpeg(height=64, width=48, mode="RGB", **kwargs) -> bytes:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", **kwargs)
    return out.getvalue()


def encoded(image: Image.Image, kind: str, **kwargs) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **kwargs)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow_and_reduces_by_powers_of_two(mode, progressive):
    data = jpeg(301, 203, mode, progressive=progressive)
    right = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), right)
    assert decode(data, reduce_to=(150, 101)).shape == (151, 102, 3)
    assert decode(data, reduce_to=(151, 101)).shape == (301, 203, 3)  # a half would be too low
    assert decode(data, reduce_to=(20, 20)).shape == (38, 26, 3)  # 1/8 at most
    assert np.abs(decode(data, reduce_to=(75, 50)).mean((0, 1)) - right.mean((0, 1))).max() < 4


def test_colours_are_red_green_blue_at_every_scale():
    red = encoded(Image.new("RGB", (64, 64), (250, 10, 20)), "JPEG")
    for side in (64, 32, 16, 8):
        assert np.abs(decode(red, reduce_to=(side, side)).astype(int) - [250, 10, 20]).max() <= 3


def test_ink_alpha_and_16_bits():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red ink; Pillow writes Adobe's inverted values
    assert np.abs(decode(encoded(cmyk, "JPEG")).astype(int) - [255, 0, 0]).max() <= 3
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert (decode(encoded(clear, "PNG")) == 255).all()
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert (decode(encoded(half, "WEBP", lossless=True)) == 127).all()
    see_through = encoded(Image.new("L", (8, 8), 7), "PNG", transparency=7)
    assert (decode(see_through) == 255).all()
    grey = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    for kind in ("PNG", "TIFF"):
        assert (decode(encoded(grey, kind)) == 128).all()
    tiff = bytearray(encoded(grey, "TIFF"))
    at = tiff.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # tag 262, a short: 1 = black is zero
    tiff[at + 8] = 0
    assert (decode(bytes(tiff)) == 127).all()


@pytest.mark.parametrize(
    "depth, kind, samples, clear, expected",
    [
        (1, 0, [0b01000000], [0], [255, 255, 255]),
        (2, 0, [0b01001011], [1], [255, 0, 170]),
        (4, 0, [0x1F, 0x20], [15], [17, 255, 34]),
        (8, 0, [0, 1, 255], [1], [0, 255, 255]),
        (16, 0, [0, 1, 128, 0, 255, 254], [0x8000], [0, 255, 255]),
        (16, 0, [0, 0, 128, 0, 0, 1], [0], [255, 128, 0]),
        (8, 2, [18, 0, 0, 1, 2, 3, 0, 0, 18], [18, 0, 0], [255] * 3 + [1, 2, 3, 0, 0, 18]),
        (16, 2, [18, 52, 0, 0, 0, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 18, 52], [0x1234, 0, 0],
         [255] * 3 + [1, 2, 3, 0, 0, 18]),
    ],
)  # fmt: skip
def test_a_transparent_colour_of_any_depth_is_white(depth, kind, samples, clear, expected):
    pixels = decode(raw_png(depth, kind, [bytes(samples)], 3, tRNS=struct.pack(f">{len(clear)}H", *clear)))
    wanted = np.array(expected).reshape(1, 3, -1)
    np.testing.assert_array_equal(pixels, np.broadcast_to(wanted, (1, 3, 3)))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        assert np.abs(decode(data).astype(int) - [255, 0, 0]).max() <= 4, kind


def test_pixels_without_a_range_are_unsupported():
    for mode in ("F", "I"):
        with pytest.raises(BadRecord, match=f"unsupported: TIFF with pixels of type '{mode}', whose range"):
            decode(encoded(Image.new(mode, (4, 4)), "TIFF"))


def test_a_bomb_is_refused_from_its_header_alone(odd):
    header = odd("bomb_30000x30000.png")[:64]
    tracemalloc.start()
    with pytest.raises(BadRecord, match="too_large"):
        decode(header)
    assert tracemalloc.get_traced_memory()[1] < 2**20  # nothing was decoded
    tracemalloc.stop()


def test_limits_are_said_with_the_numbers():
    data = jpeg(64, 48)
    with pytest.raises(BadRecord) as e:
        decode(data, max_pixels=3000)
    assert str(e.value) == "too_large: 48x64 pixels; max_pixels is 3000"
    with pytest.raises(BadRecord) as e:
        decode(data, min_side=50)
    assert str(e.value) == "too_small: 48x64 pixels; min_side is 50"
    assert decode(data, max_pixels=64 * 48, min_side=48).shape == (64, 48, 3)
    assert MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("progressive", [False, True])
def test_cut_jpegs_are_refused_wherever_they_are_cut_and_filled_on_request(progressive):
    data = jpeg(96, 80, quality=90, progressive=progressive)
    whole = decode(data)
    for end in range(1, len(data) - 2, 37):
        with pytest.raises(BadRecord) as e:
            decode(data[:end])
        assert e.value.kind in ("truncated", "corrupt", "not_an_image")
        with pytest.raises(BadRecord):
            decode(data[:end], reduce_to=(8, 8))
    filled = decode(data[: -len(data) // 8], truncated="fill")
    assert filled.shape == whole.shape
    if not progressive:
        np.testing.assert_array_equal(filled[:32], whole[:32])


def test_damage_never_raises_anything_but_bad_record():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "ICO"):
        data = encoded(small, kind)
        for _ in range(60):
            broken = np.frombuffer(data, np.uint8).copy()
            broken[rng.integers(0, len(broken), 3)] = rng.integers(0, 256, 3)
            try:
                pixels = decode(broken.tobytes(), max_pixels=10**6)
                assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
            except BadRecord as e:
                assert e.kind in KINDS, e


def test_broken_exif_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(64, 48, exif=exif.tobytes())
    assert decode(turned).shape == (48, 64, 3)
    exif[0x0112] = 99
    assert decode(jpeg(64, 48, exif=exif.tobytes())).shape == (64, 48, 3)
    assert decode(jpeg(64, 48, exif=b"Exif\0\0MM\0*garbage")).shape == (64, 48, 3)


def test_a_picture_of_pixels_reads_like_a_jpeg():
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    picture = Picture(pixels)
    assert (picture.height, picture.width) == (6, 5)
    np.testing.assert_array_equal(picture.read((1, 2, 3, 2), reduce_to=(1, 1)), pixels[1:4, 2:4])
