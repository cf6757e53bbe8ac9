"""The running average of parameters: its arithmetic, its place in a run, and who looks at it."""

import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maeclip_jax as mc
from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten
from maeclip_jax.preflight import estimate, table
from maeclip_jax.run import average, checkpoint, evaluate, export, step, train
from maeclip_jax.run.origin import Beginning
from maeclip_jax.run.startup import Startup
from tests import runs, torture
from tests.preflight.test_preflight import FOUND

ARG = "objective=clip,steps=4,save=1"
EVERY = {"evals.val.every": "2 steps", "evals.retrieval.every": "2 steps"}
SETTINGS = {
    "optim.ema": 0.5, "mesh.fsdp": 4, "microbatches": "2", "checkpoint.keep_last": 4,
    "model.image_tower.drop_path": 0.5, "model.text_tower.drop_path": 0.5, **EVERY,
}  # fmt: skip


def made(folder):
    """A run of four steps, over eight devices, in two parts of each device's rows, every step kept."""
    config = runs.config(ARG, **SETTINGS)
    with config.unlocked():
        config.evals.val.params = "both"
    train.run(config, folder, devices=jax.devices()[:8])
    return folder


@pytest.fixture(scope="module")
def reference():
    return made(runs.folder() / "average")


def state(workdir, step_: int) -> dict[str, np.ndarray]:
    return checkpoint.read_numpy(workdir / "checkpoints" / str(step_) / "state")


def of(workdir, step_: int, root: str) -> dict[str, np.ndarray]:
    return {p.removeprefix(f"{root}/"): x for p, x in state(workdir, step_).items() if p.startswith(f"{root}/")}


def test_it_is_the_sum_by_hand_and_warms_up():
    decay, params, mine = 0.3, [np.float64(1.0)], np.float64(1.0)
    found = jnp.float32(1.0)
    for n in range(12):
        params.append(params[-1] + n - 3)
        d = min(decay, (1 + n) / (10 + n))
        assert (d < decay) == (n < 3)
        mine = d * mine + (1 - d) * params[-1]
        found = average.update(decay, found, jnp.float32(params[-1]), jnp.int32(n))
        assert float(found) == pytest.approx(mine, rel=1e-6)
    assert average.update(0.0, None, jnp.ones(3), jnp.int32(0)) is None


def test_a_run_keeps_it_beside_its_parameters_and_split_like_them(reference):
    for n in (2, 3, 4):
        params, before, now = of(reference, n, "params"), of(reference, n - 1, "ema"), of(reference, n, "ema")
        assert params.keys() == now.keys()
        d = min(0.5, n / (9 + n))
        for path, x in params.items():
            np.testing.assert_allclose(now[path], d * before[path] + (1 - d) * x, rtol=1e-5, atol=1e-7)
    built = step.build(runs.config(ARG, **SETTINGS), epoch=40, devices=jax.devices()[:8])
    specs = {p: x.sharding.spec for p, x in flatten(built.abstract.ema).items()}
    assert specs == {p: x.sharding.spec for p, x in flatten(built.abstract.params).items()}
    assert any("fsdp" in s for s in specs.values())
    assert estimate.local_gib(built.abstract.ema) == estimate.local_gib(built.abstract.params) > 0


