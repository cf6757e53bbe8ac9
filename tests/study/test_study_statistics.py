"""Intervals have their rate and tests their power, on a trainer whose truth is known; formulas agree with others'."""

import math

import numpy as np
import pytest
from scipy import stats

from maeclip_jax.study import curves, effects, power
from maeclip_jax.study.crossing import crossing
from maeclip_jax.study.effects import Difference
from tests.study import fake


def test_the_model_is_that_of_least_squares():
    found = fake.study(0, diversities=(0.25, 1.0), items=50)
    plain = [Difference(g.size, g.diversity, g.seed, g.value) for g in found]
    x, y = np.log10([g.size for g in plain]), np.array([g.value for g in plain])
    known = stats.linregress(x[::1], y)
    made = effects.fit([Difference(g.size, 1.0, g.seed, g.value) for g in plain])
    slope = made.term("slope")
    assert slope.value == pytest.approx(known.slope) and slope.error == pytest.approx(known.stderr)
    assert slope.p == pytest.approx(known.pvalue) and slope.df == len(plain) - 2
    assert effects.fit(plain).names == ("mean", "slope", "diversity")
    assert effects.fit(plain).term("mean").value == pytest.approx(y.mean())
    alone = effects.fit([Difference(1000, 1.0, r, v) for r, v in enumerate(y[:6])]).term("mean")
    assert alone.p == pytest.approx(stats.ttest_1samp(y[:6], 0).pvalue)


def test_one_seed_has_no_interval():
    found = [g for g in fake.study(0) if g.seed == 0]
    made = effects.fit(found).term("mean")
    assert made.interval is None and made.p is None and made.value == pytest.approx(np.mean([g.value for g in found]))
    assert crossing(found).said == "needs two seeds"


def cells(gains, seeds=3, noise=0.0, seed=0):
    """Differences of {(size, diversity): gain}."""
    lots = np.random.default_rng(seed)
    return [
        Difference(n, d, r, g + noise * lots.standard_normal()) for (n, d), g in gains.items() for r in range(seeds)
    ]


def test_terms_that_the_runs_cannot_tell_apart_have_no_value():
    """Sizes and diversities that rise together, as in an unfinished study, and a size beside the design's centre."""
    centres = {"slope": math.log10(1000), "diversity": 0.5}
    both = effects.fit(cells({(1000, 0.25): 0.0, (100_000, 1.0): 4.0}, noise=0.1), centres)
    assert both.names == ("mean", "slope", "diversity") and both.df == 6 - 2
    assert [both.term(name) for name in both.names] == [None] * 3
    one = effects.fit(cells({(1000, 0.25): 1.0, (1000, 1.0): 2.0}, noise=0.1), centres)
    assert one.term("diversity").value == pytest.approx(1 / 0.75, abs=0.3) and one.term("slope") is None
    beside = effects.fit(cells({(4000, 0.5): 1.0}, noise=0.1), centres)
    assert beside.term("mean") is None and beside.df == 2


def test_a_bent_gain_is_not_chance_within_cells():
    """Gains of two points' spread within cells, but bent over the sizes: the model's residual holds the bend."""
    bent = {(n, d): g for n, g in ((300, -4.0), (2500, -20.0), (20000, -14.0)) for d in (0.25, 1.0)}
    missed, halves, lacks = 0, [], []
    for i in range(100):
        found = cells(bent, noise=2.0, seed=i)
        made = effects.fit(found)
        pure, lack = effects.within_cells(made, found)
        low, high = pure.term("mean").interval
        missed += not low <= np.mean(list(bent.values())) <= high
        halves.append((high - low) / np.diff(made.term("mean").interval)[0])
        lacks.append(lack)
    assert pure.df == 12 and 1 <= missed <= 12 and np.mean(halves) < 0.5 and np.median(lacks) < 0.001
    straight = [
        effects.within_cells(effects.fit(f), f)[1]
        for f in (cells({(n, 1.0): math.log10(n) for n in (300, 2500, 20000)}, noise=2.0, seed=i) for i in range(200))
    ]
    assert np.mean(np.array(straight) < 0.05) == pytest.approx(0.05, abs=0.05)
    assert effects.within_cells(effects.fit(cells(bent, seeds=1)), cells(bent, seeds=1)) == (None, None)


def test_what_runs_of_one_seed_have_in_common_shows():
    """p by F, which has its rate where they have nothing in common and is small where each draw moves all its cells."""
    flat = {(n, d): 0.0 for n in (300, 2500, 20000) for d in (0.25, 1.0)}
    alone = [effects.seeds_differ(cells(flat, noise=1.0, seed=i)) for i in range(200)]
    assert np.mean(np.array(alone) < 0.05) == pytest.approx(0.05, abs=0.05)
    moved = [Difference(g.size, g.diversity, g.seed, g.value + 4 * g.seed) for g in cells(flat, noise=1.0)]
    assert effects.seeds_differ(moved) < 1e-4
    assert effects.seeds_differ(cells(flat, seeds=1)) is None


def test_two_sets_of_items_are_two_sources_of_chance():
    """Diversities with test pictures of their own: items of one set do not make up for those of another."""
    lots = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        found = []
        for share in (0.25, 1.0):
            own = lots.normal(0, 20, 100)
            for size in (300, 2500, 20000):
                for r in range(3):
                    each = own + lots.normal(0, 0.3) + lots.normal(0, 10, 100)
                    found.append(Difference(size, share, r, each.mean(), each, f"set {share}"))
        low, high = effects.fit(found).term("mean").interval
        missed += not low <= 0 <= high
        without = effects.fit([Difference(g.size, g.diversity, g.seed, g.value) for g in found]).term("mean")
    assert 2 <= missed <= 22 and without.error < 0.5 * effects.fit(found).term("mean").error


