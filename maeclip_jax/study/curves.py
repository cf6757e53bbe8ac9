"""Power laws of an error over the number of pairs, e = a + b N^-c, with intervals by the parametric bootstrap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

DRAWS = 400
EXPONENTS = (0.02, 2.0)  # between which c is looked for


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """e = a + b N^-c with a, b >= 0 and c within EXPONENTS.

    intervals: {name: (low, high)}, None without two seeds a size.
    An exponent at an end of EXPONENTS is where the search stopped, not where the errors are met best.
    """

    a: float
    b: float
    c: float
    intervals: dict[str, tuple[float, float]] | None

    @property
    def determined(self) -> bool:
        """Whether the errors say how steep the law is; where they do not, a and b mean nothing either."""
        return bool(EXPONENTS[0] < self.c < EXPONENTS[1])

    def __call__(self, size: np.ndarray) -> np.ndarray:
        return self.a + self.b * np.asarray(size, np.float64) ** -self.c


def power_law(sizes_N: Sequence[float], errors_N: Sequence[float], seed: int = 0) -> PowerLaw | None:
    """The law nearest to the errors in the mean square; None of fewer than three sizes, which three numbers fit anyway.

    The bootstrap draws errors around the fitted ones with the spread of the seeds within a size.
    """
    sizes, errors = np.asarray(sizes_N, np.float64), np.asarray(errors_N, np.float64)
    kinds, of = np.unique(sizes, return_inverse=True)
    if len(kinds) < 3:
        return None
    best = _nearest(sizes, errors[None])[0]
    spare = len(sizes) - len(kinds)
    if spare < 1:
        return PowerLaw(*best, None)
    means = np.bincount(of, errors) / np.bincount(of)
    spread = np.sqrt(((errors - means[of]) ** 2).sum() / spare)
    fitted = PowerLaw(*best, None)(sizes)
    draws = fitted + spread * np.random.default_rng(seed).standard_normal((DRAWS, len(sizes)))
    drawn = _nearest(sizes, draws)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return PowerLaw(*best, {name: (float(low[i]), float(high[i])) for i, name in enumerate("abc")})


def _nearest(sizes_N: np.ndarray, errors_KxN: np.ndarray) -> np.ndarray:
    """float [K, 3]: a, b, c of each row of errors. For each c of a fine grid a and b follow by least squares."""
    grid, best = np.geomspace(*EXPONENTS, 200), np.full(len(errors_KxN), np.inf)
    found = np.zeros((len(errors_KxN), 3))
    mean_K = errors_KxN.mean(1)
    for c in grid:
        x = sizes_N**-c
        centred = x - x.mean()
        b = np.maximum(errors_KxN @ centred / (centred @ centred), 0)
        a = mean_K - b * x.mean()
        low = a < 0  # then a is 0 and b is of the line through the origin
        b = np.where(low, np.maximum(errors_KxN @ x / (x @ x), 0), b)
        a = np.maximum(a, 0)
        rest = ((errors_KxN - a[:, None] - b[:, None] * x) ** 2).sum(1)
        better = rest < best - 1e-12
        found[better] = np.stack([a, b, np.full_like(a, c)], 1)[better]
        best = np.minimum(best, rest)
    return found
