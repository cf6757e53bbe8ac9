"""Effects with intervals: a linear model of paired differences, with the chance of runs and of items in its errors.

Two runs of one cell and one seed differ in one word (the arm, or the pool). They share initialisation seed, order and
subset of the data and the items they are tested on, so their difference g is modelled:

    g = mean + slope * (log10 N - centre) + diversity * (d - centre) + error

Initialisation and order of different cells have different seeds, so the errors of runs are taken to be independent. The
subsets of one seed are nested, so its cells have pairs in common; `seeds_differ` tests whether that shows. Items (test
pictures) are the same in many runs, so what they have in common does not average out over runs: its covariance is added
for each set of items, from the model fitted to every item. Of two crossed sources of chance V = V(runs) + V(items) -
V(both) (Cameron, Gelbach and Miller 2011; the "pigeonhole" of Owen 2007 in closed form). Degrees of freedom are
Satterthwaite's.

The error is what the model leaves over, so that a gain which bends over log10 N counts as chance; `within_cells` takes
the spread of the seeds within cells instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference, in the metric's unit.

    items_I: that of each item, None where items are not kept; items: which these are.
    """

    size: int
    diversity: float
    seed: int
    value: float
    items_I: np.ndarray | None = None
    items: str = ""


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

    value_P, shape_PxP, items_PxP as said; known_PxP: projects on what the data can tell apart; residual: variance of
    one difference; df: of it; centres: of the terms.
    """

    names: tuple[str, ...]
    value_P: np.ndarray
    shape_PxP: np.ndarray
    items_PxP: np.ndarray
    known_PxP: np.ndarray
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

    def term(self, name: str) -> Effect | None:
        """One of the terms; None if it is not in the model, or the data cannot tell it from the others."""
        weights_P = np.array([float(n == name) for n in self.names])
        there = weights_P.any() and np.allclose(weights_P @ self.known_PxP, weights_P, atol=1e-6)
        return self.at(weights_P) if there else None

    def gain_at(self, size: float, diversity: float | None = None) -> Effect:
        """The difference that the model expects at a size; `diversity` None: at the centre."""
        values = {"mean": 1.0, "slope": math.log10(size) - self.centres["slope"]}
        if "diversity" in self.names and diversity is not None:
            values["diversity"] = diversity - self.centres["diversity"]
        return self.at([values.get(name, 0.0) for name in self.names])


def fit(found: Sequence[Difference], centres: Mapping[str, float] | None = None) -> Fit | None:
    """The model of the differences; a term that is at its centre in all is left out. None where there are none.

    centres: of the design, so that `mean` is the same question when cells are missing (default: those of `found`).
    """
    if not found:
        return None
    x = {"slope": np.log10([g.size for g in found]), "diversity": np.array([g.diversity for g in found], np.float64)}
    centres = {name: float((centres or {}).get(name, values.mean())) for name, values in x.items()}
    varying = [name for name, values in x.items() if np.abs(values - centres[name]).max() > 1e-9]
    design = np.stack([np.ones(len(found)), *(x[name] - centres[name] for name in varying)], 1)
    return _solve(found, ("mean", *varying), design, centres)


def _solve(found: Sequence[Difference], names: tuple[str, ...], design_NxP: np.ndarray, centres: Mapping) -> Fit:
    shape, rank = np.linalg.pinv(design_NxP.T @ design_NxP), int(np.linalg.matrix_rank(design_NxP))
    to_terms_PxN = shape @ design_NxP.T
    value_N = np.array([g.value for g in found], np.float64)
    value_P, df = to_terms_PxN @ value_N, len(found) - rank
    variance = None
    if len({g.seed for g in found}) > 1 and df > 0:
        variance = float(((value_N - design_NxP @ value_P) ** 2).sum() / df)
    items = _of_items(found, design_NxP, to_terms_PxN) if df > 0 else np.zeros_like(shape)
    return Fit(names, value_P, shape, items, to_terms_PxN @ design_NxP, variance, df, centres, len(found))


def _of_items(found: Sequence[Difference], design_NxP: np.ndarray, to_terms_PxN: np.ndarray) -> np.ndarray:
    """[P, P]: what the choice of the items adds to the covariance of the terms, a sum over the sets of items."""
    total = np.zeros((design_NxP.shape[1],) * 2)
    if any(g.items_I is None or len(g.items_I) < 2 for g in found):
        return total
    for which in sorted({(g.items, len(g.items_I)) for g in found}):
        mine = [n for n, g in enumerate(found) if (g.items, len(g.items_I)) == which]
        items_NxI, part_NxP, to_PxN = (
            np.stack([found[n].items_I for n in mine]),
            design_NxP[mine],
            to_terms_PxN[:, mine],
        )
        rest = items_NxI - part_NxP @ np.linalg.pinv(part_NxP) @ items_NxI
        df, both = len(mine) - int(np.linalg.matrix_rank(part_NxP)), 0.0
        if df > 0:
            both = ((rest - rest.mean(1, keepdims=True)) ** 2).sum() / (df * (which[1] - 1))
        total += _positive(np.atleast_2d(np.cov(to_PxN @ items_NxI)) - both * to_PxN @ to_PxN.T) / which[1]
    return total


def within_cells(made: Fit, found: Sequence[Difference]) -> tuple[Fit | None, float | None]:
    """The same model with the spread of the seeds within cells as its residual, and p that the cells' means follow it.

    (None, None) where no cell has two seeds; p is None where there are no more cells than terms.
    """
    cell_NxC = _indicators([(g.size, g.diversity) for g in found])
    lost, df = _left_over(cell_NxC, found)
    if df < 1 or made.residual is None:
        return None, None
    pure = dataclasses.replace(made, residual=lost / df, df=df)
    return pure, lack_of_fit(made, pure) if made.df > df and lost > 0 else None


def lack_of_fit(model: Fit, pieces: Fit) -> float:
    """p that the means of the cells, which `pieces` has each for itself, lie on the model; by an F test."""
    from scipy import stats

    more = model.df - pieces.df
    lost = model.residual * model.df - pieces.residual * pieces.df
    return float(stats.f.sf(lost / more / pieces.residual, more, pieces.df)) if pieces.residual > 0 else 1.0


def seeds_differ(found: Sequence[Difference]) -> float | None:
    """p that differences of one seed, whose subsets are nested, have nothing in common beside their cells' means.

    None where that cannot be told from the rest.
    """
    from scipy import stats

    cell_NxC = _indicators([(g.size, g.diversity) for g in found])
    without, df = _left_over(cell_NxC, found)
    left, least = _left_over(np.hstack([cell_NxC, _indicators([g.seed for g in found])]), found)
    if least < 1 or df == least or left <= 0:
        return None
    return float(stats.f.sf((without - left) / (df - least) / (left / least), df - least, least))


def _indicators(kinds: Sequence) -> np.ndarray:
    """float [N, K]: 1 where the N-th is of the k-th kind."""
    names = sorted(set(kinds))
    return np.array([[float(kind == name) for name in names] for kind in kinds]).reshape(len(kinds), len(names))


def _left_over(design_NxP: np.ndarray, found: Sequence[Difference]) -> tuple[float, int]:
    """The sum of squares that a design leaves over, and its degrees of freedom; 0 of nothing found."""
    if not found:
        return 0.0, 0
    value_N = np.array([g.value for g in found], np.float64)
    rest = value_N - design_NxP @ np.linalg.pinv(design_NxP) @ value_N
    return float((rest**2).sum()), len(found) - int(np.linalg.matrix_rank(design_NxP))


def _positive(matrix: np.ndarray) -> np.ndarray:
    """The nearest matrix without negative variances."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def by_size(found: Sequence[Difference]) -> Fit:
    """The means of the sizes as terms, in rising order of size; the error is that of the seeds alone."""
    sizes = sorted({g.size for g in found})
    design = np.array([[float(g.size == size) for size in sizes] for g in found])
    return _solve(found, tuple(f"{size}" for size in sizes), design, {})