def test_an_interrupted_run_ends_with_the_same_bits(reference, tmp_path):
    run = runs.copy(reference, tmp_path / "run", step=2)
    for path in (run / "evals").glob("4*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    made(run)
    said = torture.compare(run, reference)
    assert any(p.startswith("ema/") for p in torture.arrays(run)) and len(said) == 4


def updated(x: float, ema: bool, was: step.State | None = None):
    """The state after a step of plain gradient descent on the sum of three weights, times x, after `was`."""
    counters = dict.fromkeys(("skipped", "skipped_in_row", "bad_records"), jnp.int32(0))
    was = was or step.State(jnp.int32(0), {"w": jnp.ones(3)}, (), counters, {"w": jnp.zeros(3)} if ema else None)
    transform = types.SimpleNamespace(update=lambda grads, state, params: (grads, state))
    batch = {"x": jnp.float32(x)}
    loss = lambda params, batch, rngs: (params["w"].sum() * batch["x"], {})  # noqa: E731
    return step.update(loss, transform, lambda n: 1.0, 0.9 if ema else 0.0, 0, (), was, batch)


def test_its_warm_up_counts_the_updates_that_were_applied():
    """As if those that were skipped had not been: after 20 of them the first one weighed 0.3 instead of 0.9."""
    state, plain = None, None
    for x in (np.nan,) * 20 + (0.5, np.nan, 0.25):
        state, _ = updated(x, True, state)
        plain = plain if np.isnan(x) else updated(x, True, plain)[0]
    assert int(state.counters["skipped"]) == 21 and int(state.step) == 23
    np.testing.assert_array_equal(state.ema["w"], plain.ema["w"])
    one, two = 1.5, 1.75
    np.testing.assert_allclose(plain.ema["w"], 2 / 11 * 0.9 * one + 9 / 11 * two, rtol=1e-6)


def test_a_step_that_is_skipped_leaves_it_alone_and_it_leaves_the_step_alone():
    for x, want in ((0.5, 0.9 * 1.5), (np.nan, 0.0)):
        (after, metrics), (plain, others) = updated(x, True), updated(x, False)
        np.testing.assert_allclose(after.ema["w"], want)
        np.testing.assert_array_equal(after.params["w"], plain.params["w"])
        assert plain.ema is None
        jax.tree.map(np.testing.assert_array_equal, metrics, others)


def test_evaluations_are_of_it_by_default_or_of_what_they_say(reference, tmp_path):
    found = runs.result(reference, 4)
    assert {n.partition("/")[0] for n in found["metrics"]} == {"val", "val_raw", "retrieval"}
    assert {n: s["params"] for n, s in found["settings"].items()} == {
        "val": "ema",
        "val_raw": "raw",
        "retrieval": "ema",
    }
    assert found["metrics"]["val/loss"] != found["metrics"]["val_raw/loss"]
    config = runs.config(ARG, **SETTINGS | {"resume": str(reference)})
    with config.unlocked():
        config.evals.val.params, config.evals.retrieval.params = "both", "raw"
    alone = evaluate.run(config, tmp_path / "raw", devices=jax.devices()[:8])
    for name in ("val/loss", "val_raw/loss"):
        assert alone[name] == found["metrics"][name]
    assert runs.result(tmp_path / "raw", 4)["settings"]["retrieval"]["params"] == "raw"


def test_models_exports_and_beginnings_take_it_and_say_so(reference, tmp_path, capsys):
    default, raw = mc.load(reference), mc.load(reference, params="raw")
    said = capsys.readouterr().out
    assert said.count("its running average of the parameters (optim.ema=0.5) is taken; params=raw takes") == 1
    assert "step 4, averaged" in repr(default) and "step 4, 67" in repr(raw)
    jax.tree.map(np.testing.assert_array_equal, flatten(default.params), of(reference, 4, "ema"))
    jax.tree.map(np.testing.assert_array_equal, flatten(raw.params), of(reference, 4, "params"))
    for which, line in (("auto", True), ("raw", False)):
        export.write(reference, "hf-vision", tmp_path / which, params=which)
        card = (tmp_path / which / "README.md").read_text()
        assert ("Parameters: their running average over the steps, decay 0.5" in card) == line
    one, other = ((tmp_path / w / "model.safetensors").read_bytes() for w in ("auto", "raw"))
    assert one != other
    config = runs.config(ARG, **{"init_from": str(reference), "optim.ema": 0.9, "mesh.fsdp": 2})
    built = step.build(config, epoch=40, devices=jax.devices()[:2])
    nothing = types.SimpleNamespace(latest=lambda: None)
    begun, *_ = Beginning(config, built, 40, None, nothing, {}).state(Startup(0))
    assert "parameters loaded, from their running average (optim.ema);" in capsys.readouterr().out
    for path, x in of(reference, 4, "ema").items():
        for root in (begun.params, begun.ema):
            np.testing.assert_array_equal(flatten(root)[path], x)
            assert flatten(root)[path].sharding == flatten(built.abstract.params)[path].sharding


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_is_not_switched_on_or_off_under_way(reference, tmp_path):
    run = runs.copy(reference, tmp_path / "run")
    off = {"optim.ema": 0.0, "evals": {}}
    assert refused(runs.run, run, ARG, **SETTINGS | off) == (
        f"optim.ema=0: the run in {run} keeps an average of its parameters, which would be lost; valid: optim.ema=0.5, "
        f"or a new --workdir with config.init_from={run}"
    )
    text = refused(runs.run, tmp_path / "off", ARG, **SETTINGS | off | {"resume": str(reference)})
    assert text.startswith(f"checkpoint {reference}/checkpoints/4 keeps an average of its parameters, which would be")
    plain = runs.copy(runs.whole(8, "objective=clip,steps=2,save=1,evals=false"), tmp_path / "plain")
    on = dict(arg="objective=clip,steps=2,save=1,evals=false", **{"optim.ema": 0.9998})
    assert refused(runs.run, plain, **on) == (
        f"optim.ema=0.9998: the run in {plain} keeps no average of its parameters; valid: optim.ema=0, or a new "
        f"--workdir with config.init_from={plain}, from whose parameters the average starts"
    )
    text = refused(runs.run, tmp_path / "on", **on, resume=str(plain))
    assert text.startswith(f"checkpoint {plain}/checkpoints/2 keeps no average of its parameters; valid: optim.ema=0, ")
    assert refused(mc.load, plain, params="ema").endswith(
        "keeps no average of its parameters (optim.ema); valid: params=raw"
    )


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0])
def test_what_is_no_decay_is_refused(value):
    text = refused(step.build, runs.config(ARG, **{"optim.ema": value}), epoch=40, devices=jax.devices()[:1])
    assert text == f"optim.ema={value:g}: valid: 0 (no average), or a decay between 0 and 1, such as 0.9998"


def test_parameters_that_an_evaluation_cannot_have_are_refused():
    def choose(averaged=True, **which):
        return average.evaluations({n: {"params": w} if w else {} for n, w in which.items()}, averaged)

    assert choose(a="raw", b="both", c="", d="auto") == {
        "b": ("b", "ema"), "c": ("c", "ema"), "d": ("d", "ema"), "a": ("a", "raw"), "b_raw": ("b", "raw"),
    }  # fmt: skip
    assert choose(False, a="", b="raw") == {"a": ("a", "raw"), "b": ("b", "raw")}
    assert refused(choose, a="rwa") == "unknown evals.a.params 'rwa' (did you mean 'raw'?); valid: auto, ema, raw, both"
    for which in ("ema", "both"):
        assert refused(choose, False, a=which) == (
            f"evals.a.params={which}: the run keeps no average of its parameters (optim.ema=0); valid: auto, raw"
        )
    assert refused(choose, a="both", a_raw="") == "evals.a.params=both makes a_raw, which is another entry of evals"
    assert mc.experiment("experiments/clip.py:runlocal", {"evals.val.params": "raw"}).evals.val.params == "raw"


def test_a_pre_flight_says_its_memory():
    assert table.rows(FOUND | {"average GiB": 1.5})["average"] == "1.500 GiB a device"
    assert "average" not in table.rows(FOUND)
