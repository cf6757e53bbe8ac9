"""A run that teaches itself: the teacher in the checkpoint, resumed exactly, split like the parameters, begun anew."""

import shutil
import types

import jax
import numpy as np
import pytest

from maeclip_jax.params import flatten
from maeclip_jax.preflight import estimate
from maeclip_jax.run import checkpoint, step
from maeclip_jax.run.origin import Beginning
from maeclip_jax.run.startup import Startup
from tests import runs, torture

ARG = "objective=tips,steps=3,save=1,evals=false"
SETTINGS = {"mesh.fsdp": 4, "microbatches": "2", "checkpoint.keep_last": 3}


def made(workdir, **settings):
    return runs.run(workdir, ARG, 8, **SETTINGS, **settings)


@pytest.fixture(scope="module", autouse=True)
def partitioner():
    with runs.compilable():
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Three steps of TIPS on eight devices, in two parts each."""
    return made(tmp_path_factory.mktemp("teacher") / "run")


def test_a_stopped_run_has_the_same_teacher_afterwards(reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    for path in (run / "checkpoints" / "3", run / "checkpoints" / "2"):
        shutil.rmtree(path)
    made(run)
    torture.compare(run, reference)  # every array of the last checkpoint, bit by bit
    arrays = torture.arrays(run)
    assert {p.split("/")[1] for p in arrays if p.startswith("teacher/")} == {"params", "centre"}
    first = checkpoint.read_numpy(run / "checkpoints" / "1" / "state")
    centre, moved = (x["teacher/centre/patch_head"] for x in (first, arrays))
    assert np.abs(centre).max() > 0 and np.abs(moved - centre).max() > 0
    kernel = "image/embed_image/patch/kernel"
    own, teacher = arrays[f"params/{kernel}"], arrays[f"teacher/params/{kernel}"]
    assert np.abs(own - teacher).max() > 0  # it follows the parameters
    was = first[f"teacher/params/{kernel}"]
    second = checkpoint.read_numpy(run / "checkpoints" / "2" / "state")[f"teacher/params/{kernel}"]
    now = checkpoint.read_numpy(run / "checkpoints" / "2" / "state")[f"params/{kernel}"]
    np.testing.assert_allclose(second, 0.994 * was + 0.006 * now, atol=1e-6)


def test_it_is_split_as_the_parameters_are_and_in_the_pre_flight():
    built = step.build(runs.config(ARG, **SETTINGS), epoch=40, devices=jax.devices())
    params = {p: x.sharding.spec for p, x in flatten(built.abstract.params).items()}
    teacher = flatten(built.abstract.teacher)
    assert {p.split("/")[0] for p in teacher} == {"params", "centre"}
    for path, x in teacher.items():
        assert x.sharding.spec == (params[path.removeprefix("params/")] if path.startswith("params/") else jax.P())
    assert "fsdp" in params["distil_head/prototypes"]
    assert 0 < estimate.local_gib(built.abstract.teacher) < estimate.local_gib(built.abstract.params)
    clip = step.build(runs.config("objective=clip"), epoch=40, devices=jax.devices()[:1])
    assert clip.abstract.teacher is None


def test_it_begins_as_a_copy_of_the_parameters_that_a_run_begins_with(reference):
    config = runs.config("objective=silc,steps=1,evals=false", init_from=str(reference))
    built = step.build(config, epoch=40, devices=jax.devices()[:1])
    nothing = types.SimpleNamespace(latest=lambda: None)
    begun, *_ = Beginning(config, built, 40, None, nothing, {}).state(Startup(0))
    want = flatten(begun.params)
    for path, x in flatten(begun.teacher["params"]).items():
        np.testing.assert_array_equal(x, want[path])
    trained = checkpoint.read_parameters(reference)[0]["image/embed_image/patch/kernel"]
    np.testing.assert_array_equal(want["image/embed_image/patch/kernel"], trained)


def test_the_average_for_evaluation_is_another():
    built = step.build(runs.config(ARG, **{"optim.ema": 0.5}), epoch=40, devices=jax.devices()[:1])
    assert set(flatten(built.abstract.ema)) == set(flatten(built.abstract.params))
    assert built.abstract.teacher is not None


def test_a_collapse_is_warned_of_once(tmp_path, caplog):
    arg = "objective=silc,steps=2,save=2,evals=false,examples=false"
    runs.run(tmp_path / "run", arg, 1, **{"model.distil.teacher_temperature": 1e6})
    said = [m for m in (r.getMessage() for r in caplog.records) if "assigns pictures to all 512 prototypes alike" in m]
    assert len(said) == 1 and said[0].startswith("step 1: the teacher ")
