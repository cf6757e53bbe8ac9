"""Checkpoints: which stay, what a half-written or damaged one does, layouts of layers, parameters of another run."""

import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.parallel.sharding import make_mesh
from maeclip_jax.params import flatten, stack_layers, unflatten, unstack_layers, with_layers_like
from maeclip_jax.run import checkpoint, train
from maeclip_jax.run.saving import PART_BYTES, Checkpoints
from maeclip_jax.run.warm_start import init_params
from maeclip_jax.workdir.identity import identity
from tests import runs, torture

ARG = "steps=12,save=6"
META = dict(step=0, batch_size=8, seed=0, seconds={})


def state(value: float, width: int = 4) -> dict:
    return {"params": {"a": {"kernel": jnp.full((2, width), value)}}, "step": jnp.asarray(int(value))}


def save(saved: Checkpoints, *steps: int) -> Checkpoints:
    for step in steps:
        saved.save(step, state(step), META | dict(step=step))
        saved.wait()
    return saved


def test_the_newest_stay_and_every_so_many_for_ever_also_after_a_restart(tmp_path):
    def open_again():
        return Checkpoints(tmp_path, keep_last=2, keep_every=4)

    save(open_again(), 1, 2, 3, 4, 5).close()
    assert open_again().steps() == [4, 5]
    saved = save(open_again(), 6, 7, 8, 9)
    assert saved.steps() == [4, 8, 9] and saved.latest() == 9
    saved.close()


@pytest.mark.parametrize(("better", "kept"), [("higher", [2, 4, 6]), ("lower", [3, 5, 6])])
def test_the_best_stay_also_after_a_restart(better, kept, tmp_path):
    """What an evaluation found is told after the checkpoint it belongs to, and again when a run continues."""
    values = {1: 50.0, 2: 90.0, 3: 10.0, 4: 80.0, 5: 20.0, 6: 60.0}
    settings = dict(keep_last=1, keep_best=2, best="val/top1")
    directions = {"val/top1": better}
    first = Checkpoints(tmp_path, **settings)
    for step in (1, 2, 3):
        save(first, step)
        first.record(step, {"val/top1": values[step], "val/loss": -values[step]}, directions)
    first.close()
    again = Checkpoints(tmp_path, **settings)
    for step in (1, 2, 3):
        again.record(step, {"val/top1": values[step]}, directions)
    for step in (4, 5, 6):
        save(again, step)
        again.record(step, {"val/top1": values[step]}, directions)
    assert again.steps() == kept
    again.close()


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_not_a_number_is_never_the_best(better, tmp_path):
    """A run that diverged keeps the checkpoint from before it did."""
    saved = Checkpoints(tmp_path, keep_last=1, keep_best=1, best="val/loss")
    for step, value in enumerate((0.5, 0.4, math.nan, 0.3, math.nan), 1):
        save(saved, step)
        saved.record(step, {"val/loss": value}, {"val/loss": better})
    assert saved.steps() == [{"higher": 1, "lower": 4}[better], 5]
    saved.close()


def test_a_metric_that_does_not_exist_is_no_best(tmp_path):
    saved = Checkpoints(tmp_path, keep_best=1, best="val/topp1")
    saved.record(3, {"retrieval/top1": 1.0}, {})  # another evaluation: nothing to say yet
    with pytest.raises(UserError, match=re.escape("unknown checkpoint.best 'val/topp1'; valid: val/loss, val/top1")):
        saved.record(3, {"val/top1": 1.0, "val/loss": 2.0}, {})


