"""Recall at k: where the right candidate stands among all that are compared with a query, ties at their expectation.

Candidates with equal scores have no order of their own. Their recall is the mean over all orders of them, in closed
form: of `tied` wrong and `right` right candidates with the score of the best right one, and with k - above places left
for them, the chance that a right one is among the first is 1 - C(tied, k - above) / C(tied + right, k - above). So a
result depends neither on how a sort breaks ties nor on the processor, and a collapsed model scores the chance level.

A score that is not a number stands before every other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK_BYTES = 64 * 2**20  # of the similarity matrix, as much as is held at a time


class Places(NamedTuple):
    """Of each query [Q]: wrong candidates `above` its best right one, wrong ones `tied` with it, how many `right` ones
    have that score (itself among them), and the score."""

    above: np.ndarray
    tied: np.ndarray
    right: np.ndarray
    score: np.ndarray

    def hit(self, k: int) -> np.ndarray:
        """float [Q] in 0..1: how likely a right candidate is among the first k."""
        return drawn(self.right, self.tied + self.right, k - self.above)

    @property
    def rank(self) -> np.ndarray:
        """float [Q]: how many wrong candidates stand before the first right one, as expected."""
        return self.above + self.tied / (self.right + 1)

    def take(self, which: np.ndarray) -> Places:
        """Some of the queries."""
        return Places(*(part[which] for part in self))


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // (4 * max(columns, 1)))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def image_to_text(images_NxD, texts_UxD, pairs_Mx2, merge: bool) -> Places:
    """Where the best own text of each picture stands. `pairs`: which picture has which text.

    Without `merge`, a text is as many candidates as it has pairs. Blockwise: never more than BLOCK_BYTES of
    similarities at a time. Meaningless for pictures without a text.
    """
    copies_U = np.ones(len(texts_UxD)) if merge else np.bincount(pairs_Mx2[:, 1], minlength=len(texts_UxD))
    found = _empty(len(images_NxD), -np.inf)
    for rows in _blocks(len(images_NxD), len(texts_UxD)):
        score_BxU = images_NxD[rows] @ texts_UxD.T
        mine = pairs_Mx2[(pairs_Mx2[:, 0] >= rows.start) & (pairs_Mx2[:, 0] < rows.stop)]
        i, t = mine[:, 0] - rows.start, mine[:, 1]
        best_B = found.score[rows]
        with np.errstate(invalid="ignore"):
            np.maximum.at(best_B, i, score_BxU[i, t])
        level_BxU = score_BxU == best_B[:, None]
        above_BxU = ~(score_BxU < best_B[:, None]) & ~level_BxU  # also what is not a number
        for part, there_BxU in ((found.above, above_BxU), (found.tied, level_BxU)):
            own_B = np.bincount(i, weights=there_BxU[i, t], minlength=len(score_BxU))
            part[rows] = np.rint(there_BxU.astype(np.float32) @ copies_U.astype(np.float32) - own_B)
        found.right[rows] = np.maximum(np.bincount(i, weights=level_BxU[i, t], minlength=len(score_BxU)), 1)
    return found


def text_to_image(images_NxD, texts_UxD, pairs_Mx2, merge: bool) -> Places:
    """Where the right picture of each (picture, text) pair stands.

    With `merge`, the right one is the best of all pictures that have the text.
    """
    found = _empty(len(pairs_Mx2), 0)
    of_text_M = np.argsort(pairs_Mx2[:, 1], kind="stable")
    edges = np.searchsorted(pairs_Mx2[of_text_M, 1], np.arange(len(texts_UxD) + 1))
    for rows in _blocks(len(texts_UxD), len(images_NxD)):
        score_BxN = texts_UxD[rows] @ images_NxD.T
        for t in range(rows.start, rows.stop):
            score_N, members = score_BxN[t - rows.start], of_text_M[edges[t] : edges[t + 1]]
            own = score_N[pairs_Mx2[members, 0]]
            for m, right in [(members, own)] if merge else zip(members, own[:, None]):
                best = right.max()
                level, worse = (np.count_nonzero(one(score_N, best)) for one in (np.equal, np.less))
                own_level, own_worse = (np.count_nonzero(one(right, best)) for one in (np.equal, np.less))
                found.above[m] = len(score_N) - level - worse - (len(right) - own_level - own_worse)
                found.tied[m], found.right[m], found.score[m] = level - own_level, max(own_level, 1), best
    return found


def _empty(queries: int, score: float) -> Places:
    above, tied, right = (np.zeros(queries, np.int64) for _ in range(3))
    return Places(above, tied, right, np.full(queries, score, np.float32))


def chances(pairs_Mx2, images: int, texts: int, merge: bool):
    """Two functions k -> percent: image to text, text to image, if the first k were drawn at random."""
    own_N = np.bincount(pairs_Mx2[:, 0])
    own_N = own_N[own_N > 0]
    right_M = np.bincount(pairs_Mx2[:, 1])[pairs_Mx2[:, 1]] if merge else np.ones(len(pairs_Mx2), np.int64)
    candidates = texts if merge else len(pairs_Mx2)
    return (
        lambda k: 100 * float(drawn(own_N, candidates, k).mean()),
        lambda k: 100 * float(drawn(right_M, images, k).mean()),
    )


def drawn(right_Q: np.ndarray, candidates: np.ndarray | int, draws: np.ndarray | int) -> np.ndarray:
    """1 - C(candidates - right, draws) / C(candidates, draws): draws without putting back hold at least one right one.

    More draws than there are candidates are as many as there are; less than none are none.
    """
    candidates_Q, draws_Q = np.broadcast_arrays(candidates, draws, right_Q)[:2]
    draws_Q = np.minimum(draws_Q, candidates_Q)
    miss_Q = np.ones(len(right_Q))
    for j in range(max(0, int(draws_Q.max(initial=0)))):
        left_Q = np.maximum(candidates_Q - right_Q - j, 0) / np.maximum(candidates_Q - j, 1)
        miss_Q *= np.where(j < draws_Q, left_Q, 1)
    return 1 - miss_Q
