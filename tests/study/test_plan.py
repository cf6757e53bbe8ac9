"""Plans: which runs, matched how, refused when too dear; every mistake is one line."""

import json
import shlex

import numpy as np
import pytest

from maeclip_jax import config as configs
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders.scenes import build
from maeclip_jax.study import command, design, plan, spending

TINY = dict(sizes=(20, 40), pools=("gap", "max"), seeds=2, examples=64, runlocal=True)


def flops_of(config):
    """Stands for a traced program: the decoder's passes make a step 1.5 times as dear."""
    return 1.5e9 if "decoder_tower" in config.model else 1e9


@pytest.fixture(scope="module")
def runs():
    axes = design.Axes(**TINY, weights=(0.1, 0.5), tune={"optim.lr": (1e-3, 2e-3)})
    return axes, design.runs(axes, flops_of)


def test_arms_are_matched_by_examples_and_by_flops(runs):
    _, found = runs
    main = [r for r in found if r.phase == design.MAIN]
    assert len(main) == 2 * 2 * 2 * 3 and len({r.id for r in found}) == len(found)
    by = {(r.arm, r.matched): r for r in main}
    assert set(by) == {("clip", ("examples",)), ("clip", ("flops",)), ("mae_clip", ("examples", "flops"))}
    dear = by["mae_clip", ("examples", "flops")]
    longer = by["clip", ("flops",)]
    assert (dear.steps, longer.steps, by["clip", ("examples",)].steps) == (4, 6, 4)
    assert longer.flops == dear.flops == 6e9 and longer.settings["total"] == "6.00000000e+09 FLOPs"


def test_arms_and_pools_of_a_cell_share_their_seed_and_cells_do_not(runs):
    _, found = runs
    seeds = {}
    for r in found:
        seeds.setdefault((r.size, r.seed), set()).add(r.settings["seed"])
        assert r.settings["data.source.seed"] == r.seed and f"pairs={r.size}," in r.config
    assert all(len(of) == 1 for of in seeds.values()) and len(set.union(*seeds.values())) == len(seeds)


def test_weights_are_swept_at_the_ends_and_every_arm_is_tuned_alike(runs):
    _, found = runs
    swept = [r for r in found if r.phase == design.WEIGHT]
    assert {(r.size, r.pool, r.settings["model.weights.image"]) for r in swept} == {(20, "max", 0.5), (40, "max", 0.5)}
    tried = [(r.arm, r.settings["optim.lr"], r.size) for r in found if r.phase == design.TUNE]
    assert sorted(tried) == [(arm, lr, 20) for arm in ("clip", "mae_clip") for lr in (1e-3, 2e-3)]


def test_an_unfinished_study_holds_whole_repetitions(runs):
    """Tuning comes first, and then all cells of a seed before those of the next."""
    _, found = runs
    order = [(r.phase != design.TUNE, r.seed) for r in found]
    assert order == sorted(order) and [r.phase for r in found].count(design.TUNE) == 4
    first = [r for r in found if r.phase != design.TUNE and r.seed == 0]
    assert {(r.arm, r.size, r.pool) for r in first} == {(r.arm, r.size, r.pool) for r in found}


def test_flops_are_counted_whatever_mesh_the_runs_will_have():
    """A plan for a slice is made on a laptop: the mesh of a large scale needs more devices than that has."""
    config = configs.load("experiments/clip.py:runlocal", {"mesh.fsdp": 16})
    assert spending.flops_of(config) == spending.flops_of(configs.load("experiments/clip.py:runlocal")) > 1e6
    assert config.mesh.fsdp == 16