def test_a_metric_that_is_neither_better_nor_worse_is_no_best(tmp_path):
    saved = Checkpoints(tmp_path, keep_best=1, best="val/logit_scale")
    with pytest.raises(UserError, match="val/logit_scale': neither more nor less of it is better; valid: val/loss"):
        saved.record(3, {"val/logit_scale": 1.0, "val/loss": 2.0}, {"val/logit_scale": "none", "val/loss": "lower"})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(keep_last=0), "checkpoint.keep_last must be at least 1, got 0"),
        (dict(keep_best=2), "checkpoint.keep_best=2 needs checkpoint.best=<evaluation>/<metric>"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(settings, text, tmp_path):
    with pytest.raises(UserError, match=re.escape(text)):
        Checkpoints(tmp_path, **settings)


def test_a_half_written_checkpoint_is_never_seen_and_goes(tmp_path):
    save(Checkpoints(tmp_path), 3).close()
    shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp-77")
    again = Checkpoints(tmp_path)
    assert again.latest() == 3 and checkpoint.locate(tmp_path).name == "3"
    assert [p.name for p in tmp_path.iterdir()] == ["3"]
    again.close()


def test_saving_does_not_hold_the_loop_and_ends_before_the_next(tmp_path):
    """What was handed over is what is saved, also when the array is overwritten right after (donated)."""
    saved = Checkpoints(tmp_path)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    now = {"params": {"x": jnp.zeros((1000, 1000))}}
    for n in (1, 2):
        now = step(now)
        saved.save(n, now, META | dict(step=n))
    now = step(now)
    saved.close()
    for n in (1, 2):
        assert (checkpoint.read_numpy(tmp_path / str(n) / "state")["params/x"] == n).all()


def test_replicas_share_large_arrays_and_nothing_is_compiled_for_small_ones(tmp_path):
    """Left to itself, orbax 0.12.8 compiles a program for each shape and replica, here 168, before the first save."""
    whole = jax.sharding.NamedSharding(make_mesh({"replica": 8}, jax.devices()), jax.P())
    small = {str(n): np.arange(8.0 * n, dtype=np.float32).reshape(8, n) for n in range(1, 22)}
    given = {"small": small, "large": np.arange(8 * PART_BYTES // 4, dtype=np.float32)}
    state, events, saved = jax.device_put(given, whole), [], Checkpoints(tmp_path)

    def listen(event, seconds, **_):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        saved.save(1, state, META)
        saved.close()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert events.count("/jax/core/compile/backend_compile_duration") == 8  # the parts of the large array
    kept = flatten(ocp.StandardCheckpointHandler().metadata(tmp_path / "1" / "state").tree)
    assert {path: array.storage.chunk_shape for path, array in kept.items()} == {
        "large": (PART_BYTES // 4,), **{f"small/{name}": array.shape for name, array in small.items()}
    }  # fmt: skip
    read, _ = checkpoint.read(tmp_path / "1", state)
    jax.tree.map(np.testing.assert_array_equal, read, given)


@pytest.mark.parametrize("part", ["state/manifest.ocdbt", "state/_METADATA", "meta", "state/d", "meta/metadata"])
def test_a_damaged_checkpoint_is_named_in_one_line(part, tmp_path):
    save(Checkpoints(tmp_path), 3).close()
    path = tmp_path / "3" / part
    if path.is_dir():
        shutil.rmtree(path)
        shutil.rmtree(tmp_path / "3" / "state" / "ocdbt.process_0", ignore_errors=True)
    else:
        path.write_bytes(b"\x00" * 10)
    with pytest.raises(UserError) as e:
        checkpoint.read(tmp_path / "3", state(0))
    assert re.match(rf"checkpoint {re.escape(str(tmp_path / '3'))} cannot be read \(.*\); move it away", str(e.value))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save(Checkpoints(tmp_path), 3).close()
    with pytest.raises(UserError, match=r"has 'params/a/kernel' of shape \(2, 4\), this config makes \(2, 5\)"):
        checkpoint.read(tmp_path / "3", state(0, width=5))
    other = {"params": {"b": {"kernel": jnp.zeros((2, 4))}}, "step": jnp.zeros((), int)}
    with pytest.raises(UserError) as e:
        checkpoint.read(tmp_path / "3", other)
    assert "is of another model or optimizer: it lacks 1 arrays (params/b/kernel) and has 1 others (params/a/" in str(
        e.value
    )
    assert "use another --workdir, or config.init_from" in str(e.value)


def test_locate(tmp_path):
    save(Checkpoints(tmp_path / "checkpoints"), 3, 12).close()
    newest = tmp_path / "checkpoints" / "12"
    assert checkpoint.locate(tmp_path) == checkpoint.locate(tmp_path / "checkpoints") == newest
    assert checkpoint.locate(newest) == newest
    assert checkpoint.locate(tmp_path / "checkpoints" / "3").name == "3"
    with pytest.raises(UserError, match="no checkpoint in '/nowhere/at/all'; valid: a workdir with checkpoints/<step>"):
        checkpoint.locate("/nowhere/at/all")


# On real runs.


def test_layers_are_unrolled_on_the_way_and_nothing_changes(tmp_path, capsys):
    """Scanned on eight devices, from step 6 on unrolled on one: the same losses to float tolerance; back, bit-equal."""
    reference = runs.whole(8, ARG)
    run = runs.copy(reference, tmp_path / "run", step=6)
    runs.run(run, ARG.replace("save", "evals=false,save"), 1, **{"model.compute.layers": "unroll"})
    assert "laid out the other way: converting" in capsys.readouterr().out
    have, want = runs.series(run), runs.series(reference)
    np.testing.assert_allclose([*have.values()], [*want.values()], rtol=2e-5)
    scanned, unrolled = (checkpoint.read_numpy(r / "checkpoints" / "12" / "state") for r in (reference, run))
    assert any("/block_01/" in p for p in unrolled) and not any("/block_01/" in p for p in scanned)
    there = checkpoint.read_numpy(reference / "checkpoints" / "6" / "state")
    back = stack_layers(unstack_layers(there))
    assert {p: v.tobytes() for p, v in back.items()} == {p: v.tobytes() for p, v in there.items()}


def abstract(arg: str):
    """Real, fresh parameters of an experiment."""
    from maeclip_jax.run.step import build

    return build(runs.config(arg), epoch=40).init().params


@pytest.fixture(scope="module")
def mae_clip():
    return abstract("objective=mae_clip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP checkpoint, as a run of another seed and layout would have written it."""
    params = unstack_layers({p: np.asarray(x) + 0.5 for p, x in flatten(abstract("objective=clip")).items()})
    folder = tmp_path_factory.mktemp("clip") / "checkpoints"
    saved = Checkpoints(folder)
    saved.save(7, {"params": unflatten(params), "step": jnp.asarray(7)}, META)
    saved.close()
    return folder.parent


def test_clip_becomes_mae_clip_by_path(clip, mae_clip):
    params, report = init_params(str(clip), ((r"(.*)", r"\1"),), mae_clip)
    fresh = {p for p in flatten(mae_clip) if p.startswith("decoder/")}
    flat, before = flatten(params), flatten(mae_clip)
    count = len(before)
    loaded = f"{count - len(fresh)} of {count} parameters loaded"
    assert report == f"init_from {clip}: {loaded}; fresh: {len(fresh)} (decoder); unused: none"
    for path, value in flat.items():
        if path in fresh:
            assert np.array_equal(value, before[path])
        else:
            assert not np.array_equal(value, before[path]) and value.sharding == before[path].sharding
    source = with_layers_like(checkpoint.read_parameters(clip)[0], before)
    assert all(np.array_equal(flat[p], source[p]) for p in source)


def test_init_rules_drop_and_rename(clip, mae_clip):
    rules = ((r"text/.*", ""), (r"image_head/project/(.*)", r"text_head/project/\1"), (r"(image/.*)", r"\1"))
    params, report = init_params(str(clip), rules, mae_clip)
    before, after = flatten(mae_clip), flatten(params)
    moved = {p for p in after if not np.array_equal(after[p], before[p])}
    assert moved == {p for p in before if p.startswith("image/")} | {"text_head/project/kernel"}
    assert "fresh: " in report and "text" in report
    _, report = init_params(str(clip), ((r"image/(.*)", r"picture/\1"), (r"(.*)", r"\1")), mae_clip)
    assert re.search(r"unused: \d+ \(picture\)", report)


def test_what_cannot_be_loaded_is_said(clip, mae_clip):
    with pytest.raises(
        UserError, match=r"none of its \d+ parameters has a place here; theirs look like '.*', ours like"
    ):
        init_params(str(clip), ((r"(.*)", r"else/\1"),), mae_clip)
    other = {"text_head": {"project": {"kernel": jax.device_put(np.zeros((3, 3), np.float32))}}}
    with pytest.raises(
        UserError, match=r"'text_head/project/kernel' has shape \(32, 32\) there and \(3, 3\) here; drop it"
    ):
        init_params(str(clip), ((r"(.*)", r"\1"),), other)
    with pytest.raises(UserError, match=re.escape("init_rules rule ('(', '') is not a regular expression")):
        init_params(str(clip), (("(", ""),), mae_clip)


def test_a_run_goes_on_from_another_workdir(tmp_path, capsys):
    """config.resume: state, position and schedule of the named step of another run; nothing is written there."""
    reference = runs.whole(8, ARG)
    before = sorted(p for p in reference.rglob("*"))
    runs.run(tmp_path / "run", ARG, resume=str(reference / "checkpoints" / "6"))
    assert f"continuing from step 6 of 12 ({reference}/checkpoints/6)" in capsys.readouterr().out
    assert sorted(p for p in reference.rglob("*")) == before
    want = runs.series(reference)
    assert runs.series(tmp_path / "run") == {s: want[s] for s in range(7, 13)}
    have, there = (checkpoint.read_numpy(checkpoint.locate(w) / "state") for w in (tmp_path / "run", reference))
    assert {p: v.tobytes() for p, v in have.items()} == {p: v.tobytes() for p, v in there.items()}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            dict(batch_size=32),
            "was trained with batch_size 16, the config says 32: schedules and data order would change",
        ),
        (dict(seed=3), "was trained with seed 0, the config says 3"),
        (dict(total="6 steps"), "is past the end: total='6 steps' is 6 steps; raise total"),
    ],
)
def test_a_run_that_cannot_be_continued_says_why(settings, text, capsys):
    workdir = runs.whole(8, ARG)
    listing = sorted(workdir.rglob("*"))
    assert guarded(lambda: train.run(runs.config(ARG, **settings), workdir)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: checkpoint ") and text in line
    assert sorted(workdir.rglob("*")) == listing  # and nothing was touched


@pytest.mark.parametrize(
    ("arg", "settings", "text"),
    [
        (
            ARG,
            {"model.image_tower.depth": 3},
            "has 'params/image/trunk/blocks/attention/out/bias' of shape (2, 32), this config makes (3, 32)",
        ),
        (ARG, {"optim.name": "lion"}, "is of another model or optimizer: it lacks"),
        (f"objective=clip,{ARG}", {}, "is of another model or optimizer: it lacks 0 arrays (none) and has"),
    ],
)
def test_a_state_of_another_model_is_not_resumed(arg, settings, text, tmp_path, capsys):
    config = runs.config(arg, resume=str(runs.whole(8, ARG)), **settings)
    assert guarded(lambda: train.run(config, tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: checkpoint ") and text in line


@pytest.mark.parametrize(
    ("arg", "settings", "text"),
    [
        (f"{ARG},rest=pool=max", {}, "model.image_tower.pool is max, not gap; continue"),
        (f"objective=clip,{ARG}", {}, "objective is clip, not mae_clip; continue"),
        (ARG, {"model.weights.image": 0.5, "optim.freeze": ("text/.*",)},
         "optim.freeze is ['text/.*'], not []; model.weights.image is 0.5, not 2.0; continue"),
        (f"{ARG},count=41", {}, "data.source.count is 41, not 40; continue"),
        (f"{ARG},count=0", {}, "data.source.count is absent, not 40; continue"),
    ],
)  # fmt: skip
def test_another_run_does_not_continue_one(arg, settings, text, capsys):
    workdir = runs.whole(8, ARG)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    assert guarded(lambda: train.run(runs.config(arg, **settings), workdir)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {workdir} holds another run: {text}")
    assert line.endswith(
        f"config.resume={workdir} to go on from its state, or config.init_from={workdir} from its parameters"
    )
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_every_evaluation_that_could_be_the_best_has_its_checkpoint(tmp_path):
    """Saves every 6 steps and evaluations every 4: the best may be at 4 or 8."""
    settings = {"checkpoint.keep_last": 9, "checkpoint.keep_best": 1, "checkpoint.best": "val/loss"}
    train.run(runs.config(ARG, **settings), tmp_path / "run")
    assert torture.steps(tmp_path / "run") == [4, 6, 8, 12]


def test_what_makes_no_other_run_may_change(tmp_path):
    """Length, layout, reading and looking; config.json says so, and still where the run began, which is over."""
    workdir = runs.copy(runs.whole(8, ARG), tmp_path / "run")
    path = workdir / "config.json"
    recorded = json.loads(path.read_text()) | {"init_from": "runs/first"}
    del recorded["model"]["contrast_mib"], recorded["optim"]["end_lr"]  # written by a version that did not have them
    path.write_text(json.dumps(recorded))
    changed = {
        "total": "13 steps", "log.every": "2 steps", "checkpoint.keep_last": 1, "mesh.fsdp": 2, "data.max_bad": 0.2,
        "model.compute.layers": "unroll", "model.compute.remat": "full", "init_from": "",
        "max_skipped_in_row": 3,
    }  # fmt: skip
    config = runs.config(ARG, **changed)
    config.evals = {}
    config.data.num_threads = 1
    train.run(config, workdir)
    assert torture.steps(workdir)[-1] == 13
    now = json.loads(path.read_text())
    assert now == json.loads(config.to_json_best_effort()) | {"init_from": "runs/first"}


def test_data_may_move_as_long_as_it_has_a_name():
    def at(folder, name):
        return identity({"data": {"source": {"of": {"dir": folder, "name": name}}}})

    assert at("", "photos") == at("gs://bucket/data", "photos") != at("", "pets")
    assert at("data/photos/1.0.0", "") != at("data/pets/1.0.0", "")


def test_best_checkpoints_of_a_run(tmp_path):
    """keep_best by a metric that training writes, across a restart."""
    arg = "objective=clip,steps=6,save=1"
    settings = {"checkpoint.keep_last": 1, "checkpoint.keep_best": 1, "checkpoint.best": "val/loss",
                "checkpoint.every": "1 steps"}  # fmt: skip
    config = runs.config(arg, **settings)
    config.evals = {"val": config.evals.val}
    config.evals.val.every = "1 steps"
    train.run(config, tmp_path, devices=jax.devices()[:1])
    losses = {s: runs.metrics(tmp_path, s)["val/loss"] for s in range(1, 7)}
    # A loss says itself that less is better. What step 6 found came after the last save, which removes checkpoints.
    assert torture.steps(tmp_path) == sorted({min(range(1, 6), key=losses.get), 6})
    config.checkpoint.best = "val/los"
    with pytest.raises(UserError, match=re.escape("unknown checkpoint.best 'val/los'; valid: val/contrast, ")):
        train.run(config, tmp_path, devices=jax.devices()[:1])
    assert json.loads((tmp_path / "config.json").read_text())["checkpoint"]["keep_best"] == 1
