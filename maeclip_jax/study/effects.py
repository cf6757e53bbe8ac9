"""Effects with intervals: a linear model of paired differences, with the chance of runs and of items in its errors.

Two runs of one cell and one seed differ in one word (the arm, or the pool). They share initialisation seed, order and
subset of the data and the items they are tested on, so their difference g is modelled:

    g = mean + slope * (log10 N - centre) + diversity * (d - centre) + error

The seeds of different cells are different, so the errors of runs are independent. Items (test pictures) are the same
in all runs, so what they have in common does not average out over runs: its covariance is added, from the model fitted
to every item. Of two crossed sources of chance V = V(runs) + V(items) - V(both) (Cameron, Gelbach and Miller 2011;
the "pigeonhole" of Owen 2007 in closed form). Degrees of freedom are Satterthwaite's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference, in the metric's unit. items_I: that of each item, None where items are not kept."""

    size: int
    diversity: float
    seed: int
    value: float
    items_I: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Effect:
    """An estimate with its interval at 95 % and p of no effect; `interval` and `p` are None without two seeds."""

    value: float
    error: float | None
    df: float
    interval: tuple[float, float] | None
    p: float | None
    n: int

    @classmethod
    def of(cls, value: float, error: float | None, df: float, n: int) -> Effect:
        """By Student's distribution; `error` None, or no degree of freedom: no interval."""
        from scipy import stats

        if error is None or df < 1:
            return cls(float(value), None, float(df), None, None, n)
        half = float(stats.t.ppf((1 + LEVEL) / 2, df) * error)
        p = float(2 * stats.t.sf(abs(value) / error, df)) if error else float(value == 0)
        return cls(float(value), float(error), float(df), (float(value - half), float(value + half)), p, n)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted model: `names` of the P terms, their values, and covariance = residual * shape + items.

    value_P, shape_PxP, items_PxP as said; residual: variance of one difference; df: of it; centres: of the terms.
    """

    names: tuple[str, ...]
    value_P: np.ndarray
    shape_PxP: np.ndarray
    items_PxP: np.ndarray
    residual: float | None
    df: int
    centres: Mapping[str, float]
    n: int

    def at(self, weights_P: Sequence[float]) -> Effect:
        """The effect sum(weights * terms)."""
        w = np.asarray(weights_P, np.float64)
        if self.residual is None:
            return Effect.of(w @ self.value_P, None, self.df, self.n)
        runs, of_items = self.residual * (w @ self.shape_PxP @ w), max(0.0, w @ self.items_PxP @ w)
        total = runs + of_items
        df = self.df * (total / runs) ** 2 if runs else self.df  # the items' part has hundreds of its own
        return Effect.of(w @ self.value_P, math.sqrt(total), min(df, 1e4), self.n)

    def term(self, name: str) -> Effect:
        """One of the terms."""
        return self.at([float(n == name) for n in self.names])

    def gain_at(self, size: float, diversity: float | None = None) -> Effect:
        """The difference that the model expects at a size; `diversity` None: at the centre."""
        values = {"mean": 1.0, "slope": math.log10(size) - self.centres["slope"]}
        if "diversity" in self.names and diversity is not None:
            values["diversity"] = diversity - self.centres["diversity"]
        return self.at([values.get(name, 0.0) for name in self.names])


def fit(found: Sequence[Difference], centres: Mapping[str, float] | None = None) -> Fit | None:
    """The model of the differences; a term that does not vary is left out. None where there are none.

    centres: of the design, so that `mean` is the same question when cells are missing (default: those of `found`).
    """
    if not found:
        return None
    x = {"slope": np.log10([g.size for g in found]), "diversity": np.array([g.diversity for g in found], np.float64)}
    centres = {name: float((centres or {}).get(name, values.mean())) for name, values in x.items()}
    varying = [name for name, values in x.items() if np.ptp(values) > 0]
    design = np.stack([np.ones(len(found)), *(x[name] - centres[name] for name in varying)], 1)
    return _solve(found, ("mean", *varying), design, centres)


def _solve(found: Sequence[Difference], names: tuple[str, ...], design_NxP: np.ndarray, centres: Mapping) -> Fit:
    shape = np.linalg.pinv(design_NxP.T @ design_NxP)
    to_terms_PxN = shape @ design_NxP.T
    value_N = np.array([g.value for g in found], np.float64)
    value_P, (count, terms) = to_terms_PxN @ value_N, design_NxP.shape
    variance, df = None, count - terms
    if len({g.seed for g in found}) > 1 and df > 0:
        variance = float(((value_N - design_NxP @ value_P) ** 2).sum() / df)
    items = np.zeros((terms, terms))
    kept = [g.items_I for g in found]
    if all(k is not None and len(k) == len(kept[0]) for k in kept) and len(kept[0]) > 1 and df > 0:
        items_NxI = np.stack(kept)
        term_PxI = to_terms_PxN @ items_NxI
        rest = items_NxI - design_NxP @ term_PxI
        both = ((rest - rest.mean(1, keepdims=True)) ** 2).sum() / (df * (items_NxI.shape[1] - 1))
        items = _positive(np.atleast_2d(np.cov(term_PxI)) - both * shape) / items_NxI.shape[1]
    return Fit(names, value_P, shape, items, variance, df, centres, count)


def _positive(matrix: np.ndarray) -> np.ndarray:
    """The nearest matrix without negative variances."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def by_size(found: Sequence[Difference]) -> Fit:
    """The means of the sizes as terms, in rising order of size; the error is that of the seeds alone."""
    sizes = sorted({g.size for g in found})
    design = np.array([[float(g.size == size) for size in sizes] for g in found])
    return _solve(found, tuple(f"{size}" for size in sizes), design, {})
