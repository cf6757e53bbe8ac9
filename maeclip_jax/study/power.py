"""What a design can detect: the power of its tests, from the spread of a difference between two paired runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

ALPHA, POWER = 0.05, 0.8


def shape(sizes: Sequence[int], diversities: Sequence[float], seeds: int) -> tuple[dict[str, float], int]:
    """({term: standard error over the spread of a difference}, degrees of freedom) of the model of `effects.fit`."""
    cells = np.array(list(itertools.product(np.log10(sizes), diversities, range(seeds))), np.float64)
    columns = {"mean": np.ones(len(cells))}
    for place, name in enumerate(("slope", "diversity")):
        if np.ptp(cells[:, place]) > 0:
            columns[name] = cells[:, place] - cells[:, place].mean()
    design = np.stack(list(columns.values()), 1)
    error = np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    return dict(zip(columns, error.tolist())), len(cells) - design.shape[1]


def power(effect: float, error: float, df: int, alpha: float = ALPHA) -> float:
    """The chance that a two-sided t test finds an effect whose estimate has this standard error."""
    from scipy import stats

    if df < 1:
        return 0.0
    limit, shift = stats.t.ppf(1 - alpha / 2, df), effect / error
    # The noncentral t, as the mean over the chi distribution of the estimated error: scipy's own is NaN at places.
    spread = np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df)
    return float(np.mean(stats.norm.sf(limit * spread - shift) + stats.norm.cdf(-limit * spread - shift)))


def detectable(error: float, df: int, alpha: float = ALPHA, wanted: float = POWER) -> float:
    """The smallest effect that is found with the chance `wanted`; infinite without a degree of freedom."""
    from scipy import optimize

    if df < 1:
        return math.inf
    high = error
    while power(high, error, df, alpha) < wanted:
        high *= 1.5
    return float(optimize.brentq(lambda effect: power(effect, error, df, alpha) - wanted, 0.0, high))


def table(sizes: Sequence[int], diversities: Sequence[float], seeds: int, sd: float, tests: int) -> dict[str, float]:
    """{term: what it has to be for 80 % power}, in the outcome's points; `slope` is per decade of N.

    sd: of the difference of two paired runs. tests: primary contrasts, the strictest of Holm's levels being alpha over
    their number. With one seed nothing can be detected.
    """
    errors, df = shape(sizes, diversities, seeds)
    df = df if seeds > 1 else 0
    return {name: detectable(sd * error, df, ALPHA / max(1, tests)) for name, error in errors.items()}
