"""Evaluations alone give the numbers written in training, whatever the devices; every example counts once."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from maeclip_jax import evals
from maeclip_jax.data import tokenizer
from maeclip_jax.errors import UserError
from maeclip_jax.evals import Metric
from maeclip_jax.run import checkpoint, evaluate, train
from maeclip_jax.run.features import Surroundings
from maeclip_jax.run.step import build
from maeclip_jax.workdir import items_file, read_evals, read_items, read_metrics
from tests import runs

ARG = "steps=12,save=6"


@pytest.mark.parametrize("step", [6, 12])
def test_alone_it_gives_the_numbers_of_training(step, tmp_path):
    """Not nearly: the same floats, and the same details and pictures."""
    reference = runs.whole(8, ARG)
    config = runs.config(ARG, resume=str(reference / "checkpoints" / str(step)))
    metrics = evaluate.run(config, tmp_path)
    want, have = runs.result(reference, step), runs.result(tmp_path, step)
    assert metrics == have["metrics"] and len(want["metrics"]) > 7
    for part in ("metrics", "details", "pictures", "not_applicable"):  # at step 6 training evaluates a part of it
        assert have[part] == have[part] | want[part]
    for picture in have["pictures"].values():
        assert (tmp_path / "evals" / picture).read_bytes() == (reference / "evals" / picture).read_bytes()


def test_on_one_device_to_float_tolerance(tmp_path):
    reference = runs.whole(8, ARG)
    metrics = evaluate.run(runs.config(ARG, resume=str(reference)), tmp_path, devices=jax.devices()[:1])
    for name, value in runs.metrics(reference, 12).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    assert runs.result(tmp_path, 12)["details"]["val/rows"]["rows"] == [[16, 4]]


def test_what_is_there_is_not_computed_again(tmp_path, capsys):
    workdir = runs.copy(runs.whole(8, ARG), tmp_path / "run")
    assert evaluate.run(runs.config(ARG), workdir) == {}
    assert "12.json has all results of step 12; delete it to evaluate again" in capsys.readouterr().out
    (workdir / "evals" / "12.json").unlink()
    assert evaluate.run(runs.config(ARG), workdir) == runs.metrics(runs.whole(8, ARG), 12)


def test_every_number_is_the_mean_of_the_items_that_are_kept_and_has_its_interval(tmp_path):
    reference = runs.whole(8, ARG)
    result, kept = runs.result(reference, 12), read_items(reference, 12)
    assert len(kept) > 7
    assert result["metrics"].keys() == kept.keys()
    for name, items in kept.items():
        about = result["about"][name]
        assert items.mean() == pytest.approx(result["metrics"][name], rel=1e-6), name
        if re.search("uniformity|modality_gap|effective_rank", name):  # of all features at once: their blocks
            assert about["n"] > len(items) > 1 and f"jackknife over {len(items)} blocks" in about["how"], name
        else:
            assert about["n"] == len(set(items.units)) and about["how"], name
        if about["n"] > 1:
            low, high = about["interval"]
            assert low <= result["metrics"][name] <= high, name
    pictures, captions = (kept[f"retrieval/{way}_R@1"] for way in ("image_to_text", "text_to_image"))
    assert set(captions.group) == set(pictures.key)
    evaluate.run(runs.config(ARG, resume=str(reference)), tmp_path)
    assert (tmp_path / "evals" / "12.items.parquet").read_bytes() == items_file(reference, 12).read_bytes()


def test_items_of_an_evaluation_that_goes_on_and_of_other_commands_stay(tmp_path):
    workdir, config = runs.copy(runs.whole(8, ARG), tmp_path / "run"), runs.config(ARG)
    before = read_items(workdir, 12)
    config.evals = {"again": config.evals.reconstruction.to_dict()}
    evaluate.run(config, workdir)  # another command, of the same step
    after = read_items(workdir, 12)
    assert set(after) == {
        *before,
        *(n.replace("reconstruction", "again") for n in before if n.startswith("reconstruction/")),
    }
    path = workdir / "evals" / "12.json"
    known = json.loads(path.read_text())
    del known["seconds"]["retrieval"]  # killed before it was known
    path.write_text(json.dumps(known))
    evaluate.run(runs.config(ARG), workdir)
    assert {n: list(x.value) for n, x in read_items(workdir, 12).items()} == {
        n: list(x.value) for n, x in after.items()
    }
    evaluate.items_file(workdir, 12).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"12.items.parquet.*: not a parquet file.*; delete it and evaluate again"):
        read_items(workdir, 12)


@pytest.mark.parametrize("resume, step, found", [("began", 6, "run"), ("elsewhere", 12, "elsewhere"), ("", 6, "run")])
def test_where_a_run_began_is_not_what_is_evaluated(resume, step, found, tmp_path, capsys, monkeypatch):
    """config.json keeps config.resume; the run has gone on from there. Another that is asked for is another."""
    began, elsewhere, workdir = (
        runs.copy(runs.whole(8, ARG), tmp_path / name, 6 if name == "run" else 12)
        for name in ("began", "elsewhere", "run")
    )
    recorded = json.loads((workdir / "config.json").read_text()) | {"resume": str(began)}
    (workdir / "config.json").write_text(json.dumps(recorded))
    for folder in (began, elsewhere, workdir):
        (folder / "names.json").write_text(json.dumps({"label": [folder.name]}))
    config, names = runs.config(ARG, resume=str(tmp_path / resume) if resume else ""), []
    config.evals = {}
    monkeypatch.setattr(evaluate, "Surroundings", lambda *args: names.append(args[-1]["label"][0]))
    monkeypatch.setattr(evaluate.Runner, "run_due", lambda *args, **kwargs: {})
    evaluate.run(config, workdir)
    assert f"{step}.json has all results of step {step}" in capsys.readouterr().out
    shutil.rmtree(workdir / "checkpoints")
    config.resume = str(began)  # of the run itself there is nothing yet
    evaluate.run(config, workdir)
    assert "12.json has all results of step 12" in capsys.readouterr().out
    assert names == [found, "began"]


def functions_on(devices: int):
    """(functions, parameters) of the reference run on so many devices."""
    config = runs.config(ARG)
    prog = build(config, epoch=40, devices=jax.devices()[:devices])
    params = checkpoint.read_params(checkpoint.locate(runs.whole(8, ARG)), prog.abstract.params)[0]
    return Surroundings(prog.objective, prog.mesh, tokenizer.of(config)), params


@pytest.mark.parametrize("batch_size", [8, 7, 20, 32])
def test_every_example_counts_once_whatever_the_batch(batch_size):
    context, params = functions_on(8)
    data = runs.config(ARG).evals.val.data
    one, one_params = functions_on(1)
    texts, embedded, alone = [], [], []
    for batch in context.batches(data, batch_size):
        texts.append(context.rows(batch)["text"])
        embedded.append(context.embed(params, batch)["image"])
        alone.append(one.embed(one_params, batch)["image"])
        assert len(texts[-1]) == len(embedded[-1])
    source = context.source(data)
    pictures = np.concatenate([context.rows(b)["image"] for b in context.batches(data, batch_size)])
    assert np.array_equal(pictures, np.stack([source[i]["image"] for i in range(20)]))  # all, once, in order
    embedded = np.concatenate(embedded)
    assert embedded.shape == (20, 32)
    np.testing.assert_allclose(embedded, np.concatenate(alone), atol=1e-5)


def test_a_loss_does_not_depend_on_whether_its_batch_divides():
    """Ten pairs do not divide over eight devices: each computes all ten. Four on one device are the same four."""
    data = runs.config(ARG).evals.val.data
    results = []
    for devices in (8, 1):
        context, params = functions_on(devices)
        batch = next(iter(context.batches(data, 10)))
        arrays = {k: v for k, v in batch.items() if not k.startswith("_")}
        results.append(context.loss(params, arrays, 5))
        assert context.loss(params, arrays, 5) == results[-1] != context.loss(params, arrays, 6)  # the masks' seed
    for name, value in results[1].items():
        np.testing.assert_allclose(results[0][name], value, rtol=1e-5, err_msg=name)


class Failing:
    def __init__(self, context, *, data):
        pass

    def run(self, params):
        yield Metric("half", 1.0)
        raise UserError("there is nothing to see")


def failing_config(**settings):
    config = runs.config("objective=clip,steps=2,save=1", **settings)
    config.evals = {"a_bad": dict(type="loss", every="1 steps", data={}), "val": config.evals.val}
    config.evals.val.every = "1 steps"
    return config


def test_one_that_fails_takes_no_other_down_and_ends_the_run_in_an_error(tmp_path, monkeypatch, caplog):
    make = evals.make
    monkeypatch.setattr(
        evals, "make", lambda type, context, **k: make(type, context, **k) if k["data"] else Failing(context, **k)
    )
    with pytest.raises(UserError, match=r"^evaluation a_bad failed, as its warning says$"):
        train.run(failing_config(), tmp_path, devices=jax.devices()[:1])
    assert [r.getMessage() for r in caplog.records] == ["evaluation a_bad failed: there is nothing to see"]
    for step in (1, 2):
        result = runs.result(tmp_path, step)
        assert list(result["seconds"]) == ["val"] and "val/loss" in result["metrics"]
        assert not any(k.startswith("a_bad") for k in result["metrics"])
    assert (tmp_path / "costs.json").exists() and len(read_metrics(tmp_path)) == 2
    # What failed is still owed: the same command tries it again, and only it.
    monkeypatch.setattr(Failing, "run", lambda self, params: iter([Metric("half", 2.0)]))
    train.run(failing_config(), tmp_path, devices=jax.devices()[:1])
    assert runs.result(tmp_path, 2)["metrics"]["a_bad/half"] == 2.0
    assert read_metrics(tmp_path)[-1]["a_bad/half"] == 2.0


def test_what_an_objective_cannot_serve_is_not_applicable(tmp_path, capsys):
    """Retrieval of MAE: no number, the reason in the result and on the terminal."""
    config = runs.config("objective=mae,steps=1,save=1,evals=false")
    retrieval = runs.config("objective=clip,steps=1").evals.retrieval
    config.evals = {"retrieval": retrieval, "val": runs.config("objective=mae,steps=1").evals.val}
    train.run(config, tmp_path, devices=jax.devices()[:1])
    reason = runs.result(tmp_path, 1)["not_applicable"]["retrieval"]
    assert "this objective trains no space they share" in reason
    (tmp_path / "evals" / "1.json").unlink()
    evaluate.run(config, tmp_path, devices=jax.devices()[:1])
    assert f"eval retrieval: n/a, {reason}" in capsys.readouterr().out


def test_unreadable_names_beside_the_results_are_left_alone(tmp_path):
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "notes.json").write_text("mine")
    (tmp_path / "evals" / "3.json").write_text(json.dumps({"format": 2, "step": 3, "metrics": {"val/loss": 1.0}}))
    assert read_evals(tmp_path) == {3: {"val/loss": 1.0}}


def test_results_of_an_older_version_do_not_stop_a_resumed_run(tmp_path, caplog):
    """They say no direction, by which the best checkpoint would be chosen: left out and named, not deleted."""
    argument = "objective=clip,steps={},save=1"
    config = runs.config(argument.format(1))
    config.checkpoint.update(keep_best=1, best="val/loss")
    train.run(config, tmp_path, devices=jax.devices()[:1])
    path = tmp_path / "evals" / "1.json"
    result = json.loads(path.read_text())
    old = {k: v for k, v in result.items() if k not in ("format", "about")}
    path.write_text(json.dumps(old))
    config = runs.config(argument.format(2))
    config.checkpoint.update(keep_best=1, best="val/loss")
    train.run(config, tmp_path, devices=jax.devices()[:1])
    assert f"have no units (written by an older version): {path}" in caplog.text
    assert list(read_evals(tmp_path)) == [2] and json.loads(path.read_text())["metrics"] == result["metrics"]


def test_an_unreadable_result_is_one_line(tmp_path):
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "3.json").write_text('{"step": 3, "metr')
    with pytest.raises(UserError, match=r"cannot read '.*3\.json'"):
        read_evals(tmp_path)


def test_data_that_is_not_there_is_said_before_training(tmp_path, monkeypatch, caplog):
    """Of every evaluator and every part of its data, without a record read."""
    monkeypatch.setattr(train._Run, "loop", lambda self: pytest.fail("it trains"))
    config = runs.config("objective=mae_clip,steps=1,save=1")
    nowhere = dict(kind="tfds", dir=str(tmp_path), name="photos", split="val")
    for entry in config.evals.values():
        entry.data.source = nowhere
    config.evals["bank"] = dict(
        type="linear_probe", data=config.data, train=dict(ops="", source=nowhere), solver="lars"
    )
    with pytest.raises(UserError) as e:
        train.run(config, tmp_path, devices=jax.devices()[:1])
    for name in ("val", "retrieval", "reconstruction", "bank"):
        assert f"evaluation {name} failed: no data set 'photos' at {tmp_path}/photos" in str(e.value)
    assert not caplog.records  # the error says it
