"""What a model expects of pictures and texts that come from anywhere: one at a time, not from a data set."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maeclip_jax.data import decode, ops
from maeclip_jax.errors import BadRecord, UserError

PICTURES = "a path, encoded bytes, a PIL picture, a uint8 array [H, W, 3], or a list of these"


class Preprocess:
    """Pictures to uint8 [side, side, 3] by `image`, ops as in config.preprocess.image; texts to int32 [length].

    `tokenizer` and `length` are None and 0 for a model that reads no text. Pictures that `image` does not leave in the
    size that the model takes are a UserError.
    """

    def __init__(self, image: str, side: int, tokenizer: Any = None, length: int = 0):
        self.image, self.side, self.tokenizer, self.length = image, side, tokenizer, length
        self._ops = ops.parse(f'{image}|keep("image")')

    def picture(self, value: Any) -> np.ndarray:
        """uint8 [side, side, 3] of one picture; UserError naming what is wrong with it."""
        name = f"picture {str(value)!r}" if isinstance(value, str | os.PathLike) else "a picture"
        try:
            made = self._ops({"image": _encoded(value)}, np.random.default_rng(0))["image"]
        except BadRecord as e:
            raise UserError(f"{name} cannot be used: {e}") from None
        except OSError as e:
            raise UserError(f"{name} cannot be read: {e.strerror or e}") from None
        if made.shape != (self.side, self.side, 3):
            raise UserError(
                f"preprocess.image={self.image!r} makes pictures {list(made.shape)}, the model takes "
                f"{[self.side, self.side, 3]}; end it with resize_small({self.side})|center_crop({self.side})"
            )
        return made

    def pictures(self, values: Any) -> np.ndarray:
        """uint8 [B, side, side, 3] of one picture or several."""
        return np.concatenate(list(self.batches(values, 256)))

    def batches(self, values: Any, size: int) -> Iterator[np.ndarray]:
        """The same, `size` pictures at a time and decoded by several threads, so that a folder needs no memory."""
        values = many(values)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for start in range(0, len(values), size):
                yield np.stack(list(pool.map(self.picture, values[start : start + size])))

    def texts(self, values: Any) -> np.ndarray:
        """int32 [B, length] of a string, a list of strings, or ids ([length] or [B, length]) as they are; 0 = pad.

        UserError for a text without tokens.
        """
        if not self.length:
            raise UserError("this model reads no text; it was trained on pictures alone")
        if hasattr(values, "ndim"):
            ids = np.atleast_2d(np.asarray(values))
            if ids.ndim != 2 or ids.shape[1] != self.length or ids.dtype.kind not in "iu":
                raise UserError(
                    f"texts as ids are whole numbers [B, {self.length}], not {ids.dtype}{list(values.shape)}"
                )
            if not len(ids):
                raise UserError("no texts were given; valid: one text or more")
            return ids.astype(np.int32)
        if self.tokenizer is None:
            raise UserError(
                'no tokenizer came with this model; give ids, or settings such as {"tokenizer.type": "clip", '
                '"tokenizer.path": FILE}'
            )
        values = [values] if isinstance(values, str) else list(values)
        if not values:
            raise UserError("no texts were given; valid: one text or more")
        bad = [t for t in values if not isinstance(t, str)]
        if bad:
            raise UserError(f"texts are a string or a list of strings, not of {type(bad[0]).__name__}")
        rows = [self.tokenizer(t, self.length) for t in values]
        for text, row in zip(values, rows):
            if not (text.strip() and row.any()):
                raise UserError(f"the text {text!r} has no tokens")
        return np.stack(rows)


def is_one_text(values: Any) -> bool:
    """Whether this is one text and not several."""
    return isinstance(values, str) or getattr(values, "ndim", 2) == 1


def many(values: Any) -> list:
    """One picture, a list or an array [B, H, W, 3] of pictures, as a list. UserError for an empty list and for objects
    that are not pictures."""
    if hasattr(values, "ndim") and not is_one(values):
        values = list(np.asarray(values)) if values.ndim == 4 else values
    elif isinstance(values, Sequence | Iterator) and not isinstance(values, str | bytes):
        values = list(values)
    else:
        values = [values]
    if isinstance(values, list) and not values:
        raise UserError("no pictures were given; valid: one picture or more")
    if not isinstance(values, list):
        shape = f" of shape {list(values.shape)}" if hasattr(values, "shape") else ""
        raise UserError(f"no pictures in {type(values).__name__}{shape}; valid: {PICTURES}")
    return values


def is_one(values: Any) -> bool:
    """Whether this is one picture and not several."""
    if hasattr(values, "ndim"):
        return values.ndim == 3
    return isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Sequence | Iterator)


def _encoded(value: Any) -> Any:
    """What the op `decode` takes: encoded bytes or an array."""
    from PIL import Image

    if isinstance(value, bytes):
        return value
    if isinstance(value, str | os.PathLike):
        from etils import epath

        return epath.Path(value).read_bytes()
    if isinstance(value, Image.Image):
        return decode.rgb8(value)
    if hasattr(value, "ndim"):
        array = np.asarray(value)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise UserError(f"a picture as an array is uint8 [H, W, 3], not {array.dtype}{list(array.shape)}")
        return array
    raise UserError(f"a picture cannot be {type(value).__name__}; valid: {PICTURES}")
