"""AVIF, HEIC and JPEG XL: turned once, all eight ways; named with what reads them where nothing does."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import decode, jpeg_xl
from maeclip_jax.errors import BadRecord

# Four coloured quarters, 96 x 64, by cjxl 0.7; the byte holds the orientation. An upright viewer sees `_TURNED` of it.
_JXL = bytes.fromhex(
    "0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c200000004d6a786c63ff0a0f0510505c1208020100dc004b3869"
    "98ca83f729489800507fdc8f71637c2f17080200607400203b862b5c86527c80b1a904121cf70152f16905fd68de577560766800"
)
_BYTE = _JXL.index(b"\x0f\x05\x10") + 1


def _quarters() -> Image.Image:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48], pixels[:32, 48:] = (220, 30, 30), (30, 220, 30)
    pixels[32:, :48], pixels[32:, 48:] = (30, 30, 220), (200, 200, 60)
    return Image.fromarray(pixels)


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _encoded(format: str, orientation: int) -> bytes:
    file = io.BytesIO()
    _quarters().save(file, format, exif=_exif(orientation), quality=90)
    return file.getvalue()


def _jxl(orientation: int) -> bytes:
    """Turned by its codestream; its EXIF says the same, as cameras' and converters' do."""
    tiff = _exif(orientation).removeprefix(b"Exif\0\0")
    data = bytearray(_JXL)
    data[_BYTE] |= (orientation - 1) << 3
    return bytes(data) + struct.pack(">I4sI", 12 + len(tiff), b"Exif", 0) + tiff


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["AVIF", "HEIF", "JXL", "JPEG in JXL"])
def test_every_orientation_is_turned_once(format, orientation, tmp_path):
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if "JXL" in format:
        pytest.importorskip("pillow_jxl")
    if format == "JXL":
        data = _jxl(orientation)
    elif format == "JPEG in JXL":
        (tmp_path / "0.jpg").write_bytes(_encoded("JPEG", orientation))
        packed = io.BytesIO()
        Image.open(tmp_path / "0.jpg").save(packed, "JXL", lossless_jpeg=True)
        data = packed.getvalue()
    else:
        data = _encoded(format, orientation)
    upright = decode.decode(_encoded("JPEG", orientation)).astype(int)
    found = decode.decode(data)
    assert found.shape == upright.shape and abs(found - upright).mean() < 6
    # What the source says beside it does not turn it again.
    beside = decode.probe(data, orientation=6 if orientation != 1 else 1)
    assert not beside.turned and (beside.read() == found).all()


def test_the_size_of_jpeg_xl_is_read_before_it_is_decoded(monkeypatch):
    assert jpeg_xl.size(_jxl(6)) == (96, 64)
    huge = b"\xff\x0a" + (0b0 | 3 << 1 | (1 << 29) << 3 | 1 << 33).to_bytes(8, "little")
    assert jpeg_xl.size(huge) == ((1 << 29) + 1, (1 << 29) + 1)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        with pytest.raises(BadRecord, match="too_large: 536870913x536870913 pixels"):
            decode.decode(huge)
    with pytest.raises(BadRecord, match="corrupt: a JPEG XL signature, but no codestream"):
        decode.decode(_JXL[:40])


def test_what_no_library_reads_is_named_with_the_one_that_does(monkeypatch):
    monkeypatch.setattr(decode, "_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(BadRecord, match="unsupported: JXL; pip install pillow-jxl-plugin reads it"):
        decode.decode(_JXL)
    with pytest.raises(BadRecord, match="unsupported: HEIF; pip install pillow-heif reads it"):
        decode.decode(b"\0\0\0\x1cftypheic" + bytes(40))
    with pytest.raises(BadRecord, match="unsupported: AVIF; pip install --upgrade pillow reads it"):
        decode.decode(_encoded("AVIF", 1))
