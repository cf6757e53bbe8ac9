"""Picture bytes to uint8 RGB: the right picture, or one `BadRecord` with a kind from `KINDS`.

What "the right picture" means here, for every format that is read (`FORMATS`):

- the EXIF orientation (or XMP's, where EXIF has none) is applied: the picture stands as a viewer shows it;
- grey, bilevel and palette become three channels; CMYK and YCCK become RGB, Adobe's inverted ink values included;
- transparency (alpha channel or transparent colour) is composited on white, as paper or a web page would show it;
- 16-bit samples are scaled to 8 bits over their whole range, never clipped (grey rounded, colour by its high byte);
- of animations and multi-page files the first frame is taken, of icons the largest;
- HEIC and JPEG XL tell their orientation themselves, and decode upright: their EXIF counts for nothing;
- colour profiles (ICC) are ignored: the numbers in the file are taken as sRGB, as torchvision and open_clip do.

Pillow reads every header (about 25 us) and decodes all formats but one: 8-bit RGB and grey JPEG go through
OpenCV, which can decode at 1/2, 1/4 and 1/8 scale for the price of fewer samples (both use libjpeg-turbo; the
pixels are equal). A size over `max_pixels` is refused from the header, with nothing decoded.

Damage that the format cannot reveal (flipped bits in JPEG scan data) is not detected: the picture is then what
libjpeg makes of it. libjpeg writes one line about it to stderr; that line is harmless.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maeclip_jax.data import jpeg_xl
from maeclip_jax.errors import BadRecord

# Every way in which a record can be unusable; counts and reports are keyed by these names.
KINDS = {
    "empty": "no bytes at all",
    "not_an_image": "bytes of no known picture format (a text, an HTML error page, noise)",
    "unsupported": "a known format that is not read here, or a pixel type whose range is not defined",
    "truncated": "the file ends before the picture does",
    "corrupt": "a known format whose structure is broken",
    "too_large": "more pixels than allowed, by its header (nothing was decoded) or after an enlarging resize",
    "too_small": "a side shorter than asked for",
    "no_text": "no caption, or only empty ones",
}
MAX_PIXELS = 2**26  # 67 million: an 8192 x 8192 picture; 200 MB once decoded
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "HEIF", "JXL")
_PLUGINS = {"HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin", "AVIF": "--upgrade pillow"}  # format -> for pip

# Where, first bytes, format. Used only to word the refusal of a file that could not be opened.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (4, b"ftypavi", "AVIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"jP  ", "JPEG2000"),
    *((4, b"ftyp" + brand, "HEIF") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (4, b"ftyp", "video"),
    (0, b"\xff\x0a", "JXL"),
    (4, b"JXL ", "JXL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"<svg", "SVG"),
)
# EXIF orientation -> how stored pixels become upright: transpose first, then reverse rows, then reverse columns.
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

cv2.setNumThreads(0)  # one record, one thread: the pipeline has its own, and OpenCV's would fight with them
# Pillow warns about damaged metadata and about sizes over half its limit. What matters is refused here by name.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Picture:
    """An upright picture of known size whose pixels are decoded when they are asked for.

    `height`, `width`: of the upright picture, in pixels. JPEG stays encoded until `read`, so that a crop and a
    resize which come later can be decoded at a reduced scale; everything else is decoded at once.
    """

    def __init__(self, pixels: np.ndarray | None, jpeg: bytes = b"", size=(0, 0), orientation: int = 1):
        self._pixels, self._jpeg, self._stored_size, self._orientation = pixels, jpeg, size, orientation
        self.turned = False  # by an orientation from elsewhere
        self.plain = pixels is None and orientation == 1  # JPEG that any reader shows upright and in its colours
        size = pixels.shape[:2] if pixels is not None else size
        self.height, self.width = size[::-1] if _UPRIGHT[orientation][0] else size

    def read(self, box=None, reduce_to=None) -> np.ndarray:
        """The pixels of `box` = (top, left, height, width) (default: all), uint8 [h,w,3]; possibly a view.

        With `reduce_to` = (height, width) a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that
        still gives at least `reduce_to` pixels, and the box is rounded to that grid (by at most 4 pixels of the
        original); the result is then smaller than the box. Raises BadRecord.
        """
        y, x, h, w = box or (0, 0, self.height, self.width)
        transposed, flip_y, flip_x = _UPRIGHT[self._orientation]
        factor = 1
        while reduce_to and factor < 8 and h >= 2 * factor * reduce_to[0] and w >= 2 * factor * reduce_to[1]:
            factor *= 2
        if flip_y:
            y = self.height - y - h
        if flip_x:
            x = self.width - x - w
        if transposed:
            y, x, h, w = x, y, w, h
        pixels, factor, swapped = self._decode(factor)
        if box:
            top, left = round(y / factor), round(x / factor)
            bottom, right = round((y + h) / factor), round((x + w) / factor)
            pixels = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
        if swapped:  # only the part that is used pays for the conversion
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        if self._orientation == 1:
            return pixels
        pixels = pixels.swapaxes(0, 1) if transposed else pixels
        return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

    def _decode(self, factor: int) -> tuple[np.ndarray, int, bool]:
        """Stored pixels at 1/factor (or 1) of the size, the factor used, and whether they are BGR."""
        if self._pixels is not None:
            return self._pixels, 1, False
        flag = cv2.IMREAD_COLOR_RGB if factor == 1 else _REDUCED[factor]
        try:
            pixels = cv2.imdecode(np.frombuffer(self._jpeg, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            pixels = None
        expected = tuple(-(-n // factor) for n in self._stored_size)
        if pixels is not None and pixels.shape[:2] == expected:
            return pixels, factor, factor > 1
        # OpenCV gives no reason. Pillow does, or reads what OpenCV could not.
        try:
            return rgb8(Image.open(io.BytesIO(self._jpeg), formats=("JPEG",))), 1, False
        except Exception as error:
            raise _bad(error, self._jpeg) from error


def probe(
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = 1, truncated: str = "refuse", orientation: int = 0
) -> Picture:
    """The picture in `data`, upright, its size known and checked, JPEG not decoded yet.

    `truncated`: "refuse" (BadRecord) or "fill" (JPEG only: the missing part stays grey). Pillow's own limit of
    179 million pixels holds whatever `max_pixels` is. `orientation`: EXIF's number for how the picture is stored, from
    elsewhere; it counts where the picture itself tells none. Raises BadRecord with a kind from `KINDS`.
    """
    if not data:
        raise BadRecord("empty", "0 bytes")
    try:
        if jpeg_xl.is_jxl(data):
            _check_size(*jpeg_xl.size(data), max_pixels)
        image = Image.open(io.BytesIO(data), formats=_formats())
        width, height = image.size
        _check_size(width, height, max_pixels)
        turned = orientation if orientation in _UPRIGHT and not _tells_orientation(image) else 1
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            jpeg = bytes(data) + b"\xff\xd9" if truncated == "fill" else data
            picture = Picture(None, jpeg, (height, width), _orientation(image) if turned == 1 else turned)
        else:
            if truncated == "fill" and image.format in ("JPEG", "MPO"):
                image = Image.open(io.BytesIO(bytes(data) + b"\xff\xd9"), formats=("JPEG",))
            picture = Picture(rgb8(image), orientation=turned)
        picture.turned = turned != 1
    except (BadRecord, MemoryError):
        raise
    except Exception as error:  # on broken bytes Pillow raises nearly every type there is
        raise _bad(error, data) from error
    if min(picture.height, picture.width) < min_side:
        raise BadRecord("too_small", f"{picture.width}x{picture.height} pixels; min_side is {min_side}")
    return picture


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = 1, truncated: str = "refuse", reduce_to=None
) -> np.ndarray:
    """The upright picture in `data` as uint8 [H,W,3] RGB; the module's docstring says what that means.

    `reduce_to` = (height, width): JPEG may come back at 1/2, 1/4 or 1/8 of its size, with both sides still at
    least that long. Raises BadRecord with a kind from `KINDS`.
    """
    picture = probe(data, max_pixels=max_pixels, min_side=min_side, truncated=truncated)
    return np.ascontiguousarray(picture.read(reduce_to=reduce_to))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadRecord("too_large", f"{width}x{height} pixels; max_pixels is {max_pixels}")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()  # a Pillow built without AVIF or JPEG 2000 still reads the rest
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        from pillow_jxl import JpegXLImagePlugin  # it registers itself

        JpegXLImagePlugin.DECODE_THREADS = 0
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _tells_orientation(image: Image.Image) -> bool:
    """Whether the picture says how it is stored, upright included."""
    if _stands_upright(image):
        return True
    try:
        return ("exif" in image.info and 0x0112 in image.getexif()) or _orientation(image) != 1
    except Exception:
        return False


def _stands_upright(image: Image.Image) -> bool:
    """Whether its decoder turns it. JPEG that was packed as JPEG XL without loss is unpacked, and keeps its EXIF."""
    return image.format == "HEIF" or (image.format == "JXL" and not image.jpeg)


def _orientation(image: Image.Image) -> int:
    """1..8; broken EXIF data cannot turn a picture, so it counts as upright."""
    if "exif" not in image.info and "xmp" not in image.info:
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
        return value if value in _UPRIGHT else 1
    except Exception:
        return 1


def rgb8(image: Image.Image) -> np.ndarray:
    """Any picture that Pillow opened, upright, as uint8 [H,W,3] RGB; BadRecord for pixels whose range is undefined."""
    format_, tags = image.format, getattr(image, "tag_v2", {})
    clear = _transparent_colour(image)
    image.load()
    if not _stands_upright(image):
        with contextlib.suppress(Exception):  # broken EXIF: upright, as in `_orientation`
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and format_ in ("PNG", "PPM")):
        # Pillow's own conversion clips 16-bit grey at 255, and leaves out what the TIFF tags say.
        top = (1 << min(16, tags.get(258, (16,))[0])) - 1
        grey = (np.asarray(image).astype(np.uint32) * 255 + top // 2) // top
        grey = grey if tags.get(262) != 0 else 255 - grey  # 0: white is zero
        if clear is not None:
            grey[np.asarray(image) == clear] = 255
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadRecord("unsupported", f"{format_} with pixels of type {image.mode!r}, whose range is not defined")
    if image.has_transparency_data:
        if clear is not None:
            image.info["transparency"] = clear
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise BadRecord("unsupported", f"{format_} in mode {image.mode!r}: {error}") from error


def _transparent_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """The colour of a PNG that is transparent, as Pillow scales its samples; None if it has none or a palette.

    Pillow leaves it as it is stored. To be asked before the pixels are loaded: only then the depth is known.
    """
    clear = image.info.get("transparency")
    if image.format != "PNG" or image.mode == "P" or not isinstance(clear, int | tuple) or not image.tile:
        return None
    scale = {"L;2": lambda grey: (grey & 3) * 85, "L;4": lambda grey: (grey & 15) * 17,
             "RGB;16B": lambda rgb: tuple(part >> 8 for part in rgb)}  # fmt: skip
    return scale.get(image.tile[0].args, lambda colour: colour)(clear)


def _bad(error: Exception, data: bytes) -> BadRecord:
    """The one BadRecord for whatever a library raised over `data`."""
    if isinstance(error, BadRecord):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadRecord("too_large", str(error))
    head = bytes(data[:16])
    name = next((name for at, magic, name in _SIGNATURES if head[at:].startswith(magic)), None)
    if isinstance(error, UnidentifiedImageError):
        if name is None:
            return BadRecord("not_an_image", f"{len(data)} bytes that begin with {head[:12]!r}")
        if name not in _formats():
            remedy = (
                f"pip install {_PLUGINS[name]} reads it" if name in _PLUGINS else f"read are: {', '.join(_formats())}"
            )
            return BadRecord("unsupported", f"{name}; {remedy}")
        return BadRecord("corrupt", f"a {name} signature, but no readable header after it ({len(data)} bytes)")
    text = f"{name or 'picture'}: {error}"
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return BadRecord("truncated", text)
    return BadRecord("corrupt", text)