def test_a_gain_that_crosses_twice_has_no_crossing():
    twice = crossing(cells({(1000, 1.0): -2.0, (4000, 1.0): 3.0, (20000, 1.0): -2.0}, noise=0.3))
    assert (twice.size, twice.interval) == (None, None) and "more than once" in twice.said
    ends = crossing(cells({(1000, 1.0): 0.0, (4000, 1.0): 5.0, (20000, 1.0): 0.0}, noise=0.4, seed=3))
    assert ends.interval is None and ends.said.startswith("not determined")
    sure = crossing(cells({(1000, 1.0): -5.0, (4000, 1.0): -4.0, (20000, 1.0): 6.0}, noise=1e-4))
    assert sure.size == pytest.approx(4000 * 5 ** (4 / 10), rel=1e-3) and sure.said == "inside the range"
    assert sure.interval[0] <= sure.size <= sure.interval[1]


REPETITIONS = 100


@pytest.fixture(scope="module")
def studies():
    return [fake.study(1000 + i) for i in range(REPETITIONS)]


def test_intervals_cover_the_truth_at_their_rate(studies):
    """5 misses are expected; more than 12 come by chance once in 700 times (binomial), fewer than 1 once in 170."""
    truth = np.mean([fake.gain(g.size, -8.0) for g in studies[0]])
    missed = dict.fromkeys(("mean", "slope", "crossing"), 0)
    for found in studies:
        made = effects.fit(found)
        for name, true in (("mean", truth), ("slope", -8.0)):
            low, high = made.term(name).interval
            missed[name] += not low <= true <= high
        at = crossing(found)
        if at.interval:
            low, high = (end or open_ for end, open_ in zip(at.interval, (0, math.inf)))
            missed["crossing"] += not low <= 8000 <= high
    assert min(missed.values()) >= 1 and max(missed.values()) <= 12, missed


def test_the_crossing_is_found_or_said_to_be_outside(studies):
    inside = [crossing(found) for found in studies]
    assert np.median([at.size for at in inside if at.size]) == pytest.approx(8000, rel=0.25)
    beyond = crossing(fake.study(5, sizes=(100, 200, 400), seeds=6, sd=0.2, slope=-8.0, items=20_000))
    assert beyond.size is None and beyond.said.startswith("outside the range: the gain is above 0")
    flat = crossing(fake.study(6, slope=0.0))
    bent = [Difference(n, 1.0, r, (0.0, 3.0, 2.9, -1.0)[i] + 0.4 * (r - 1), None)
            for i, n in enumerate((1000, 4000, 16000, 64000)) for r in range(3)]  # fmt: skip
    found = crossing([g for g in bent if g.size > 1000])
    assert found.how == "pieces" and found.interval[0] < found.size < found.interval[1]
    assert flat.interval is None and flat.said.startswith("not determined")


def test_items_matter_where_they_are_few():
    """The same runs on few items: what the items have in common is in the error, which runs alone do not show."""
    few = fake.study(0, items=30, sd=0.3)
    with_items, without = (
        effects.fit(found).term("mean").error
        for found in (few, [Difference(g.size, g.diversity, g.seed, g.value) for g in few])
    )
    assert with_items > without


def test_power_agrees_with_simulated_power():
    """Within 5 points, of which the simulation's own chance takes 2 (standard error at 1,000 studies: 1.3)."""
    sizes, shares, seeds, sd = (1000, 4000, 20000), (0.25, 1.0), 3, 3.6
    errors, df = power.shape(sizes, shares, seeds)
    lots = np.random.default_rng(0)
    for term, effect in (("mean", 2.2), ("slope", 4.5)):
        found = 0
        for _ in range(1000):
            drawn = []
            for size in sizes:
                for share in shares:
                    x = math.log10(size) - np.mean(np.log10(sizes))
                    true = effect if term == "mean" else effect * x
                    drawn += [Difference(size, share, r, true + lots.normal(0, sd)) for r in range(seeds)]
            found += effects.fit(drawn).term(term).p < 0.05
        assert found / 1000 == pytest.approx(power.power(effect, sd * errors[term], df), abs=0.05)
        assert 0.3 < found / 1000 < 0.99
    least = power.detectable(1.0, df)
    assert power.power(least, 1.0, df) == pytest.approx(0.8, abs=1e-6)
    assert power.table(sizes, shares, 1, sd, 2)["mean"] == math.inf


def test_power_laws_are_found_with_their_intervals():
    sizes = np.repeat([1000, 4000, 16000, 64000], 3)
    lots = np.random.default_rng(1)
    found = curves.power_law(sizes, 20 + 400 * sizes**-0.4 + lots.normal(0, 0.3, len(sizes)))
    for name, true in (("a", 20), ("b", 400), ("c", 0.4)):
        low, high = found.intervals[name]
        assert low <= true <= high, (name, found)
    assert found(64000) == pytest.approx(20 + 400 * 64000**-0.4, abs=0.6)
    assert curves.power_law(sizes[:6], np.ones(6)) is None
    assert curves.power_law(sizes[::3], 20 + 400 * sizes[::3] ** -0.4).intervals is None
    assert found.determined
    flat, step = np.full(len(sizes), 50.0), np.where(sizes == 1000, 60.0, 50.0)  # no exponent is nearest to either
    for errors in (flat, step, 60 - np.log10(sizes)):
        assert not curves.power_law(sizes, errors).determined, errors
