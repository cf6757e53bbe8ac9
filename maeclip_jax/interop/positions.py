"""Positions on another grid of patches, or for shorter texts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from maeclip_jax.errors import UserError

IMAGE, TEXT = "embed_image/position", "embed_text/position"
_PATCH = "embed_image/patch/kernel"


def fit(flat: dict[str, np.ndarray], want: Mapping[str, tuple[int, ...]], source: str) -> list[str]:
    """Makes positions in `flat` as many as `want` ({path: shape}) has, in place; -> a note for each that changed.

    Pictures: antialiased bicubic interpolation of the grid (as open_clip). Texts: the first ones. UserError if a text
    would need more positions than there are.
    """
    notes = []
    for path, table_NxD in flat.items():
        new = want.get(path, table_NxD.shape)
        if not path.endswith((IMAGE, TEXT)) or new == table_NxD.shape or new[1:] != table_NxD.shape[1:]:
            continue
        if path.endswith(IMAGE):
            was, side = math.isqrt(len(table_NxD)), math.isqrt(new[0])
            flat[path] = grid(table_NxD, side)
            notes.append(f"{path} interpolated from {was}x{was} to {side}x{side}")
        elif new[0] > len(table_NxD):
            raise UserError(
                f"{source} has positions for {len(table_NxD)} tokens of text, the config wants {new[0]}; "
                f"valid: text_tower.length (and tokenize(...) in the ops) up to {len(table_NxD)}"
            )
        else:
            flat[path] = table_NxD[: new[0]]
            notes.append(f"{path}: the first {new[0]} of {len(table_NxD)}")
    return notes


def is_fixed(image: Mapping) -> bool:
    """Whether the positions of an image tower (settings) are computed and no parameter."""
    return image.get("position", "sincos") == "sincos"


def fixed(flat: Mapping[str, np.ndarray], image: Mapping) -> dict[str, np.ndarray]:
    """The computed positions [N, D] of an image tower (settings) with the parameters `flat`, by their path there."""
    from maeclip_jax.nn.embed import sincos_2d

    side = grid_side(image)
    table_NxD = sincos_2d(side, side, image["width"])
    return {path.removesuffix(_PATCH) + IMAGE: table_NxD for path in flat if path.endswith(_PATCH)}


def grid_side(image: Mapping) -> int:
    """Patches along a side of the pictures of an image tower (settings)."""
    return image["size"] // image["patch"]


def grid(table_NxD: np.ndarray, side: int) -> np.ndarray:
    """Positions of a square grid [n * n, D] -> [side * side, D], float32."""
    was = math.isqrt(len(table_NxD))
    if was == side:
        return table_NxD
    weights_MxN = _bicubic(was, side)
    grid_NxNxD = table_NxD.astype(np.float64).reshape(was, was, -1)
    out = np.einsum("ai,bj,ijd->abd", weights_MxN, weights_MxN, grid_NxNxD, optimize=True)
    return out.reshape(side * side, -1).astype(np.float32)


def _bicubic(old: int, new: int) -> np.ndarray:
    """[new, old]: weights of antialiased bicubic resampling (Keys' kernel, a = -0.5, as Pillow and torch have it)."""
    scale = max(1.0, old / new)
    centre = (np.arange(new)[:, None] + 0.5) * old / new
    x = np.abs(np.arange(old)[None] + 0.5 - centre) / scale
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)
