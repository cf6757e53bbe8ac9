"""Two runs compared: the same items or none, tests adjusted for how many there are, words for what was found."""

import json

import numpy as np
import pytest

from maeclip_jax.evals import items
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.protocol import Metric, percent
from maeclip_jax.report import command, paired
from maeclip_jax.report import run as runs
from maeclip_jax.workdir import items_file
from tests.report.written import written

SETTINGS = {"type": "zero_shot", "data": {"source": {"kind": "tfds", "name": "pets"}}, "batch_size": 8}


def make(path, metrics, step=10, settings=SETTINGS, keep=True):
    """A workdir whose evaluator `zero` gave the metrics, kept with their items."""
    (path / "evals").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"objective": "clip", "seed": 0}))
    metrics = [m.estimated() for m in metrics]
    one = {"step": step, "settings": {"zero": settings}, "seconds": {}, "metrics": {"zero": metrics}}
    (path / "evals" / f"{step}.json").write_text(json.dumps(written(one)))
    if keep:
        kept = {f"zero/{m.name}": m.items for m in metrics if m.items}
        items_file(path, step).write_bytes(items.to_bytes(items.table(kept)))
    return path


def top1(right, name="top1", keys=None):
    found = Items(100 * np.asarray(right), keys)
    return percent(name, found.mean(), items=found)


def error(values):
    found = Items(values)
    return Metric("error", found.mean(), "nats", "lower", items=found)


def scale(values):
    found = Items(values)
    return Metric("scale", found.mean(), "", "none", items=found)


@pytest.fixture
def pair(tmp_path):
    random = np.random.default_rng(0)
    right = random.random(500) < 0.6
    better = right | (random.random(500) < 0.2)
    noise = random.normal(1, 0.1, 500)
    first = make(tmp_path / "a", [top1(right), top1(right, "top5"), error(noise), scale(noise)])
    moved = np.where(np.arange(500) < 250, noise, noise[::-1])
    return first, make(tmp_path / "b", [top1(better), top1(right, "top5"), error(moved - 0.03), scale(noise + 2)])


def test_each_number_is_tested_and_the_family_adjusted(pair):
    found, notes = paired.compare(*(runs.read(p) for p in pair))
    assert [p.name for p in found] == ["zero/top1", "zero/top5", "zero/error", "zero/scale"] and notes == []
    gain, same, less, other = found
    assert other.verdict == "differs" and other.holm == other.found.p  # a family of its own
    assert gain.verdict == "second is better" and gain.found.value > 5 and gain.found.how == "McNemar, exact"
    assert same.verdict == "within noise" and same.found.value == 0 and same.holm == 1
    assert less.verdict == "second is better" and less.found.value < 0  # of an error, less is better
    assert gain.holm == pytest.approx(3 * gain.found.p)
    back, _ = paired.compare(*(runs.read(p) for p in pair[::-1]))
    assert [p.verdict for p in back] == ["first is better", "within noise", "first is better", "differs"]


def test_the_command_prints_a_line_a_number(pair, capsys):
    assert command.main(["--compare", *map(str, pair)]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("zero/top1"))
    assert "second is better" in row and "+" in row and "500" in row
    assert f"first:  {pair[0]}" in said
    assert "Holm: p adjusted for 3 numbers, of 1 that only describe apart; 0.05" in said


def refused(capsys, *workdirs):
    assert command.main(["--compare", *map(str, workdirs)]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, capsys):
    a = make(tmp_path / "a", [top1([1, 0, 1], keys=["x", "y", "z"])])
    other = make(tmp_path / "other", [top1([1, 0, 1], keys=["x", "y", "w"])])
    fewer = make(tmp_path / "fewer", [top1([1, 0], keys=["x", "y"])])
    without = make(tmp_path / "without", [top1([1, 0, 1])], keep=False)
    assert "zero/top1: 2 of 4 items are not those of both; evaluate both runs on the same data" in refused(
        capsys, a, other
    )
    assert "zero/top1: 1 of 3 items" in refused(capsys, a, fewer)
    assert "have no number with items in common: their evaluations are zero and zero" in refused(capsys, a, without)
    assert "--compare takes two workdirs and got 1" in refused(capsys, a)
    assert "no workdir at" in refused(capsys, a, tmp_path / "nothing")
    items_file(other, 10).write_bytes(b"cut")
    assert "not a parquet file" in refused(capsys, a, other)


def test_a_number_on_other_items_is_left_out_and_named(tmp_path, capsys):
    a = make(tmp_path / "a", [top1([1, 0, 1]), top1([1, 0, 1], "masked", keys=["x", "y", "z"])])
    b = make(tmp_path / "b", [top1([1, 1, 1]), top1([1, 0], "masked", keys=["x", "y"])])
    assert command.main(["--compare", str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert sum(line.startswith("zero/") for line in said.splitlines()) == 1
    assert "Not the same items in both runs, so not compared: zero/masked: 1 of 3 items" in said


def test_one_item_and_values_that_are_no_numbers_say_nothing(tmp_path, capsys):
    a = make(tmp_path / "a", [top1([1]), error([np.nan] + [1.0] * 20)])
    b = make(tmp_path / "b", [top1([0]), error([2.0] * 21)])
    assert command.main(["--compare", str(a), str(b)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("zero/")]
    assert len(rows) == 2 and all(row.endswith("within noise") and "1.000" in row for row in rows)


def test_how_it_was_measured_differently_is_said(tmp_path):
    a = make(tmp_path / "a", [top1([1, 0, 1]), top1([1, 1, 1], "top5")])
    b = make(tmp_path / "b", [top1([1, 1, 1])], step=20, settings=SETTINGS | {"templates": "photos", "batch_size": 16})
    found, notes = paired.compare(runs.read(a), runs.read(b))
    assert [p.name for p in found] == ["zero/top1"]
    assert notes == [
        "zero was measured in two ways: in the second run templates is photos, not absent.",
        "zero is of step 10 of the first run and step 20 of the second.",
    ]
