"""How far chance could explain a number: intervals of one, comparisons of two on the same items, corrections of many.

All are at 95 % and seeded. An interval says how the number would spread over other items of the same kind (pictures,
say), for this one set of weights: seeds of training are another source, see `of_seeds`.

- A share of independent items that are right: Clopper and Pearson 1934, exact.
- Any other mean: bootstrap over items, or over groups of them (Efron 1979), with percentiles moved outwards as
  Student's distribution asks for (the expanded percentile interval of Hesterberg 2015, section 4.5), since plain
  percentiles are too narrow for few items. Of fewer than 10, resampling says little: there Student's interval with the
  jackknife's error over single items (Tukey 1958), which of a plain mean is the usual t interval.
- What is not a mean of items (an effective rank): jackknife over 20 blocks, with Student's quantile (Kott 2001). Two
  runs are compared by the blocks' pseudo-values, whose mean it is.
- Two numbers of the same items: the same bootstrap of their difference, both drawn alike; accuracies are tested by
  McNemar's exact test (McNemar 1947). Families of tests: Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from maeclip_jax.evals.items import Items, ratio

LEVEL = 0.95
DRAWS = 1000  # of an interval
PAIRED_DRAWS = 10_000  # of a comparison, whose p may have to be small to survive the correction for many
BLOCKS = 20  # of the jackknife
LEAST = 10  # units that are resampled; fewer are left out one by one
_FEW = 64  # different rows of sums that are drawn by their counts
_AT_ONCE = 1 << 22  # numbers drawn at a time

Interval = tuple[float, float]


class Estimate(NamedTuple):
    """`interval`, None where one unit says nothing of others; `n` units; `how`: in words."""

    interval: Interval | None
    n: int
    how: str


class Difference(NamedTuple):
    """Second minus first: `value`, its `interval`, `p` of a difference of this size or more without one, `n` units."""

    value: float
    interval: Interval
    p: float
    n: int
    how: str


def said(value: float, unit: str = "", interval: Interval | None = None, n: int | None = None) -> str:
    """`61.8 ± 1.9 % (n=640)`; `2.2 +1.7 −1.0 % (n=500)` where the bounds lie at different distances; `0.0123`."""
    if interval is None or not np.isfinite([value, *interval]).all():
        return f"{value:.4g} {unit}".strip()
    number, spread = plus_minus(value, interval, unit)
    return " ".join(filter(None, (number, spread, unit, f"(n={n})" if n else "")))


def plus_minus(value: float, interval: Interval, unit: str = "") -> tuple[str, str]:
    """(`61.8`, `± 1.9`): two digits of the wider side, for percent one decimal unless that is less than 0.1."""
    low, high = value - interval[0], interval[1] - value
    wide = max(low, high)
    places = 1 - math.floor(math.log10(wide)) if wide > 0 else 4
    places = 1 if unit == "%" and wide >= 0.095 else max(places, 0)
    sides = f"{high:.{places}f}", f"{max(low, 0):.{places}f}"
    near = abs(high - low) <= 0.25 * wide or sides[0] == sides[1]
    spread = f"± {wide:.{places}f}" if near else f"+{sides[0]} −{sides[1]}"
    return f"{value:.{places}f}", spread


def of_items(items: Items, unit: str = "%", seed: int = 0) -> Estimate:
    """The interval of the metric, in `unit`, that is the mean of `items`."""
    if items.proportion and unit == "%":
        n = len(items)
        return Estimate(binomial(np.count_nonzero(items.value), n) if n else None, n, "exact binomial")
    names, total, weight = items.sums()
    how = f"bootstrap over {len(names)} {'items' if items.group is None else 'groups'}"
    if len(names) < 2 or not np.isfinite(total).all():
        return Estimate(None, len(names), how)
    if len(names) < LEAST:
        value = float(ratio(total.sum(0), weight.sum(0)))
        half = _quantile(len(names)) * _error(_left_out(total, weight))
        return Estimate((value - half, value + half), len(names), how.replace("bootstrap", "jackknife"))
    return Estimate(_spread(_draws([(total, weight)], DRAWS, seed)[0], len(names)), len(names), how)


def binomial(right: int, n: int) -> Interval:
    """In percent, of `right` of n independent items."""
    from scipy import stats

    found = stats.binomtest(int(right), n).proportion_ci(LEVEL, method="exact")
    return 100 * float(found.low), 100 * float(found.high)


def paired(first: Items, second: Items, unit: str = "%", seed: int = 0, draws: int = PAIRED_DRAWS) -> Difference:
    """Second minus first, on the same items. ValueError if the items are others, or are grouped otherwise."""
    return paired_means([first], [second], unit, seed, draws)


def paired_means(
    first: Sequence[Items], second: Sequence[Items], unit: str = "%", seed: int = 0, draws: int = PAIRED_DRAWS
) -> Difference:
    """As `paired`, of two means over seeds of training: these seeds on other items, not other seeds."""
    sums = [one.sums() for one in (*first, *second)]
    names = sums[0][0]
    for other, *_ in sums[1:]:
        if not np.array_equal(names, other):
            apart, both = {*names.tolist()} ^ {*other.tolist()}, {*names.tolist()} | {*other.tolist()}
            raise ValueError(f"{len(apart)} of {len(both)} items are not those of both")
    n, size = len(names), len(first)
    parts = [(total, weight) for _, total, weight in sums]
    whole = [float(ratio(total.sum(0), weight.sum(0))) for total, weight in parts]
    value = float(np.mean(whole[size:]) - np.mean(whole[:size]))
    if n < 2:
        return Difference(value, (-math.inf, math.inf), 1.0, n, "one item says nothing")
    exact = len(parts) == 2 and unit == "%" and all(one.proportion for one in (*first, *second))
    if n < LEAST and not exact:
        left = [_left_out(total, weight) for total, weight in parts]
        return _few(value, _error(np.mean(left[size:], axis=0) - np.mean(left[:size], axis=0)), n)
    drawn = _draws(parts, draws, seed)
    change = np.mean(drawn[size:], axis=0) - np.mean(drawn[:size], axis=0)
    if exact:
        right_a, right_b = (total[:, 0] > 0 for total, _ in parts)
        return Difference(value, _spread(change, n), mcnemar(right_a, right_b), n, "McNemar, exact")
    return Difference(value, _spread(change, n), _p(change, n), n, "paired bootstrap")


def _few(value: float, error: float, n: int) -> Difference:
    """By Student's distribution; where all items differ by the same, without doubt."""
    from scipy import stats

    half = _quantile(n) * error
    p = 2 * float(stats.t.sf(abs(value) / error, n - 1)) if error > 0 else float(value == 0)
    return Difference(value, (value - half, value + half), p, n, "paired jackknife")


