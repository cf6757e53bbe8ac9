import numpy as np
import pytest

from maeclip_jax import evals
from maeclip_jax.errors import UserError
from maeclip_jax.evals import knn
from tests.evals.found import notes, values

SETS = dict(data={"set": "test"}, train={"set": "train"})


def oracle(x, bank, own, k, temperature, classes):
    """Predictions, one row at a time."""
    out = []
    for row in x:
        near = bank @ row / np.linalg.norm(bank, axis=1) / np.linalg.norm(row)
        votes = np.zeros(classes)
        for i in sorted(range(len(near)), key=lambda i: -near[i])[:k]:
            votes[own[i]] += np.exp(near[i] / temperature)
        out.append(votes.argmax())
    return np.array(out)


def test_it_agrees_with_an_oracle(labelled_sets, clouds, monkeypatch):
    monkeypatch.setattr(knn, "BLOCK_BYTES", 4 * 120 * 7)  # seven rows at a time
    sets = {"train": clouds(120, 1, far=0.5), "test": clouds(90, 2, far=0.5)}
    context = labelled_sets(sets)
    got = values(evals.make("knn", context, k=(20, 1, 120), pool="gap", **SETS).run(None))
    assert set(context.wanted) == {("train", "gap"), ("test", "gap")}
    (x, label), (bank, own) = sets["test"], sets["train"]
    for k, name in ((20, "top1"), (1, "top1_k1"), (120, "top1_k120")):
        right = oracle(x.astype(np.float64), bank.astype(np.float64), own, k, 0.07, 6) == label
        assert got[name] == pytest.approx(100 * right.mean()) and 17 < got[name] < 100
    assert got["top5"] >= got["top1"] and got["chance"] == pytest.approx(100 / 6)
    assert [row[0] for row in got["neighbours"]["rows"]] == [20, 1, 120]


def test_a_collapsed_representation_scores_nothing_above_chance(labelled_sets, clouds):
    x, label = clouds(60, 1)
    same = {"train": (np.ones_like(x), label), "test": (np.ones_like(x), label)}
    got = values(evals.make("knn", labelled_sets(same), k=60, **SETS).run(None))
    assert got["top1"] == 0  # every class ties with the right one


def test_of_fewer_pictures_than_k_all_vote_and_the_number_says_so(labelled_sets, clouds):
    context = labelled_sets({"train": clouds(12, 1), "test": clouds(12, 2)})
    found = list(evals.make("knn", context, k=(20, 5, 12, 13), **SETS).run(None))
    got, said = values(found), "all 12 neighbours"
    assert notes(found) == dict(top1=said, mean_per_class=said, top5=said, top1_k13=said)
    assert got["top1"] == got["top1_k13"] == got["top1_k12"]
    assert got["neighbours"]["note"].endswith("Where k is more than 12, all training pictures vote.")


def test_what_a_user_can_get_wrong(labelled_sets, clouds):
    context = labelled_sets({"train": clouds(12, 1), "test": clouds(12, 2)})
    with pytest.raises(UserError, match=r"k=0, temperature=0\.07 is not valid; valid: k of 1 or more, temperature > 0"):
        evals.make("knn", context, k=0, **SETS)
