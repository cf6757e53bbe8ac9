"""What our kernels for TPUs take of a chip: its own memory, by the devices of the mesh in use."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from maeclip_jax.nn import attention_layer_device, kernels, mlp_device

MIB = 2**20


def of(kind):
    facts = {"device_kind": kind, "num_cores": 1, "platform": "tpu"}  # jax 0.10.0 has no platform
    device = AbstractDevice(**{field.name: facts[field.name] for field in dataclasses.fields(AbstractDevice)})
    return AbstractMesh((1,), ("one",), (AxisType.Auto,), abstract_device=device)


@pytest.mark.parametrize(
    "kind, mib",
    [
        ("TPU v5 lite", 112),
        ("TPU v5e", 112),
        ("TPU v6 lite", 112),
        ("TPU v5", 56),
        ("TPU v5p", 56),
        ("TPU7x", 56),
        ("TPU v4", 14),
    ],
)
def test_a_kernel_takes_what_the_devices_of_the_mesh_have(kind, mib):
    with jax.sharding.use_abstract_mesh(of(kind)):
        assert kernels.vmem_to_plan() == mib * MIB
        assert kernels.vmem_limit(mib * MIB) == min(mib + 8, mib / kernels.SHARE) * MIB
        for batch, tokens, width in ((128, 196, 768), (128, 196, 1024), (128, 256, 1280), (128, 64, 768)):
            for module, columns in ((mlp_device, 4 * width), (attention_layer_device, width)):
                plans = [module.plan(way, batch, tokens, width, columns) for way in ("forward", "backward")]
                assert all(plan is None or plan.memory <= mib * MIB for plan in plans)
                more = () if module is mlp_device else (64,)
                taken = module.worthwhile((batch, tokens), width, columns, *more, jnp.bfloat16)
                assert taken <= all(plans)


@pytest.mark.parametrize("kind, taken", [("TPU v6 lite", True), ("TPU7x", False), ("TPU v4", False)])
def test_a_layer_that_is_too_wide_for_a_chip_is_left_to_the_compiler(kind, taken):
    with jax.sharding.use_abstract_mesh(of(kind)):
        assert attention_layer_device.worthwhile((128, 196), 1024, 1024, 64, jnp.bfloat16) == taken
        assert mlp_device.worthwhile((128, 256), 1280, 5120, jnp.bfloat16) == taken


def test_what_is_interpreted_works_as_on_the_largest():
    assert kernels.vmem_to_plan() == 112 * MIB
