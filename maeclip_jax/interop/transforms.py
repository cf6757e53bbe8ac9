"""How arrays of other code bases become ours and back: the words that conversion tables use.

A word is a pair of functions on lists of arrays, `into` ours and `out` of ours, exact inverses of each other: nothing
is computed, values only move. `heads` is the number of attention heads of the tower that an array belongs to.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable

import numpy as np

Arrays = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """`fits(shape, needed)`: whether `into` takes an array of `shape` where `out` would make one of `needed`."""

    into: Callable[[Arrays, int], Arrays]
    out: Callable[[Arrays, int], Arrays]
    fits: Callable[[tuple, tuple], bool] = operator.eq


def _each(into: Callable, out: Callable) -> Transform:
    return Transform(lambda xs, heads: [into(x) for x in xs], lambda xs, heads: [out(x) for x in xs])


def _drop_leading(axes: int) -> Transform:
    """[1, ..., 1, *rest] -> [*rest]."""

    def into(x: np.ndarray) -> np.ndarray:
        if x.shape[:axes] != (1,) * axes:
            raise ValueError(f"shape {x.shape} does not begin with {axes} axes of 1")
        return x.reshape(x.shape[axes:])

    return _each(into, lambda x: x.reshape((1,) * axes + x.shape))


def _patch_out(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def _patch_hwio_out(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, -1)


def _flat_columns(x: np.ndarray) -> np.ndarray:
    """[in, heads, width] -> [heads * width, in]; [heads, width] -> [heads * width]."""
    return x.reshape(-1) if x.ndim == 2 else x.reshape(x.shape[0], -1).T


def _by_head(x: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `_flat_columns`."""
    return x.reshape(heads, -1) if x.ndim == 1 else x.T.reshape(x.shape[1], heads, -1)


def _join(xs: Arrays, heads: int) -> Arrays:
    """Three of [heads * width, *in] -> one with columns (heads, 3, width)."""
    parts = [x.reshape(heads, -1, *x.shape[1:]) for x in xs]
    return [np.stack(parts, axis=1).reshape(3 * xs[0].shape[0], *xs[0].shape[1:]).T]


def _split(xs: Arrays, heads: int) -> Arrays:
    parts = xs[0].T.reshape(heads, 3, -1, *xs[0].T.shape[1:])
    return [parts[:, i].reshape(-1, *parts.shape[3:]) for i in range(3)]


def _thirds(x: np.ndarray) -> Arrays:
    return np.split(x, 3, axis=0)


TRANSFORMS: dict[str, Transform] = {
    "same": _each(lambda x: x, lambda x: x),
    # one number, of shape () or (1,), as some versions of a code base have it <-> ()
    "scalar": Transform(
        lambda xs, heads: [x.reshape(()) for x in xs], lambda xs, heads: xs, lambda have, needed: have in ((), (1,))
    ),
    # torch's Linear [out, in] <-> Dense [in, out]
    "transpose": _each(lambda x: x.T, lambda x: x.T),
    # torch's Conv2d [width, 3, p, p] <-> Dense over (row, column, channel) [p * p * 3, width]
    "patch": _each(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patch_out),
    # [1, ...] and [1, 1, ...] <-> [...]
    "drop_1": _drop_leading(1),
    "drop_2": _drop_leading(2),
    # q, k, v, each torch's weight or bias <-> one kernel or bias with columns (heads, 3, width)
    "qkv": Transform(_join, _split),
    # the three in one array, rows (3, heads, width), as torch.nn.MultiheadAttention and timm have it
    "qkv_in_one": Transform(
        lambda xs, heads: _join(_thirds(xs[0]), heads), lambda xs, heads: [np.concatenate(_split(xs, heads))]
    ),
    # the three in one Dense kernel [in, (3, heads, width)] or bias, as M3AE has it
    "qkv_columns": Transform(
        lambda xs, heads: _join(_thirds(xs[0].T), heads), lambda xs, heads: [np.concatenate(_split(xs, heads)).T]
    ),
    # as big_vision has it: kernels [in, heads, width], biases [heads, width] <-> the one of "qkv"
    "qkv_by_head": Transform(
        lambda xs, heads: _join([_flat_columns(x) for x in xs], heads),
        lambda xs, heads: [_by_head(x, heads) for x in _split(xs, heads)],
    ),
    # [in, heads, width] or [heads, width] <-> Dense [in, heads * width]
    "by_head": Transform(
        lambda xs, heads: [_flat_columns(x).T for x in xs], lambda xs, heads: [_by_head(x.T, heads) for x in xs]
    ),
    # [heads, width, out] <-> Dense [heads * width, out]
    "from_heads": Transform(
        lambda xs, heads: [x.reshape(-1, x.shape[-1]) for x in xs],
        lambda xs, heads: [x.reshape(heads, -1, x.shape[-1]) for x in xs],
    ),
    # a convolution [p, p, 3, width] <-> Dense [p * p * 3, width]
    "patch_hwio": _each(lambda x: x.reshape(-1, x.shape[-1]), _patch_hwio_out),
    # that array <-> three Dense kernels or biases
    "thirds": Transform(
        lambda xs, heads: [x.T for x in _thirds(xs[0])], lambda xs, heads: [np.concatenate([x.T for x in xs])]
    ),
    # keys and values in one Linear <-> two Dense kernels or biases
    "halves": Transform(
        lambda xs, heads: [x.T for x in np.split(xs[0], 2)], lambda xs, heads: [np.concatenate([x.T for x in xs])]
    ),
    # positions of [class token, *patches] <-> (that of the class token, those of the patches)
    "cls_first": Transform(
        lambda xs, heads: [xs[0][0], xs[0][1:]], lambda xs, heads: [np.concatenate([xs[0][None], xs[1]])]
    ),
    # the same with one axis in front
    "cls_first_1": Transform(
        lambda xs, heads: [xs[0][0, 0], xs[0][0, 1:]], lambda xs, heads: [np.concatenate([xs[0][None], xs[1]])[None]]
    ),
}
