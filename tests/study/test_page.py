"""The page of a study whose truth was made up says that truth, with intervals, and names what is missing."""

import csv
import json
import math
import random
import re
import statistics

import pytest

from maeclip_jax.study import analysis, page, plan, results
from tests.study import made_up

AXES = dict(sizes=(1000, 4000, 16000, 64000), diversities=(0.25, 1.0), weights=(0.1, 0.5))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        to = tmp_path_factory.mktemp("page") / "study"
        made_up.folder(to, patch, fail=("clip-n1000-d1-max-flops-s1",), **AXES)
        page.write(to)
    return to


def test_the_planted_truth_is_in_the_numbers(written):
    numbers = json.loads((written / "analysis.json").read_text())
    (mean, slope) = numbers["declared"]
    assert slope["interval"][0] <= -6 <= slope["interval"][1] and slope["adjusted"] < 0.05 and slope["n"] == 23
    assert mean["adjusted"] >= mean["p"]
    found = [line["crossing"] for line in numbers["lines"]]
    assert len(found) == 2 * 2 * 2 and sum(zero["size"] is not None for zero in found) >= 6
    assert len(numbers["without_a_seed"]) == 6 and len(numbers["weights"]) == 4
    assert all(law["b"] >= 0 and law["intervals"] for law in numbers["laws"]) and len(numbers["laws"]) == 16
    assert numbers["runs"]["missing"] == {"clip-n1000-d1-max-flops-s1": "made to fail"}
    assert 1 < numbers["spread"]["measured"] < 6
    assert any(row["what"].startswith("max minus gap of clip") for row in numbers["others"])


def test_an_exponent_at_the_end_of_the_search_is_not_printed_as_a_number():
    found = dict(a=61.2, c=1.29, determined=True, intervals=dict(a=(0.5, 93.8), c=(0.674, 2.0)))
    assert [page.law(found, name) for name in "ac"] == ["61.2 (0.5 to 93.8 or more)", "1.29 (0.674 to 2 or more)"]
    flat = found | dict(intervals=dict(a=(3.0, 93.8), c=(0.02, 1.5)))
    assert [page.law(flat, name) for name in "ac"] == ["61.2 (3 or less to 93.8)", "1.29 (0.02 or less to 1.5)"]
    assert page.law(found | dict(intervals=None), "c") == "1.29"
    assert page.law(found | dict(determined=False), "a") == "not determined"


def test_what_pooling_does_to_places_is_looked_at_besides(written):
    rows = json.loads((written / "analysis.json").read_text())["others"]
    found = {(row["what"], row["pool"]): row["value"] for row in rows if "gradcam_pointing" in row["what"]}
    assert {key for key in found if key[1] != "both"} == {
        ("mae_clip minus clip, grounding/gradcam_pointing: mean", pool) for pool in ("gap", "max")
    }
    for arm in ("clip", "mae_clip"):
        assert 29 < found[f"max minus gap of {arm}, grounding/gradcam_pointing: mean", "both"] < 31


def test_arms_are_compared_with_each_other_besides(tmp_path, monkeypatch):
    axes = dict(sizes=(1000,), pools=("max",), match=("flops",), arms=("clip", "mae_clip", "silc"))
    to = made_up.folder(tmp_path / "study", monkeypatch, **axes)
    made = plan.read(to)
    numbers = analysis.analyse(analysis.Study(made, *results.read(to, made)))
    (among,) = (row for row in numbers["others"] if row["what"] == "silc minus mae_clip: mean")
    gain = {row["arm"]: row["value"] for row in numbers["declared"] if row["term"] == "mean"}
    assert among["value"] == pytest.approx(gain["silc"] - gain["mae_clip"]) and among["n"] == 3 and among["interval"]


def test_every_pool_has_its_means_over_seeds_at_the_last_size(written):
    found = json.loads((written / "analysis.json").read_text())["measures"]
    assert (found["size"], found["diversity"], found["match"]) == (64000, 1.0, "examples")
    rows = {row["metric"]: {(c["arm"], c["pool"]): c for c in row["cells"]} for row in found["rows"]}
    assert list(rows) == ["zero_shot_seen/top1", "grounding/gradcam_pointing", "zero_shot_unseen/top1"]
    kept = [json.loads(p.read_text()) for p in (written / "runs").glob("clip-n64000-d1-max-examples-s*.json")]
    values = [one["metrics"]["zero_shot_seen/top1"] for one in kept]
    cell = rows["zero_shot_seen/top1"]["clip", "max"]
    half = 4.303 * statistics.stdev(values) / 3**0.5  # Student's quantile of three values
    assert cell["n"] == len(values) == 3 and cell["mean"] == pytest.approx(statistics.mean(values))
    assert cell["interval"] == pytest.approx([cell["mean"] - half, cell["mean"] + half], rel=1e-3)
    assert f"{cell['mean']:.1f} ± {half:.1f}" in (written / "index.html").read_text()


def test_every_cell_of_a_table_says_what_it_is_on_a_narrow_screen(written):
    shown = (written / "index.html").read_text()
    for table in re.findall(r'<table class="stack">.*?</table>', shown, re.S):
        rows = [re.findall(r"<td( [^>]*)?>", row) for row in re.findall(r"<tr>.*?</tr>", table, re.S)[1:]]
        assert rows and all(cells[0] == "" and all("data-what" in cell for cell in cells[1:]) for cells in rows)
    assert shown.count("<table") == shown.count('<table class="stack">') == 9


