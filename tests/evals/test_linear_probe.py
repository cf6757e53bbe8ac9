import json
import re
import warnings

import jax
import numpy as np
import pytest

from maeclip_jax import evals
from maeclip_jax.errors import UserError
from tests.evals.found import values

SETS = dict(data={"set": "test"}, train={"set": "train"})


def probe(context, **config):
    return values(evals.make("linear_probe", context, **SETS, **config).run(None))


@pytest.fixture
def three(clouds):
    return {"train": clouds(240, 1), "val": clouds(120, 2), "test": clouds(300, 3)}


def test_sweep_and_final_fit(labelled_sets, three):
    context = labelled_sets(three)
    got = probe(context, val={"set": "val"}, pool="max")
    assert context.wanted == [("test", "max"), ("train", "max"), ("val", "max")]
    assert 85 < got["top1"] <= got["top5"] and got["chance"] == pytest.approx(100 / 6) and got["train_top1"] > 85
    assert got["mean_per_class"] == pytest.approx(got["top1"])  # as many of every class
    table = got["solver"]
    assert table["columns"] == ["l2", "validation top-1 (%)", "iterations", "converged"] and len(table["rows"]) >= 13
    best = max(table["rows"], key=lambda row: (row[1], row[0]))
    assert f"Best l2 {best[0]:.4g} (C = {1 / best[0]:.4g})" in table["note"]
    assert (
        "240 training and 120 validation rows; final fit on 360 rows of 10 features (max), standardised"
        in table["note"]
    )
    json.dumps(table)


def test_strengths_may_be_ranked_on_some_rows(labelled_sets, three):
    got = probe(labelled_sets(three), val={"set": "val"}, solver=dict(l2=(1.0, 10.0), sweep_rows=60))
    assert "tried on 60 training and 120 validation rows; final fit on 360 rows" in got["solver"]["note"]
    assert got["top1"] > 85


