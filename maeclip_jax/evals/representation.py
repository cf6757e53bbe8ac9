"""What features look like before anybody classifies them; cheap, since they are there already.

- alignment: mean squared distance of the two of a pair, on the unit sphere; 0 to 4 (Wang and Isola 2020, alpha = 2).
- uniformity: log of the mean of exp(-2 d^2) over pairs of different rows on the unit sphere; 0 if all are one point,
  less the more evenly they are spread (Wang and Isola 2020, t = 2).
- effective rank: exp of the entropy of the singular values, as shares of their sum; 1 to the number of channels (Roy
  and Vetterli 2007). The rows are taken as they are, neither centred nor normalised.
- modality gap: distance of the mean picture from the mean text, on the unit sphere; 0 to 2 (Liang et al. 2022).

None of them is a goal in itself, so that neither more nor less counts as better.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from maeclip_jax.evals.items import Items
from maeclip_jax.evals.protocol import Metric, unit_rows
from maeclip_jax.evals.statistics import blocks, jackknife

MOST_RANK = 10_000  # rows whose singular values are taken
MOST_PAIRS = 2_000  # rows whose pairs are


def of_pairs(
    images_NxD: np.ndarray, texts_UxD: np.ndarray, pairs_Mx2: np.ndarray, items: dict[str, object]
) -> Iterator[Metric]:
    """Metrics of two modalities on the unit sphere; `pairs`: which picture has which text; `items`: their names."""
    distance_M = ((images_NxD[pairs_Mx2[:, 0]] - texts_UxD[pairs_Mx2[:, 1]]) ** 2).sum(1, dtype=np.float64)
    yield Metric("alignment", float(distance_M.mean()), "squared distance", items=Items(distance_M, **items))
    yield uniformity("uniformity_image", images_NxD)
    yield uniformity("uniformity_text", texts_UxD)
    yield modality_gap(images_NxD, texts_UxD)
    yield effective_rank(images_NxD)


def uniformity(name: str, x_NxD: np.ndarray) -> Metric:
    """Of at most MOST_PAIRS rows, drawn evenly, which are scaled to length 1."""
    x_NxD = unit_rows(some(x_NxD, MOST_PAIRS)).astype(np.float64)
    near_NxN = np.exp(-2 * np.maximum(2 - 2 * x_NxD @ x_NxD.T, 0))
    np.fill_diagonal(near_NxN, 0)

    def of(rows: list[np.ndarray]) -> np.ndarray:
        which = np.concatenate(rows)
        pairs = len(which) * (len(which) - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(near_NxN[np.ix_(which, which)].sum() / pairs)

    return _metric(name, "log of a mean kernel", jackknife(blocks(len(x_NxD)), of, len(x_NxD)))


def effective_rank(x_NxD: np.ndarray) -> Metric:
    """Of at most MOST_RANK rows, drawn evenly."""
    x_NxD = some(x_NxD, MOST_RANK).astype(np.float64)
    squares = [x_NxD[rows].T @ x_NxD[rows] for rows in blocks(len(x_NxD))]  # D x D of each block
    return _metric("effective_rank", "dimensions", jackknife(squares, lambda parts: _rank(sum(parts)), len(x_NxD)))


def _rank(square_DxD: np.ndarray) -> float:
    if not np.isfinite(square_DxD).all():
        return float("nan")
    value_D = np.sqrt(np.maximum(np.linalg.eigvalsh(square_DxD), 0))
    share_D = value_D[value_D > 0] / max(value_D.sum(), 1e-300)
    return float(np.exp(-(share_D * np.log(share_D)).sum()))


def modality_gap(images_NxD: np.ndarray, texts_UxD: np.ndarray) -> Metric:
    """Of rows of length 1."""
    count = min(len(images_NxD), len(texts_UxD))
    parts = list(zip(*([x_NxD[rows] for rows in blocks(len(x_NxD), count)] for x_NxD in (images_NxD, texts_UxD))))

    def of(some_parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
        means = [np.concatenate(x).mean(0, dtype=np.float64) for x in zip(*some_parts)]
        return float(np.linalg.norm(means[0] - means[1]))

    return _metric("modality_gap", "distance", jackknife(parts, of, count))


def some(x_NxD: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them, evenly spaced."""
    return x_NxD if len(x_NxD) <= most else x_NxD[np.linspace(0, len(x_NxD) - 1, most).astype(int)]


def _metric(name: str, unit: str, found) -> Metric:
    value, estimate, items = found
    return Metric(name, value, unit, interval=estimate.interval, n=estimate.n, how=estimate.how, items=items)
