"""Ops on class masks, one id a pixel: pure functions (example, rng, arguments) -> example. 255 = counts nowhere."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from maeclip_jax.data.decode import Picture
from maeclip_jax.data.image_ops import field
from maeclip_jax.errors import BadRecord, UserError

VOID = 255
_SCALED = {"L;2": 85, "L;4": 17}  # how Pillow stores grey of fewer bits -> what it multiplies the samples by
KINDS = {
    "bad_mask": "the mask cannot be read, or does not hold one id a pixel",
    "mask_size": "mask and picture differ in size",
}


def mask(example, rng, key="mask", channel=None, void=None):
    """The class mask in `key` (PNG, or uint8 [H,W] where it is drawn) as uint8 [H,W] `mask`, 255 = ignored.

    Stands after decode; the ops on pictures that follow move the mask along. `channel`: the one that holds the ids
    where there are several (scene_parse150: 0). `void`: an id that becomes 255, such as 0 for "other".
    """
    ids, image = field(example, key), field(example, "image")
    if isinstance(ids, bytes):
        ids = read_mask(ids, channel)
    if not isinstance(ids, np.ndarray) or ids.dtype != np.uint8 or ids.ndim != 2:
        raise UserError(f"a mask is PNG bytes or uint8 [H,W], and {key!r} is {_kind(ids)}")
    size = (image.height, image.width) if isinstance(image, Picture) else getattr(image, "shape", None)
    if size is None:
        raise UserError("the picture is encoded; put decode before mask")
    check_size(ids, *size[:2])
    if void is not None:
        ids = np.where(ids == void, np.uint8(VOID), ids)
    return {**example, "mask": ids}


def object_classes(example, rng):
    """A mask of objects (0 background, i + 1 = object i) to one of classes: 0 background, 1 + class of the object.

    The classes come from `object_class`, int [objects], which records of `scenes` have.
    """
    ids, classes = field(example, "mask"), np.asarray(field(example, "object_class"), int)
    if not isinstance(ids, np.ndarray):
        raise UserError("the mask is encoded; put mask before object_classes")
    if ids.max(initial=0) > len(classes):
        raise BadRecord("bad_mask", f"object {ids.max()} in the mask, and the record has {len(classes)} objects")
    return {**example, "mask": np.array([0, *(classes + 1)], np.uint8)[ids]}


def read_mask(data: bytes, channel: int | None = None) -> np.ndarray:
    """Ids of an encoded mask as they are stored, palette or grey, uint8 [H,W]; of several channels, that of `channel`.

    Raises BadRecord with a kind of `KINDS`.
    """
    try:
        image = Image.open(io.BytesIO(data))
        stored = image.tile[0].args if image.tile else ""  # known until the pixels are loaded
        stored = stored if isinstance(stored, str) else str(stored and stored[0])
        image.load()
    except Exception as error:  # on broken bytes Pillow raises nearly every type there is
        raise BadRecord("bad_mask", f"{len(data)} bytes that are not a readable picture ({error})") from None
    if image.format == "JPEG":
        raise BadRecord("bad_mask", "JPEG, which does not preserve ids; masks must be PNG")
    ids = np.asarray(image)
    if ids.ndim == 3 and "16" in stored:
        raise BadRecord("bad_mask", f"{ids.shape[2]} channels of 16 bits; ids are read from channels of 8 bits")
    if ids.ndim == 3:
        if channel is None or channel >= ids.shape[2]:
            valid = f"channel=0 to {ids.shape[2] - 1} takes one of them"
            raise BadRecord("bad_mask", f"{ids.shape[2]} channels ({image.mode}); one id a pixel is expected, {valid}")
        ids = ids[..., channel]
    if ids.dtype.kind not in "biu" or ids.min(initial=0) < 0 or ids.max(initial=0) > VOID:
        raise BadRecord("bad_mask", f"ids are whole numbers up to {VOID}; this is {image.mode} up to {ids.max()}")
    return ids.astype(np.uint8) // _SCALED.get(stored, 1)


def check_size(ids: np.ndarray, height: int, width: int) -> None:
    """BadRecord unless the mask is as large as its picture."""
    if ids.shape != (height, width):
        raise BadRecord("mask_size", f"the mask is {ids.shape[1]}x{ids.shape[0]}, the picture {width}x{height} pixels")


def _kind(value) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
