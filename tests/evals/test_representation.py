"""Features described: values that can be worked out by hand, intervals that hold, features that are not finite."""

import numpy as np
import pytest

from maeclip_jax.evals import representation as rep
from maeclip_jax.evals.protocol import unit_rows
from maeclip_jax.evals.statistics import jackknife


def pairs(n):
    return np.stack([np.arange(n)] * 2, axis=1)


def found(images, texts, of=None):
    n = len(images)
    made = rep.of_pairs(unit_rows(images), unit_rows(texts), pairs(n) if of is None else of, {"key": range(n)})
    return {m.name: m.estimated() for m in made}


def test_values_by_hand():
    x = np.eye(4, dtype=np.float32)
    got = found(x, -x)
    assert got["alignment"].value == pytest.approx(4)  # opposite points
    assert got["uniformity_image"].value == pytest.approx(-4)  # all pairs at a squared distance of 2
    assert got["modality_gap"].value == pytest.approx(2 * np.linalg.norm(np.full(4, 1 / 4)))
    assert got["effective_rank"].value == pytest.approx(4)
    assert found(x, x)["alignment"].value == found(x, x)["modality_gap"].value == 0
    one = np.ones((6, 4), np.float32)
    assert rep.uniformity("u", one).value == pytest.approx(0) and rep.effective_rank(one).value == pytest.approx(1)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert rep.effective_rank(np.diag([3.0, 1.0])).value == pytest.approx(np.exp(entropy))


def test_every_one_has_an_interval_and_no_direction():
    random = np.random.default_rng(0)
    got = found(random.normal(size=(300, 16)), random.normal(size=(300, 16)))
    for name, metric in got.items():
        assert metric.interval[0] < metric.value < metric.interval[1] and metric.better == "none", name
        assert metric.n == 300 and metric.unit, name


def test_the_interval_of_a_gap_covers():
    """Means of shifted clouds: 90 to 99 % of 200 intervals hold the distance of their centres."""
    random, inside = np.random.default_rng(1), 0
    for _ in range(200):
        x, y = random.normal(2, 1, (200, 3)), random.normal([0, 2, 2], 1, (200, 3))
        low, high = rep.modality_gap(x, y).interval
        inside += low <= 2 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_features_that_are_not_numbers_have_no_rank():
    x = np.full((10, 3), np.nan)
    assert np.isnan(rep.effective_rank(x).value) and rep.effective_rank(x).interval is None
    assert rep.effective_rank(np.ones((1, 3))).interval is None


def test_many_rows_are_thinned_evenly():
    x = np.arange(30)[:, None]
    assert rep.some(x, 4)[:, 0].tolist() == [0, 9, 19, 29] and rep.some(x, 40) is x


def test_few_rows_of_one_kind_share_their_blocks():
    random = np.random.default_rng(2)
    metric = rep.modality_gap(random.normal(size=(40, 3)), random.normal(size=(6, 3)))
    assert metric.n == 6 and "3 blocks" in metric.how and jackknife([1, 2], np.mean, 2)[0] == 1.5
