"""Ops on the picture of a record: pure functions (example, rng, arguments) -> example.

Whatever moves pixels moves those of a decoded `mask` (op `mask`) along, by the nearest pixel.

Antialiasing is a word, since training may be fast but evaluation must be exact:

- "fast"   JPEG decoded at 1/2, 1/4 or 1/8 scale where that still leaves enough pixels, then bilinear, after a side
           that is still more than twice as long as it should be has been halved.
           Decoding waits until the crop is known, so a crop right after `decode` costs the least.
           Default of random_resized_crop and views.
- "area"   the whole picture decoded, then averaged over areas (OpenCV INTER_AREA); bilinear along a side to enlarge.
- "exact"  the whole picture decoded, then Pillow's antialiased filter `method`, which is what torchvision and
           open_clip compute. Default of every other resize.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from maeclip_jax.data.decode import MAX_PIXELS, Picture, probe
from maeclip_jax.errors import BadRecord, UserError

ANTIALIAS = ("exact", "area", "fast")
METHODS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def decode(example, rng, max_pixels=MAX_PIXELS, min_side=1, truncated="refuse"):
    """Encoded bytes in `image` to an upright uint8 RGB picture; drawn arrays pass unchanged.

    Refused from the header, as bad records: more than `max_pixels`, a side under `min_side`. truncated="fill"
    accepts truncated JPEG files and fills the missing part with grey.
    """
    image = field(example, "image")
    if isinstance(image, np.ndarray | Picture):
        return example
    return {**example, "image": probe(image, max_pixels=max_pixels, min_side=min_side, truncated=truncated)}


def random_resized_crop(example, rng, size, area=(0.5, 1.0), ratio=(3 / 4, 4 / 3), antialias="fast"):
    """A random part of the picture (share of its area, width/height of the part), resized to `size`."""
    picture = _picture(example)
    box = sample_box(rng, picture.height, picture.width, area, ratio)
    return {**example, "image": _resized(picture, box, size, antialias), **_mask(example, box, size)}


def views(example, rng, size, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias="fast", count=2):
    """Random parts of the picture, each as random_resized_crop draws one, in `views`; the picture stays as it is.

    The default area is SimCLR's; area=(1,1), ratio=(1,1) is the middle square. Whatever stands after this op does
    nothing to the views.
    """
    picture = _picture(example)
    boxes = [sample_box(rng, picture.height, picture.width, area, ratio) for _ in range(count)]
    return {**example, "views": np.stack([_resized(picture, box, size, antialias) for box in boxes])}


def random_crop(example, rng, size):
    """A part of `size` pixels at a random place, not resized; a smaller picture is a bad record."""
    picture = _picture(example)
    spare = _spare(picture, size, "random_crop")
    top, left = (int(rng.integers(n + 1)) for n in spare)
    return {**example, "image": picture.read((top, left, *size)), **_mask(example, (top, left, *size), size)}


def center_crop(example, rng, size):
    """The middle `size` pixels, not resized; a smaller picture is a bad record. Rounds as torchvision does."""
    picture = _picture(example)
    top, left = (round(n / 2) for n in _spare(picture, size, "center_crop"))
    return {**example, "image": picture.read((top, left, *size)), **_mask(example, (top, left, *size), size)}


def corner_crop(example, rng, size):
    """The upper left `size` pixels, not resized: what a model looks at whose patches do not divide its pictures."""
    picture = _picture(example)
    _spare(picture, size, "corner_crop")
    return {**example, "image": picture.read((0, 0, *size)), **_mask(example, (0, 0, *size), size)}


def resize(example, rng, size, method="bicubic", antialias="exact"):
    """Resized to `size` = side or (height, width), whatever its proportions were (squashed)."""
    return {
        **example,
        "image": _resized(_picture(example), None, size, antialias, method),
        **_mask(example, None, size),
    }


def resize_small(example, rng, side, method="bicubic", antialias="exact"):
    """Resized so that the shorter side is `side`, proportions kept. Rounds as torchvision does."""
    picture = _picture(example)
    height, width = picture.height, picture.width
    short = min(height, width)
    size = (side, int(side * width / short)) if height <= width else (int(side * height / short), side)
    if size[0] * size[1] > MAX_PIXELS // 4:
        raise BadRecord("too_large", f"{width}x{height} would be {size[1]}x{size[0]} after resize_small({side})")
    return {**example, "image": _resized(picture, None, size, antialias, method), **_mask(example, None, size)}


def fit(example, rng, size, fill=255, method="bicubic", antialias="exact"):
    """The whole picture, proportions kept, centred in `size`; the border has the value `fill`, in a mask 255."""
    picture = _picture(example)
    scale = min(size[0] / picture.height, size[1] / picture.width)
    inner = tuple(max(1, min(n, round(scale * m))) for n, m in zip(size, (picture.height, picture.width)))
    (top, left), (height, width) = ((n - m) // 2 for n, m in zip(size, inner)), inner
    moved = {"image": _resized(picture, None, inner, antialias, method), **_mask(example, None, inner)}
    for name, part in moved.items():
        moved[name] = np.full((*size, *part.shape[2:]), fill if name == "image" else 255, np.uint8)
        moved[name][top : top + height, left : left + width] = part
    return {**example, **moved}


def flip_lr(example, rng, p=0.5):
    """Mirrors left-right with probability `p`. Captions that mention left or right then become wrong."""
    if rng.random() >= p:
        return example
    moved = {"image": _picture(example).read(), **_mask(example)}
    return {**example, **{name: np.ascontiguousarray(pixels[:, ::-1]) for name, pixels in moved.items()}}


def blank(example, rng, value=128):
    """Every pixel grey: what can be answered, or matched, without looking."""
    picture = _picture(example)
    return {**example, "image": np.full((picture.height, picture.width, 3), value, np.uint8)}


def field(example: dict, name: str):
    """`example[name]`, or a UserError that lists the names there are."""
    if name not in example:
        raise UserError(f"the record has no {name!r}; it has: {', '.join(sorted(example))}")
    return example[name]


def _picture(example: dict) -> Picture:
    image = field(example, "image")
    if isinstance(image, Picture):
        return image
    if not isinstance(image, np.ndarray):
        raise UserError(f"the picture is encoded ({type(image).__name__}); put decode before this op")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"a picture is uint8 [H,W,3], not {image.dtype}{list(image.shape)}")
    return Picture(image)


def _mask(example: dict, box=None, size=None) -> dict[str, np.ndarray]:
    """{"mask": ...} of `box` (top, left, height, width) at `size`, by the nearest pixel; {} if none was decoded."""
    mask = example.get("mask")
    if not isinstance(mask, np.ndarray) or mask.ndim != 2:
        return {}
    top, left, height, width = box or (0, 0, *mask.shape)
    mask = mask[top : top + height, left : left + width]
    if size in (None, mask.shape):
        return {"mask": mask}
    return {"mask": np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))}


def _spare(picture: Picture, size: tuple[int, int], name: str) -> tuple[int, int]:
    spare = picture.height - size[0], picture.width - size[1]
    if min(spare) < 0:
        raise BadRecord("too_small", f"{picture.width}x{picture.height} pixels; {name} takes {size[1]}x{size[0]}")
    return spare


def sample_box(rng, height: int, width: int, area, ratio) -> tuple[int, int, int, int]:
    """(top, left, height, width), drawn as torchvision draws it.

    The share of the area and the log of the ratio are uniform; after 10 boxes that do not fit, the largest central
    one with an allowed ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for share, place in rng.random((10, 2)).tolist():
        pixels = (area[0] + (area[1] - area[0]) * share) * height * width
        aspect = math.exp(low + (high - low) * place)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.random(2).tolist()
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def _resized(picture: Picture, box, size, antialias: str, method: str = "bicubic") -> np.ndarray:
    return resample(picture.read(box, size if antialias == "fast" else None), size, antialias, method)


