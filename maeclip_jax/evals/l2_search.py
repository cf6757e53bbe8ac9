"""Which l2 suits a linear classifier best: many strengths tried on validation rows, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from maeclip_jax.evals import logistic
from maeclip_jax.evals.accuracy import ranks

COARSE = tuple(10.0**e for e in range(-10, 9))  # strengths of the first round
# Of the rounds after it, in decades from the best: until there are 8 to a decade around it.
FINER = ((-0.75, -0.5, -0.25, 0.25, 0.5, 0.75), (-0.125, 0.125))
MOST = len(COARSE) + sum(map(len, FINER))  # strengths that are tried in all


def some(x_NxD: np.ndarray, label_N: np.ndarray, rows: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `rows` of the rows, drawn at random; None: all.

    The penalty stands beside a sum over rows, not a mean, so that the best l2 hardly depends on how many there are.
    """
    if rows is None or rows >= len(label_N):
        return x_NxD, label_N
    which = np.sort(np.random.default_rng(seed).permutation(len(label_N))[:rows])
    return x_NxD[which], label_N[which]


class Search(NamedTuple):
    """All strengths tried, ascending: their fits, accuracy [L] in percent on validation rows, the place of the best."""

    fit: logistic.Fit
    accuracy: np.ndarray
    best: int

    @property
    def at_edge(self) -> bool:
        """The best strength is the smallest or the largest that was tried."""
        return self.best in (0, len(self.accuracy) - 1)


def search(
    problem: logistic.Problem,
    x_VxD: np.ndarray,
    label_V: np.ndarray,
    l2: Sequence[float] | None = None,
    *,
    tolerance: float = 2e-5,
    iterations: int = 40,
    tick: Callable[[int], None] = lambda n: None,
) -> Search:
    """The strength with the best accuracy on validation rows; of equal ones the largest.

    l2: the strengths to try, all at once. None: COARSE, then those of FINER around the best, 8 to a decade in the end
    (the interval search of Radford et al. 2021, appendix A.3, with more points a round and fewer rounds; theirs begins
    with two decades between neighbours, of which a broad plateau of weak strengths can win by a few rows).
    The fits stop early, those of the first round ten times as early: it is only to rank strengths. `Problem.solve`
    again for the one to use.
    """
    found = None
    for finer in (None, *(FINER if l2 is None else ())):
        if finer is None:
            strengths = np.unique(np.asarray(COARSE if l2 is None else l2, np.float64))
        else:
            strengths = found.fit.l2[found.best] * 10.0 ** np.array(finer)
            strengths = strengths[(strengths > COARSE[0]) & (strengths < COARSE[-1])]
        near = tolerance if found or l2 is not None else 10 * tolerance
        start = found.fit if found else None
        fit = problem.solve(strengths, start=start, tolerance=near, iterations=iterations, tick=tick)
        accuracy = np.array([100 * np.mean(ranks(fit.scores(x_VxD, i), label_V) == 0) for i in range(len(strengths))])
        if found:
            fit = logistic.Fit(*(np.concatenate(parts) for parts in zip(found.fit, fit)))
            accuracy = np.concatenate([found.accuracy, accuracy])
        order = np.argsort(fit.l2)
        fit, accuracy = fit.take(order), accuracy[order]
        found = Search(fit, accuracy, int(np.flatnonzero(accuracy == accuracy.max())[-1]))
    return found