def test_a_plan_above_the_budget_names_what_to_cut(runs):
    axes, found = runs
    speed = spending.Speed({"clip": 60.0, "mae_clip": 90.0}, 0.0, 0, "assumed")
    need = spending.hours(found, speed)
    spending.check(axes, found, speed, need)
    with pytest.raises(UserError) as error:
        spending.check(axes, found, speed, need * 0.7)
    said = str(error.value)
    assert said.startswith(f"{len(found)} runs take {need:.3g} h (assumed), above --budget={need * 0.7:g}h")
    assert "POOL without" in said or "MATCH=" in said
    assert spending.budget("10h") == 10


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--arms=clip,clap"], "unknown arm 'clap' (did you mean 'clip'?)"),
        (["--arms=clip"], "a study compares two or more"),
        (["--arms=clip,mae"], "arm 'mae' has no recipe that is matched with 'clip': optim."),
        (["--match=steps"], "unknown match 'steps'"),
        (["--diversity=0,1"], "valid: shares above 0"),
        (["--sizes=1k,1000"], "sizes=1000,1000: one value or more, each once"),
        (["--sizes=1.5"], "argument --sizes: '1.5'; valid: a whole number"),
        (["--budget=10"], "--budget='10'; valid: hours, such as 10h"),
        (["--part=4/4"], "--part='4/4'; valid: I/N"),
        (["--tune=optim.lr"], "valid: a setting and its numbers"),
        (["--topology=v6e-256"], "valid with --dry_run"),
        (["--data=cc12m", "--diversity=0.5,1"], "diversity of cc12m goes by clusters"),
        (["--arms=clip,flip", "--weights=0.1,0.5"], "no arm has a reconstruction to weigh"),
        (["--outcome=knn/top1"], "arm 'clip' has no evaluation 'knn'"),
        (["--config=experiments/clip.py"], "a study names its experiments by --arms"),
        (["--jobs=0"], "--jobs=0; valid: 1 or more"),
        (["--weights=-1"], "weights=-1.0; valid: above 0"),
        (["--weights=4,1", "--match=flops"], "several --weights are compared by examples"),
        (["--tune=optim.learning=1e-3"], "unknown setting config.optim: name 'learning'"),
        (["--sd=0"], "--sd=0; valid: points above 0"),
        (["--price=-2"], "--price=-2; valid: 0 or more"),
        (["--diversity=0.001,1"], "diversity=0.001 leave 0 of 64 pairs"),
    ],
)
def test_a_mistake_is_one_line(words, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(spending, "flops_of", flops_of)
    assert command.main(["--runlocal", "--sizes=20,40", *words, f"--out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.fixture
def assumed(monkeypatch):
    monkeypatch.setattr(spending, "flops_of", flops_of)
    speed = spending.Speed({"clip": 1.0, "mae_clip": 1.5}, 2.0, 256, "assumed")
    monkeypatch.setattr(spending, "speed", lambda *_: speed)


def test_a_dry_run_prints_what_it_would_cost_and_writes_nothing(assumed, tmp_path, capsys):
    words = ["--runlocal", "--sizes=20,40", "--dry_run", "--topology=v6e-256", "--price=2", f"--out={tmp_path / 'no'}"]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert "chip-hours" in said and "at the given price" in said and "80 % power" in said
    assert "declared: mean of mae_clip minus clip, max, matched by flops" in said
    assert command.main([*words, "--seeds=1"]) == 0
    assert "one seed: no effect has an interval" in capsys.readouterr().out
    assert not (tmp_path / "no").exists()


def test_list_gives_the_runs_of_a_plan_by_index(assumed, tmp_path, capsys):
    words = ["--runlocal", "--sizes=20,40", f"--out={tmp_path / 'no'}"]
    assert command.main([*words, "--list"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in rows] == list(range(len(rows))) and len({row[1] for row in rows}) == len(rows) > 8
    assert all(row[2] == shlex.join(["python", "-m", "maeclip_jax.study", *words, f"--index={row[0]}"]) for row in rows)
    assert command.main([*words, f"--index={len(rows)}"]) == 2
    assert f"--index={len(rows)}: the plan has {len(rows)} runs; valid: 0 to {len(rows) - 1}" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_drawn_is_said_with_the_plan(assumed, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="leave 3 of 64 pairs"):
        plan.make(design.Axes(**TINY, diversities=(0.05, 1.0)), "cpu", 3.6, 0.0)
    few = design.Axes(**TINY | dict(data="scenes/mu"))
    large = design.Axes(**TINY | dict(data="scenes/mu", sizes=(20, 10**6)))
    monkeypatch.setenv("MAECLIP_DATA_DIR", str(tmp_path))
    elsewhere = plan.make(large, "cpu", 3.6, 0.0)
    assert "scenes/mu is not prepared here: whether it has 1,000,000 pairs was not checked" in plan.text(elsewhere)
    build("mu", str(tmp_path), workers=1)
    assert "not checked" not in plan.text(plan.make(few, "cpu", 3.6, 0.0))
    with pytest.raises(UserError, match="--size=1,000,000 is above the 256 records of scenes/mu"):
        plan.make(large, "cpu", 3.6, 0.0)


def test_every_draw_of_clusters_is_tried_with_the_plan(assumed, tmp_path, monkeypatch):
    """A quarter of uneven clusters holds enough records by some seeds and not by others."""
    monkeypatch.setenv("MAECLIP_DATA_DIR", str(tmp_path))
    build("mu", str(tmp_path), workers=1)
    sizes = [5, 6, 7, 8, 14, 60, 70, 86]
    np.savez(tmp_path / "k.npz", clusters=np.repeat(np.arange(8), sizes))
    asked = dict(TINY, data="scenes/mu", clusters=str(tmp_path / "k.npz"), diversities=(0.25,), sizes=(10, 30))
    said = []
    for seeds in range(1, 5):
        try:
            plan.make(design.Axes(**asked | dict(seeds=seeds)), "cpu", 3.6, 0.0)
        except UserError as e:
            said.append((seeds, str(e)))
    assert said and said[0][0] > 1 and "--diversity=0.25 leaves" in said[0][1]


def test_a_plan_is_read_as_it_was_made(assumed):
    made = plan.make(design.Axes(**TINY, diversities=(0.5, 1.0)), "cpu", 3.6, 0.0)
    read = json.loads(json.dumps(made))
    assert plan.axes_of(read) == design.Axes(**TINY, diversities=(0.5, 1.0))
    assert plan.runs_of(read) == plan.runs_of(made)