def resample(pixels: np.ndarray, size: tuple[int, int], antialias: str, method: str = "bicubic") -> np.ndarray:
    """uint8 [H,W,3] to uint8 [*size,3] by one of the methods of `ANTIALIAS`."""
    height, width = pixels.shape[:2]
    if (height, width) == tuple(size):
        return pixels
    if antialias == "exact":
        return np.asarray(Image.fromarray(pixels).resize(size[::-1], METHODS[method]))
    shrink = height / size[0], width / size[1]
    # Bilinear reads two pixels a side, so it may halve. More is left of "fast" only where no JPEG could be reduced.
    least = 2 if antialias == "fast" else 1
    if min(shrink) < least < max(shrink):
        # OpenCV averages along both sides or along none, so the one with too many pixels is first shortened alone.
        side, shape = int(shrink[1] > shrink[0]), [height, width]
        if antialias == "fast":  # as often as it takes; averaging takes three times as long
            shape[side], how = (shape[side] + 1) // 2, cv2.INTER_LINEAR
        else:
            shape[side], how = size[side], cv2.INTER_AREA
        return resample(cv2.resize(pixels, shape[::-1], interpolation=how), size, antialias)
    averaged = min(shrink) >= least and max(shrink) > 1
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if averaged else cv2.INTER_LINEAR)
