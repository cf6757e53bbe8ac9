"""The size at which a gain crosses zero, with all sizes that the data do not rule out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from maeclip_jax.study.effects import LEVEL, Difference, Fit, by_size, fit, lack_of_fit

BENT = 0.2  # p of the lack of fit below which the gain is taken from size to size, and not as one line


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The size at which a gain is 0. `size` None: the estimate lies outside the sizes tried, or there is no slope.

    `interval`: the sizes that are not ruled out at 95 %; an end is None where it lies outside the sizes tried. The
    whole is None where nothing, or no one interval, is ruled out. `said`: which of these it is; `how` it was found.
    """

    size: float | None
    interval: tuple[float | None, float | None] | None
    said: str
    how: str = ""


def crossing(found: Sequence[Difference]) -> Crossing:
    """Where the differences, all of one diversity, cross zero over log10 N.

    By a line (Fieller 1954), unless the means of the sizes lie off it (F test of the lack of fit, p < 0.2): then by
    straight pieces between neighbouring sizes, whose set is all sizes at which a gain of 0 is not rejected.
    """
    made, sizes = fit(found), sorted({g.size for g in found})
    if made is None or len(sizes) < 2:
        return Crossing(None, None, "needs two sizes")
    if len({g.diversity for g in found}) > 1:
        raise ValueError("a crossing is of one diversity")
    if made.residual is None:
        return Crossing(None, None, "needs two seeds")
    pieces = by_size(found)
    if len(sizes) > 2 and pieces.residual is not None and lack_of_fit(made, pieces) < BENT:
        return _by_pieces(pieces, sizes)
    return _by_line(made, sizes)


def _by_line(made: Fit, sizes: Sequence[int]) -> Crossing:
    from scipy import stats

    low, high = sizes[0], sizes[-1]
    (a, b), covariance = made.value_P, made.residual * made.shape_PxP + made.items_PxP
    t = stats.t.ppf((1 + LEVEL) / 2, min(made.term("slope").df, made.term("mean").df))
    # {x: (a + b x)^2 <= t^2 (Vaa + 2 x Vab + x^2 Vbb)}
    p, q, r = (b * b - t * t * covariance[1, 1], a * b - t * t * covariance[0, 1], a * a - t * t * covariance[0, 0])
    at = 10 ** (made.centres["slope"] - a / b) if b and abs(a / b) < 30 else math.inf
    if p <= 0:
        said = "not determined: the gain may rise or fall with the size"
        return Crossing(at if low <= at <= high else None, None, said, "line")
    half = math.sqrt(max(q * q - p * r, 0))
    ends = (10 ** min(max(made.centres["slope"] + (-q + sign * half) / p, -30.0), 30.0) for sign in (-1, 1))
    return _within(at, *ends, sizes, [made.gain_at(size).value for size in (low, high)], "line")


def _by_pieces(pieces: Fit, sizes: Sequence[int]) -> Crossing:
    x, gain = np.log10(sizes), pieces.value_P
    roots = [a - g * (b - a) / (h - g) for a, b, g, h in zip(x, x[1:], gain, gain[1:]) if g * h < 0]
    roots += [a for a, g in zip(x, gain) if g == 0]
    grid = np.unique([*np.linspace(x[0], x[-1], 400), *x, *roots])
    weights_GxP = np.stack([np.interp(grid, x, row) for row in np.eye(len(x))], axis=1)
    intervals = [pieces.at(weights_P).interval for weights_P in weights_GxP]
    kept = np.isin(grid, roots) | [low <= 0 <= high for low, high in intervals]
    if not kept.any():
        return _within(math.inf, math.inf, math.inf, sizes, gain[[0, -1]], "pieces")
    if len(roots) > 1:
        return Crossing(None, None, "not determined: the gain crosses zero more than once", "pieces")
    first, last = np.flatnonzero(kept)[[0, -1]]
    if not kept[first:last].all():
        return Crossing(None, None, "not determined: between sizes that fit there are some that do not", "pieces")
    low, high = (0.0 if kept[0] else 10 ** grid[first]), (math.inf if kept[-1] else 10 ** grid[last])
    return _within(10 ** roots[0] if roots else math.inf, low, high, sizes, gain[[0, -1]], "pieces")


def _within(at: float, low: float, high: float, sizes: Sequence[int], ends: Sequence[float], how: str) -> Crossing:
    """What is said of an estimate and its interval, of which only the part within the sizes tried is given."""
    if low > sizes[-1] or high < sizes[0]:
        side = "above" if ends[0] > 0 and ends[1] > 0 else "below" if ends[0] < 0 and ends[1] < 0 else "not"
        return Crossing(None, None, f"outside the range: the gain is {side} 0 at every size tried", how)
    kept = (low if low >= sizes[0] else None, high if high <= sizes[-1] else None)
    if kept == (None, None):
        return Crossing(at if sizes[0] <= at <= sizes[-1] else None, None, "not determined: any size fits", how)
    if not sizes[0] <= at <= sizes[-1]:
        return Crossing(None, kept, "outside the range, though the interval reaches into it", how)
    return Crossing(at, kept, "inside the range", how)
