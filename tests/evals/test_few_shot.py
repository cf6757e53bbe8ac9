import numpy as np
import pytest

from maeclip_jax import evals
from maeclip_jax.errors import UserError
from maeclip_jax.evals import few_shot
from tests.evals.found import notes, values

SETS = dict(data={"set": "test"}, train={"set": "train"})


def test_more_shots_help_and_draws_vary(labelled_sets, clouds):
    sets = {"train": clouds(180, 1, far=0.7), "test": clouds(300, 2, far=0.7)}
    got = values(evals.make("few_shot", labelled_sets(sets), shots=(1, 10), seeds=3, **SETS).run(None))
    assert got["chance"] + 5 < got["1_shot"] < got["10_shot"] - 5
    table = got["draws"]
    assert table["columns"] == ["pictures a class", "top-1 (%)", "draw 1", "draw 2", "draw 3"]
    for row in table["rows"]:
        assert got[f"{row[0]}_shot"] == pytest.approx(np.mean(row[2:]))
        assert got[f"{row[0]}_shot_sd"] == pytest.approx(np.std(row[2:], ddof=1)) and got[f"{row[0]}_shot_sd"] > 0
    assert "have fewer" not in table["note"]


def test_draws_hold_each_class_and_grow():
    label = np.random.default_rng(0).integers(0, 4, 100)
    label[label == 3] = np.where(np.arange((label == 3).sum()) < 2, 3, 0)  # two pictures only
    small, large = (few_shot.draw(label, 4, n, seed=1) for n in (2, 9))
    assert np.bincount(label[large]).tolist() == [9, 9, 9, 2] and set(small) <= set(large)
    assert np.bincount(label[small]).tolist() == [2, 2, 2, 2]
    assert set(few_shot.draw(label, 4, 9, seed=2)) != set(large)


def test_classes_with_fewer_pictures_are_named(labelled_sets, clouds):
    x, label = clouds(60, 1)
    kept = (label != 4) | (np.cumsum(label == 4) <= 2)
    sets = {"train": (x[kept], label[kept]), "test": clouds(60, 2)}
    names = {"train": ["a", "b", "c", "d", "pear", "f"]}
    evaluator = evals.make("few_shot", labelled_sets(sets, names), shots=(2, 5), seeds=1, **SETS)
    found = list(evaluator.run(None))
    got = values(found)
    assert notes(found) == {"5_shot": "1 classes have fewer"}
    assert got["draws"]["note"].endswith("1 classes have fewer than 5: pear 2.") and "2_shot_sd" not in got


def test_where_no_class_has_as_many_the_number_says_how_many_it_is_of(labelled_sets, clouds):
    sets = {"train": clouds(18, 1), "test": clouds(60, 2)}  # 3 of each class
    found = list(evals.make("few_shot", labelled_sets(sets), shots=(3, 25), seeds=2, **SETS).run(None))
    assert notes(found) == {"25_shot": "at most 3 a class", "25_shot_sd": "at most 3 a class"}
    assert values(found)["25_shot"] == values(found)["3_shot"]


def test_scale_of_the_features_does_not_matter(labelled_sets, clouds):
    sets = {"train": clouds(60, 1, far=0.7), "test": clouds(300, 2, far=0.7)}
    other = {name: (1000 * x - 3, label) for name, (x, label) in sets.items()}
    one, two = (
        values(evals.make("few_shot", labelled_sets(s), shots=(5,), seeds=1, **SETS).run(None)) for s in (sets, other)
    )
    assert one["5_shot"] == pytest.approx(two["5_shot"], abs=0.7)


def test_what_a_user_can_get_wrong(labelled_sets):
    with pytest.raises(UserError, match=r"shots=\(0,\), seeds=3, l2=0.1 is not valid; valid: 1 or more, l2 > 0"):
        evals.make("few_shot", labelled_sets({}), shots=(0,), **SETS)
