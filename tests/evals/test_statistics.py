"""Intervals hold the truth about as often as they promise; comparisons find what is there and little else.

Simulations are small and seeded: their own error is said where a bound is chosen.
"""

import numpy as np
import pytest
from scipy import stats

from maeclip_jax.evals import representation, statistics
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.statistics import holm, mcnemar, of_items, of_seeds, paired, plus_minus, said, welch

TIMES = 300  # repetitions; the standard error of a coverage of 95 % is 1.3 points


def shares(random, n=120):
    return Items(100 * (random.random(n) < 0.62)), 62


def skewed(random, n=80):
    return Items(random.gamma(2, 5, n)), 10


def few(random, n=8):
    return Items(random.normal(3, 1, n)), 3


def captions(random, n=60):
    """Five of each picture, which resemble each other: a bootstrap of single captions would cover 70 %."""
    picture = np.repeat(np.arange(n), 5)
    hit = random.random(5 * n) < np.repeat(random.beta(0.5, 0.5, n), 5)
    return Items(100 * hit, range(5 * n), group=picture), 50


def areas(random, n=60):
    """Two classes with areas of their own in each picture: the mean of two ratios of sums."""
    area = random.gamma(2, 50, (n, 2))
    share = random.beta([6, 2], [2, 2], (n, 2))
    place = np.repeat(np.arange(n), 2)
    return Items(100 * share.ravel(), place, stratum=["x", "y"] * n, weight=area.ravel()), 100 * (6 / 8 + 2 / 4) / 2


@pytest.mark.parametrize("draw", [shares, skewed, few, captions, areas])
def test_intervals_cover_the_truth_as_often_as_they_say(draw):
    random, inside = np.random.default_rng(1), 0
    for repetition in range(TIMES):
        items, truth = draw(random)
        low, high = of_items(items, seed=repetition).interval
        inside += low <= truth <= high
    assert 0.90 <= inside / TIMES <= 0.99


def models(random, n, gain, noise=0.3):
    """Two models' hits on the same pictures, which are easy or hard for both; the second has `gain` points more."""
    easy = random.beta(1.2, 1, n)
    swap = random.random(n) < noise
    first = random.random(n) < easy
    second = np.where(swap, random.random(n) < np.clip(easy + gain / noise, 0, 1), first)
    return first, second


@pytest.mark.parametrize("kind", ["accuracy", "continuous"])
def test_no_difference_is_rarely_found_and_a_planted_one_mostly(kind):
    random, found, n = np.random.default_rng(2), {0.0: 0, 0.12: 0}, 300
    for gain in found:
        for repetition in range(TIMES):
            first, second = models(random, n, gain)
            if kind == "continuous":
                first, second = (x + 0.1 * random.normal(size=n) for x in (first, second))
            one, other = Items(100 * first), Items(100 * second)
            found[gain] += paired(one, other, seed=repetition, draws=500).p < 0.05
    assert found[0.0] / TIMES <= 0.09  # 5 % and three standard errors; McNemar's exact test has less
    assert found[0.12] / TIMES >= 0.9


def test_items_in_common_are_worth_more_than_two_intervals():
    """Paired, a difference is seen that lies within either interval."""
    random = np.random.default_rng(3)
    first, second = (Items(100 * x) for x in models(random, 1000, 0.04, noise=0.06))
    difference = paired(first, second)
    low, high = of_items(first).interval
    assert low < second.mean() < high and difference.p < 0.01 and difference.interval[0] > 0
    assert difference.value == pytest.approx(second.mean() - first.mean()) and difference.how == "McNemar, exact"


def test_p_and_interval_of_the_bootstrap_agree():
    random = np.random.default_rng(4)
    for repetition in range(60):
        a = random.normal(size=40)
        difference = paired(Items(a), Items(a + random.normal(0.3, 1, 40)), unit="", seed=repetition, draws=1000)
        low, high = difference.interval
        assert (difference.p < 0.05) == (low > 0 or high < 0) or min(abs(low), abs(high)) < 0.03


def test_a_paired_bootstrap_is_close_to_the_t_test_where_that_is_right():
    random = np.random.default_rng(5)
    a = random.normal(size=200)
    b = a + random.normal(0.15, 1, 200)
    difference, test = paired(Items(a), Items(b), unit=""), stats.ttest_rel(b, a)
    bounds = test.confidence_interval()
    np.testing.assert_allclose(difference.interval, (bounds.low, bounds.high), atol=0.03)
    assert difference.p == pytest.approx(test.pvalue, abs=0.01)


def test_of_few_items_the_t_test_is_taken():
    """Four batches, say: were they resampled, any four differences of one sign would count."""
    random, found = np.random.default_rng(9), 0
    a, b = random.normal(size=4), random.normal(size=4)
    difference, test = paired(Items(a), Items(b), unit=""), stats.ttest_rel(b, a)
    bounds = test.confidence_interval()
    assert difference.interval == pytest.approx((bounds.low, bounds.high)) and difference.p == pytest.approx(
        test.pvalue
    )
    bounds = stats.ttest_1samp(a, 0).confidence_interval()
    assert of_items(Items(a), "").interval == pytest.approx((bounds.low, bounds.high))
    for _ in range(TIMES):
        found += paired(Items(random.normal(size=4)), Items(random.normal(size=4)), unit="").p < 0.05
    assert found / TIMES <= 0.09
    assert paired(Items([1, 2]), Items([1, 2]), unit="").p == 1 and paired(Items([1, 2]), Items([2, 3]), unit="").p == 0