def mcnemar(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """p of the exact test that as many items went from right to wrong as from wrong to right."""
    from scipy import stats

    lost, won = np.count_nonzero(first_N & ~second_N), np.count_nonzero(second_N & ~first_N)
    return float(stats.binomtest(int(lost), int(lost + won)).pvalue) if lost + won else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Each p adjusted so that the chance of any false one among all is kept (Holm 1979)."""
    order, most, out = np.argsort(p, kind="stable"), 0.0, [0.0] * len(p)
    for place, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - place) * p[i]))
        out[i] = most
    return out


def of_seeds(values: Sequence[float]) -> Interval | None:
    """Of the mean over seeds of training, by Student's distribution; None of a single one."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """p that the means over seeds of two models are equal (Welch 1947); 1 where either has a single one."""
    from scipy import stats

    if min(len(first), len(second)) < 2:
        return 1.0
    if np.ptp(first) == np.ptp(second) == 0:  # no spread to compare with
        return float(np.mean(first) == np.mean(second))
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def blocks(n: int, least: int | None = None, seed: int = 0) -> list[np.ndarray]:
    """The places of n rows in BLOCKS random blocks of nearly the same size, fewer where there are few rows: at most
    half as many as `least`, which is n unless other rows are to be divided into as many blocks."""
    count = max(1, min(BLOCKS, (n if least is None else least) // 2))
    block_N = np.random.default_rng(seed).permutation(np.arange(n) % count)
    return [np.flatnonzero(block_N == b) for b in range(count)]


def jackknife(parts: Sequence[Any], function: Callable[[list], float], n: int) -> tuple[float, Estimate, Items | None]:
    """What `function` makes of the parts of all blocks, its interval, by leaving out one at a time, and the blocks as
    items: Tukey's pseudo-values, shifted so that their mean is the value itself; no items without an interval."""
    count, how = len(parts), f"jackknife over {len(parts)} blocks of {n} items"
    value = float(function(list(parts)))
    if count < 2 or not math.isfinite(value):
        return value, Estimate(None, n, how), None
    left = np.array([function([p for i, p in enumerate(parts) if i != b]) for b in range(count)], np.float64)
    half = _quantile(count) * math.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum())
    names = [f"block {b} of {n} items" for b in range(count)]
    items = Items(value + (count - 1) * (left.mean() - left), names)
    return value, Estimate((value - float(half), value + float(half)), n, how), items


def _left_out(total_UxS: np.ndarray, weight_UxS: np.ndarray) -> np.ndarray:
    """[U]: what the metric is without each unit."""
    return ratio(total_UxS.sum(0) - total_UxS, weight_UxS.sum(0) - weight_UxS)


def _error(left_U: np.ndarray) -> float:
    """The jackknife's standard error."""
    n = len(left_U)
    return float(np.sqrt((n - 1) / n * np.nansum((left_U - np.nanmean(left_U)) ** 2)))


def _quantile(n: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1))


def _draws(several: Sequence[tuple[np.ndarray, np.ndarray]], draws: int, seed: int) -> list[np.ndarray]:
    """Each (total, weight) [U, S] -> what the metric is in every draw of U units, [draws]; all are drawn alike."""
    random = np.random.default_rng(seed)
    columns = np.concatenate([part for pair in several for part in pair], axis=1)
    count, sums = len(columns), np.empty((draws, columns.shape[1]))
    different, times = np.unique(columns, axis=0, return_counts=True) if columns.shape[1] <= 4 else (columns, ())
    if len(times) and len(different) <= _FEW:  # 0 or 1, say: how often each is drawn is multinomial
        sums = random.multinomial(count, times / count, size=draws) @ different
    else:
        size = max(1, _AT_ONCE // count)
        for start in range(0, draws, size):
            rows = min(size, draws - start)
            which = random.integers(0, count, (rows, count), dtype=np.int32)
            which += (np.arange(rows, dtype=np.int32) * count)[:, None]
            times = np.bincount(which.ravel(), minlength=rows * count).reshape(rows, count)
            sums[start : start + rows] = times.astype(np.float64) @ columns
    out, at = [], 0
    for total, _ in several:
        width = total.shape[1]
        out.append(ratio(sums[:, at : at + width], sums[:, at + width : at + 2 * width]))
        at += 2 * width
    return out


def _stretch(n: int) -> float:
    """Student's quantile times sqrt(n / (n - 1)), over the normal one: how much wider than percentiles."""
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * math.sqrt(n / (n - 1)) / stats.norm.ppf((1 + LEVEL) / 2))


def _spread(drawn: np.ndarray, n: int) -> Interval:
    from scipy import stats

    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return -math.inf, math.inf
    tail = float(stats.norm.sf(stats.norm.ppf((1 + LEVEL) / 2) * _stretch(n)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _p(change: np.ndarray, n: int) -> float:
    """Two-sided, the level at which the interval of `_spread` would touch 0."""
    from scipy import stats

    change = change[np.isfinite(change)]
    below, above = (np.count_nonzero(change <= 0) + 1, np.count_nonzero(change >= 0) + 1)
    share = min(below, above, len(change) / 2 + 1) / (len(change) + 2)
    return float(min(1.0, 2 * stats.norm.sf(stats.norm.isf(share) / _stretch(n))))
