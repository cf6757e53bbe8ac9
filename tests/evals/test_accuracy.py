import numpy as np
import pytest

from maeclip_jax.evals.accuracy import accuracies, ranks
from tests.evals.found import values


def test_ranks_and_accuracies_by_hand():
    r = np.random.default_rng(0)
    score, label = r.normal(size=(50, 7)), r.integers(0, 6, 50)  # class 6 has no row
    order = np.argsort(-score, axis=1)
    by_hand = [list(order[n]).index(label[n]) for n in range(50)]
    rank = ranks(score, label)
    assert rank.tolist() == by_hand
    got = values(accuracies(rank, label, 7))
    assert got["top1"] == pytest.approx(100 * np.mean(order[:, 0] == label))
    assert got["top5"] == pytest.approx(100 * np.mean([label[n] in order[n, :5] for n in range(50)]))
    per_class = [np.mean(order[label == c, 0] == c) for c in range(6)]
    assert got["mean_per_class"] == pytest.approx(100 * np.mean(per_class))
    assert got["chance"] == pytest.approx(100 / 7) and got["chance_top5"] == pytest.approx(500 / 7)
    assert "top5" not in values(accuracies(rank[label < 2], label[label < 2], 2))


@pytest.mark.parametrize("value", [0.0, np.nan, -np.inf])
def test_ties_and_broken_scores_count_against_the_model(value):
    assert ranks(np.full((2, 3), value), np.array([0, 2])).tolist() == [2, 2]