def test_other_items_are_not_compared():
    with pytest.raises(ValueError, match="2 of 3 items are not those of both"):
        paired(Items([1, 2], ["a", "b"]), Items([1, 2], ["a", "c"]))


def test_the_order_of_items_does_not_matter():
    random = np.random.default_rng(6)
    a, b, order = random.normal(size=50), random.normal(size=50), random.permutation(50)
    one = paired(Items(a, range(50)), Items(b, range(50)), unit="")
    assert one == paired(Items(a, range(50)), Items(b[order], order), unit="")


def test_exact_ones_are_those_of_the_textbook():
    assert statistics.binomial(0, 10) == pytest.approx((0, 100 * (1 - 0.025 ** (1 / 10))))
    low, high = statistics.binomial(381, 640)
    want = 100 * stats.beta.ppf([0.025, 0.975], [381, 382], [260, 259])
    assert (low, high) == pytest.approx(tuple(want))
    # 9 lost and 1 won: 2 * (1 + 10) / 2^10.
    first = np.array([True] * 9 + [False] * 1 + [True] * 20)
    assert mcnemar(first, np.array([False] * 9 + [True] * 21)) == pytest.approx(22 / 1024)
    assert mcnemar(first, first) == 1


def test_a_percentage_is_a_proportion_and_an_error_of_0_is_not():
    assert of_items(Items([0.0] * 20), "%").interval == pytest.approx((0, 16.84), abs=0.01)
    assert of_items(Items([0.0] * 20), "MSE").interval == (0, 0)


def test_holm_keeps_the_family():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []
    random = np.random.default_rng(7)
    any_found = [min(holm(random.random(10))) < 0.05 for _ in range(1000)]
    assert 0.03 < np.mean(any_found) < 0.07


def test_seeds_have_a_t_interval():
    values = [45.0, 47.0, 46.0]
    want = stats.ttest_1samp(values, 0).confidence_interval()
    assert of_seeds(values) == pytest.approx((want.low, want.high))
    assert of_seeds([45.0]) is None and welch([45.0], values) == 1
    assert welch(values, [50.0, 52.0, 51.5]) == pytest.approx(
        stats.ttest_ind(values, [50, 52, 51.5], equal_var=False).pvalue
    )
    assert welch([1, 1], [1, 1]) == 1 and welch([1, 1], [2, 2]) == 0


def test_the_jackknife_of_a_mean_is_its_t_interval():
    x = np.random.default_rng(8).normal(size=400)
    rows = statistics.blocks(400)
    assert sorted(np.concatenate(rows)) == list(range(400)) and {len(r) for r in rows} == {20}
    value, found, items = statistics.jackknife([x[r] for r in rows], lambda parts: np.concatenate(parts).mean(), 400)
    means = np.array([x[r].mean() for r in rows])
    want = stats.ttest_1samp(means, 0).confidence_interval()  # of 20 means of 20
    assert found.interval == pytest.approx((want.low, want.high)) and value == pytest.approx(x.mean())
    assert len(statistics.blocks(7)) == 3 and len(statistics.blocks(1)) == 1
    assert items.value == pytest.approx(means) and items.mean() == pytest.approx(value)  # Tukey's pseudo-values
    assert statistics.jackknife([x], lambda parts: parts[0].mean(), 1)[1:] == (
        statistics.Estimate(None, 1, "jackknife over 1 blocks of 1 items"),
        None,
    )


def test_numbers_of_all_features_at_once_are_compared_by_their_blocks():
    """Two runs on the same 400 rows: 100 pairs without a difference, and some with features of fewer dimensions."""
    random, false = np.random.default_rng(9), 0
    for _ in range(100):
        shared = random.normal(size=(400, 6))
        one, other = (shared + 0.5 * random.normal(size=shared.shape) for _ in range(2))
        less = other * np.array([1, 1, 1, 1, 0.5, 0.5])
        first, second, third = (representation.effective_rank(x) for x in (one, other, less))
        false += statistics.paired(first.items, second.items, first.unit, draws=1000).p < 0.05
        apart = statistics.paired(first.items, third.items, first.unit, draws=1000)
        assert apart.p < 0.01 and apart.value == pytest.approx(third.value - first.value)
    assert false <= 12  # 5 are expected; 13 or more have a chance of 0.2 %


@pytest.mark.parametrize("items", [Items([3.0]), Items([]), Items([np.nan, 1, 2]), Items([1, 2], "ab", group="gg")])
def test_where_nothing_can_be_said_nothing_is(items):
    assert of_items(items).interval is None


@pytest.mark.parametrize("value, interval, unit, n, want", [
    (61.83, (59.9, 63.6), "%", 640, "61.8 ± 1.9 % (n=640)"),
    (2.2, (1.2, 3.9), "%", 500, "2.2 +1.7 −1.0 % (n=500)"),
    (0.012641, (0.01241, 0.01287), "MSE", 1000, "0.01264 ± 0.00023 MSE (n=1000)"),
    (59.8, (59.78, 59.82), "%", 10**6, "59.800 ± 0.020 % (n=1000000)"),
    (1.25, None, "nats", 3, "1.25 nats"),
    (float("nan"), (0, 1), "%", 3, "nan %"),
])  # fmt: skip
def test_numbers_are_said_with_their_spread(value, interval, unit, n, want):
    assert said(value, unit, interval, n) == want


def test_bounds_that_meet_the_value_have_no_digits_to_lose():
    assert plus_minus(0.0, (0.0, 0.0), "%")[1].startswith("±")