def test_accuracy_is_that_of_scikit_learn(labelled_sets, clouds):
    """The same strength on the same rows: the same classifier, to half a point and better."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    hard = dict(far=0.4)
    sets = {"train": clouds(240, 1, **hard), "val": clouds(120, 2, **hard), "test": clouds(600, 3, **hard)}
    x, label = (np.concatenate(pair) for pair in zip(sets["train"], sets["val"]))
    mean, sd = sets["train"][0].mean(0), sets["train"][0].std(0)
    for l2 in (0.1, 10.0):
        got = probe(labelled_sets(sets), val={"set": "val"}, solver=dict(type="lbfgs", l2=[l2]))
        with warnings.catch_warnings(), limits(1):
            warnings.simplefilter("ignore")
            theirs = linear_model.LogisticRegression(C=1 / l2, tol=1e-8, max_iter=5000).fit((x - mean) / sd, label)
        assert 20 < got["top1"] < 90
        x_test, label_test = sets["test"]
        assert got["top1"] == pytest.approx(100 * theirs.score((x_test - mean) / sd, label_test), abs=0.2)


def spread(seed, rows, *, scales, classes=10, width=64):
    """Classes that differ in the second half of the channels alone."""
    draw = np.random.default_rng(seed)
    centres = 0.75 * np.random.default_rng(0).normal(size=(classes, width)) * (np.arange(width) >= width // 2)
    label = draw.permutation(np.arange(rows) % classes)
    return ((centres[label] + draw.normal(size=(rows, width))) * scales).astype(np.float32), label


def test_scales_of_channels_do_not_matter(labelled_sets):
    """Channels whose scales spread 100 to 1, the telling ones small: a penalty on weights favours the large ones."""
    even, uneven = np.ones(64), 100.0 ** (-np.arange(64) / 63)

    def top1(scales, **solver):
        sets = {"train": spread(1, 300, scales=scales), "val": spread(2, 100, scales=scales)}
        sets["test"] = spread(3, 1000, scales=scales)
        return probe(labelled_sets(sets), val={"set": "val"}, solver=dict(type="lbfgs", **solver))["top1"]

    found = top1(uneven)
    assert found == pytest.approx(top1(even), abs=0.2)
    assert found > 5 + top1(uneven, standardise=False)


def test_a_constant_channel_is_left_out(labelled_sets, three):
    before = probe(labelled_sets(three), val={"set": "val"})
    for constant in (0.0, 0.1, 1e4):
        noise = {name: np.random.default_rng(len(name)).normal(size=(len(y), 1)) for name, (_, y) in three.items()}
        wide = {n: (np.append(x, constant * (1 + 1e-7 * noise[n]), axis=1), y) for n, (x, y) in three.items()}
        assert probe(labelled_sets(wide), val={"set": "val"})["top1"] == before["top1"]


def test_the_edge_of_the_sweep_and_missing_classes_are_said(labelled_sets, three, caplog):
    x, label = three["train"]
    three["train"] = (x[label != 2], label[label != 2])
    del three["val"]
    context = labelled_sets(three)
    found = list(evals.make("linear_probe", context, **SETS, solver=dict(l2=(1e7, 1e8))).run(None))
    edge = re.search(r"linear_probe: (best l2 1e\+0\d at the edge of those tried) \(1e\+07 to 1e\+08\); ", caplog.text)
    assert {m.note for m in found if isinstance(m, evals.Metric)} == {edge[1]}
    caplog.clear()
    got = probe(context, solver=dict(l2=(1.0, 1e7, 1e8)))
    assert "EDGE" in got["solver"]["note"] and "best l2 1 at the edge of those tried (1 to 1e+08)" in caplog.text
    caplog.clear()
    assert "EDGE" not in probe(context, solver=dict(l2=(1e-3, 1.0, 1e8)))["solver"]["note"] and not caplog.text
    assert "160 training and 40 validation rows; final fit on 200 rows" in got["solver"]["note"]  # a fifth was held out
    assert "1 of 6 classes have no training row (2, ...)" in got["solver"]["note"]
    assert got["top1"] < 84 and got["mean_per_class"] < 84  # no prediction of the class that was never seen


def test_lars_learns_the_same_classes(labelled_sets, three):
    settings = dict(type="lars", epochs=60, warmup=6, batch_size=64, rate=40.0)
    context = labelled_sets(three)
    got = probe(context, solver=settings)
    assert context.wanted == [("test", "own")]
    assert got["top1"] > 85 and got["train_top1"] > 85
    rows = got["solver"]["rows"]
    assert len(rows) == 60 and rows[0][0] == 1 and rows[-1][1] < rows[0][1]
    mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert got == probe(labelled_sets(three), solver=settings)
    json.dumps(got["solver"])


def test_few_rows_are_used_as_they_are_and_the_table_says_so(labelled_sets, three):
    del three["val"]
    few = three | {"train": tuple(part[:2] for part in three["train"])}
    got = probe(labelled_sets(few), solver=dict(l2=(1.0,)), classes=6)  # a fifth of 2 rows is none
    assert "on 1 training and 1 validation rows; final fit on 2 rows" in got["solver"]["note"]
    with pytest.raises(UserError, match="train has 1 row, which cannot be held out, too; at least 2 are needed"):
        probe(labelled_sets(three | {"train": tuple(part[:1] for part in three["train"])}), classes=6)
    got = probe(labelled_sets(three), solver=dict(type="lars", epochs=2, warmup=1))
    assert "'batch_size': 240" in got["solver"]["note"]
    assert got["solver"]["note"].endswith("A batch was to have 1024 pictures; there are 240.")
    assert len(got["solver"]["rows"]) == 2
    got = probe(labelled_sets(three), solver=dict(type="lars", epochs=1, warmup=0.6))  # of one step
    assert len(got["solver"]["rows"]) == 1


def test_what_a_user_can_get_wrong(labelled_sets, three):
    def fails(match, names=None, **config):
        with pytest.raises(UserError, match=match):
            probe(labelled_sets(three, names), **config)

    fails(r"unknown solver of linear_probe 'sgd'; valid: lars, lbfgs", solver="sgd")
    fails(
        r"unknown setting of solver 'lars': 'l2'; valid: batch_size, epochs, rate, warmup",
        solver=dict(type="lars", l2=1),
    )
    fails(r"l2=\(0,\) is not valid; valid: numbers above 0", solver=dict(l2=(0,)))
    fails(r"holdout=0.0 is not valid; valid: a share between 0 and 1", solver=dict(holdout=0.0))
    valid = "are not valid; valid: more epochs than warmup >= 0, and a rate above 0"
    fails(f"linear_probe: epochs=5, warmup=10, rate=0.1 {valid}", solver=dict(type="lars", epochs=5))
    for wrong in (dict(epochs=10), dict(warmup=-1), dict(rate=0), dict(epochs=0, warmup=0), dict(rate=float("nan"))):
        fails(valid, solver=dict(type="lars") | wrong)
    names = {"test": ["a", "b", "c", "d", "e", "f"], "train": ["a", "c", "b", "d", "e", "f"]}
    fails(r"the classes of data and train differ: 6 \(a, b, c, \.\.\.\) and 6 \(a, c, b, \.\.\.\); they must", names)
    fails(r"data has label 5, but there are 5 classes \(0 to 4\)", {"test": names["test"][:5]})
    fails(r"classes=7, but data has 6 classes \(a, b, c, \.\.\.\)", {"test": names["test"]}, classes=7)


def test_what_is_wrong_with_the_features(labelled_sets, three):
    def fails(match, **sets):
        with pytest.raises(UserError, match=match):
            probe(labelled_sets(three | sets))

    x, label = three["train"]
    fails(r'train has no "label"; end its ops with label\|keep\("image","label"\)', train=(x, None))
    fails("train has no pictures; check the split", train=(x[:0], label[:0]))
    fails("train has label -1, but there are 6 classes", train=(x, np.where(label == 3, -1, label)))
    x, label = three["test"]
    x[7, 3] = np.nan
    fails("1 of 300 features of data are not finite", test=(x, label))
