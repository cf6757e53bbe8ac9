"""The mesh, the specs and what a device holds. That none of it changes a loss: run/test_curves.py."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import sharding
from maeclip_jax.params import flatten
from maeclip_jax.run.step import TrainStep, build
from tests import runs

P = jax.P


def on(objective: str, *, batch: int = 48, **settings) -> TrainStep:
    """The program of an experiment on 8 devices."""
    return build(runs.config(f"objective={objective},batch={batch}", **settings), epoch=40)


def test_one_size_of_a_mesh_may_be_what_is_left():
    mesh = sharding.make_mesh(dict(replica=-1, fsdp=4))
    assert dict(mesh.shape) == dict(replica=2, fsdp=4, tensor=1)
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert dict(sharding.make_mesh({}, jax.devices()[:1]).shape) == dict(replica=1, fsdp=1, tensor=1)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (dict(replica=3), "mesh replica=3 x fsdp=1 x tensor=1 needs 3 devices, but there are 8; set one axis"),
        (dict(replica=-1, fsdp=3), "needs 6 devices, but there are 8"),
        (dict(replica=-1, fsdp=16), "needs 16 devices, but there are 8"),
        (dict(replica=-1, fsdp=-1), "one of replica, fsdp, tensor may be -1"),
        (dict(replica=0), "sizes are positive"),
        (dict(data=8), "unknown mesh axis 'data'; valid: replica, fsdp, tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, text):
    with pytest.raises(UserError, match=re.escape(text)):
        sharding.make_mesh(shape)


def test_a_mesh_is_in_the_order_in_which_processes_read_data():
    """Two devices a process; on a torus, the interconnect's order may scatter a process over the batch axis."""

    def devices(*processes):
        return np.array([SimpleNamespace(process_index=p) for p in processes], object)

    assert sharding.in_process_order(devices(0, 0, 1, 1).reshape(2, 2, 1))
    assert sharding.in_process_order(devices(0, 0, 1, 1).reshape(1, 2, 2))
    assert not sharding.in_process_order(devices(0, 1, 0, 1).reshape(4, 1, 1))  # scattered
    assert not sharding.in_process_order(devices(1, 1, 0, 0).reshape(4, 1, 1))  # the wrong way round
    assert not sharding.in_process_order(devices(0, 0, 1, 1).reshape(1, 1, 4))  # a shard of two processes


def test_tensor_over_several_processes_is_refused_with_what_one_has():
    """Counted from the devices given: a pre-flight compiles in one process for a slice of many."""
    devices = [SimpleNamespace(process_index=i // 4, id=i) for i in range(16)]
    with pytest.raises(UserError, match="tensor=8 reaches over several processes; valid: divisors of 4, the devices"):
        sharding.make_mesh(dict(replica=2, tensor=8), devices)


def test_a_batch_must_divide():
    mesh = sharding.make_mesh(dict(replica=2, fsdp=4))
    sharding.check_batch(16, mesh)
    for size in (12, 0):
        with pytest.raises(UserError, match="does not divide over 8 batch shards; use a multiple of 8"):
            sharding.check_batch(size, mesh)


def test_the_first_rule_that_matches_decides():
    mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
    kernels = {"qkv": {"kernel": jnp.zeros((3, 8, 24))}, "down": {"kernel": jnp.zeros((3, 8, 24))}}
    tree = {"blocks": kernels, "norm": {"scale": jnp.zeros(8)}}
    specs = sharding.specs(tree, mesh, ((r".*qkv/kernel", ("fsdp", "tensor")), (r".*kernel", ("tensor",)), (r".*", ())))
    assert specs["blocks"]["qkv"]["kernel"] == P(None, "fsdp", "tensor")  # the layer axis stays whole
    assert specs["blocks"]["down"]["kernel"] == P(None, None, "tensor")
    assert specs["norm"]["scale"] == P()
    alone = sharding.make_mesh(dict(), jax.devices()[:1])
    assert sharding.specs(tree, alone)["blocks"]["qkv"]["kernel"] == P()  # one device: nothing to split


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ((("a/.*", ("fsdp",)),), "no sharding rule matches parameter 'b/bias'"),
        (((".*", ()), ("c/.*", ())), "sharding rule 'c/.*' "),
        ((("a/.*", (None, None, "fsdp")), (".*", ())), "sharding rule gives 'a/kernel' 3 axes, but it has 2"),
        ((("a/.*", ("fsdp", None)), (".*", ())), "parameter 'a/kernel' (6, 8): 6 does not divide by fsdp=4"),
        ((("a/(", ()),), "sharding rule 'a/(' is not a regular expression"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(rules, text):
    tree = {"a": {"kernel": jnp.zeros((6, 8))}, "b": {"bias": jnp.zeros(8)}}
    with pytest.raises(UserError, match=re.escape(text)):
        sharding.specs(tree, sharding.make_mesh(dict(replica=2, fsdp=4)), rules)


def test_heads_that_do_not_divide_over_tensor_are_a_user_s_error():
    with pytest.raises(UserError, match=r"heads do not divide over mesh.tensor=8; valid: mesh.tensor=1, 2"):
        on("clip", **{"mesh.replica": 1, "mesh.fsdp": 1, "mesh.tensor": 8, "model.compute.attention": "fused"})


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_device_holds_its_share_and_the_unsharded_remainder(optimizer):
    """FSDP over 8: bytes of parameters and optimizer on each device, counted from what is really there."""
    prog = on("mae_clip", **{"mesh.replica": 1, "mesh.fsdp": 8, "optim.name": optimizer})
    state = prog.init()
    tree = {"params": state.params, "opt_state": state.opt_state}
    split, whole = 0, 0
    for leaf in jax.tree.leaves(tree):
        if leaf.sharding.is_fully_replicated:
            whole += leaf.nbytes
        else:
            split += leaf.nbytes
    assert split > 3 * whole  # most of even the smallest model is split
    for device in jax.devices():
        held = [s.data.nbytes for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards if s.device == device]
        assert sum(held) == split // 8 + whole
    # Moments lie as their parameters do.
    by_path = flatten(prog.param_specs)
    assert any("fsdp" in str(s) for s in by_path.values())
    if optimizer == "adamw":
        moments = {p: x.sharding.spec for p, x in flatten(state.opt_state).items() if "/mu/" in p}
        assert moments and all(by_path[p.split("/mu/")[1]] == s for p, s in moments.items())


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_no_device_ever_sees_all_logits(loss, parts):
    """48 pairs on 8 devices: logits are [6, 48] in the compiled program, [6, 24] in 2 parts, and [48, 48] nowhere."""
    limit = 4 * 6 * 48 / parts / 2**20
    prog = on("clip", **{"mesh.replica": 1, "mesh.fsdp": 8, "model.loss": loss, "model.contrast_mib": limit})
    batch = dict(prog.inputs)
    with jax.set_mesh(prog.mesh):
        text = prog.step.lower(prog.abstract, batch).compile().as_text()
    assert ("f32[6,48]" in text) == (parts == 1)
    assert ("f32[6,24]" in text) == (parts == 2)
    assert "[48,48]" not in text


def test_sigmoid_losses_are_the_same_on_1_and_8_devices(tmp_path):
    arg = "objective=clip,steps=3,save=3,evals=false"
    one, eight = (
        runs.series(runs.run(tmp_path / str(n), arg, n, **{"model.loss": "sigmoid", "model.keep": 0.5})) for n in (1, 8)
    )
    np.testing.assert_allclose([*one.values()], [*eight.values()], rtol=2e-5)