def test_page_figure_and_table_hold_the_same(written):
    shown = (written / "index.html").read_text()
    for text in ("Declared before the first run", "made to fail", "2 of 3", "mae_clip minus clip: slope a decade"):
        assert text in shown
    assert sorted(p.name for p in written.glob("*.png")) == ["gain-mae_clip-d0.25.png", "gain-mae_clip-d1.png"]
    rows = list(csv.DictReader((written / "gains.csv").open()))
    points = [p for line in json.loads((written / "analysis.json").read_text())["lines"] for p in line["points"]]
    assert [float(row["gain"]) for row in rows] == [p["value"] for p in points] and len(rows) == 32
    assert all(float(row["low"]) < float(row["gain"]) < float(row["high"]) for row in rows)


def test_one_seed_is_said(tmp_path, monkeypatch):
    to = made_up.folder(tmp_path / "one", monkeypatch, sizes=(1000, 4000), pools=("max",), seeds=1)
    page.write(to)
    assert "One seed: nothing here has an interval" in (to / "index.html").read_text()
    assert all(row["interval"] is None for row in json.loads((to / "analysis.json").read_text())["declared"])


def remade(tmp_path, monkeypatch, change, **axes):
    """A small made-up study whose kept results are changed, read again."""
    to = made_up.folder(tmp_path / "study", monkeypatch, **dict(sizes=(1000, 4000, 16000), pools=("max",)) | axes)
    for path in (to / "runs").glob("*.json"):
        kept = json.loads(path.read_text())
        change(path.stem, kept)
        path.write_text(json.dumps(kept))
    page.write(to)
    return to, json.loads((to / "analysis.json").read_text())


@pytest.mark.parametrize("better", ["higher", "none", "lower"])
def test_a_gain_is_more_unless_less_is_better(tmp_path, monkeypatch, better):
    def change(name, kept):
        kept["metrics"][kept["outcome"]] = (
            10.0 + name.startswith("mae") + 20 * (int(kept["id"].split("-n")[1].split("-")[0]) ** -0.4)
        )
        kept |= {"better": better, "unit": "nats", "items": None}

    to, numbers = remade(tmp_path, monkeypatch, change)
    assert numbers["declared"][0]["value"] == pytest.approx(-1 if better == "lower" else 1)
    assert "hold the chance of runs alone" in (to / "index.html").read_text()
    laws = [law for law in numbers["laws"] if law["arm"] == "clip"]
    assert bool(laws) == (better == "lower") and all(law["c"] == pytest.approx(0.4, abs=0.05) for law in laws)


@pytest.mark.parametrize(
    "axes", [dict(diversities=(0.25, 1.0), seeds=2), dict(diversities=(1.0,), seeds=3, weights=(0.1,))]
)
def test_a_page_can_be_written_whichever_runs_are_done(tmp_path, monkeypatch, axes):
    made_up.folder(tmp_path / "study", monkeypatch, sizes=(1000, 4000), **axes)
    made = plan.read(tmp_path / "study")
    found, _ = results.read(tmp_path / "study", made)
    lots = random.Random(0)
    some = [lots.sample(range(len(found)), lots.randint(1, len(found) - 1)) for _ in range(60)]
    for there in [range(n) for n in range(len(found))] + some:
        done = [found[i] for i in sorted(there)]
        missing = {r.run.id: results.NOT_RUN for r in found if r not in done}
        numbers = analysis.analyse(analysis.Study(made, done, missing))
        json.dumps(numbers, allow_nan=False)
        assert page.table(numbers) and f"{len(done)}" in page.html(made, numbers, {}, "study")


def test_a_run_without_a_number_is_missing_and_the_page_stands(tmp_path, monkeypatch):
    def change(name, kept):
        if name == "clip-n1000-d1-max-examples-s0":
            kept["metrics"][kept["outcome"]] = math.nan
        kept["metrics"]["retrieval/text_to_image_R@1"] = math.inf

    _, numbers = remade(tmp_path, monkeypatch, change)
    assert numbers["runs"]["missing"] == {"clip-n1000-d1-max-examples-s0": "its outcome is not a number"}
    assert not any("R@1" in row["what"] for row in numbers["others"])


def test_accuracies_of_training_are_not_looked_at_besides(tmp_path, monkeypatch):
    def change(name, kept):
        kept["metrics"] |= {"linear_probe/top1": 40.0, "linear_probe/train_top1": 99.0, "val/image_to_text_top1": 70.0}

    _, numbers = remade(tmp_path, monkeypatch, change)
    looked = {row["what"].split(", ")[1].split(":")[0] for row in numbers["others"] if ", " in row["what"]}
    assert looked == {"grounding/gradcam_pointing", "linear_probe/top1", "zero_shot_unseen/top1"}


def test_each_diversity_may_have_items_of_its_own(tmp_path, monkeypatch):
    def change(name, kept):
        kept["items"]["items"] = "few" if "-d0.25-" in name else "all"

    to, numbers = remade(tmp_path, monkeypatch, change, diversities=(0.25, 1.0))
    assert numbers["item_sets"]["sets"] == 2 and numbers["item_sets"]["known"] == numbers["item_sets"]["gains"]
    assert "hold the chance of runs and of items" in (to / "index.html").read_text()
    declared = numbers["declared"][0]
    assert declared["within"][0] < declared["value"] < declared["within"][1]
    assert 0 <= declared["lack_of_fit"] <= 1 and 0 <= declared["seeds_differ"] <= 1
