"""What follows from the table of chips: how many chips devices are, and which of them take a kernel of ours."""

import types

import numpy as np
import pytest

from maeclip_jax.parallel import chips
from maeclip_jax.report import cost
from maeclip_jax.run import setup


@pytest.mark.parametrize(
    "kind, count", [("TPU7x", 64), ("TPU v3", 64), ("TPU v4", 128), ("TPU v6 lite", 128), ("cpu", 128)]
)
def test_two_devices_may_be_one_chip(kind, count):
    assert chips.count(128, kind) == count
    run = types.SimpleNamespace(costs={"seconds": {"train": 3600.0}, "devices": 128, "device_kind": kind})
    assert cost.chip_hours(run) == count


@pytest.mark.parametrize(
    "kind, asked, made",  # attention and MLP
    [
        ("TPU v6 lite", ("fused", "auto"), ("fused_layer", "fused")),
        ("TPU v6 lite", ("fused_core", "xla"), ("fused_core", "xla")),
        ("TPU v5 lite", ("fused", "auto"), ("fused_layer", "xla")),
        ("TPU7x", ("fused", "auto"), ("fused_layer", "fused")),
        ("TPU v5", ("fused", "auto"), ("fused_core", "xla")),
        ("cpu", ("fused", "auto"), ("fused", "xla")),
        ("cpu", ("xla", "fused"), ("xla", "fused")),
        ("NVIDIA H100 80GB HBM3", ("cudnn", "auto"), ("cudnn", "xla")),
    ],
)
def test_fused_layers_are_of_chips_that_gain_by_them(kind, asked, made):
    mesh = types.SimpleNamespace(devices=np.asarray([types.SimpleNamespace(device_kind=kind)]))
    model, want = (
        {"width": 8, "compute": {"dtype": "bfloat16", "attention": words[0], "mlp": words[1]}}
        for words in (asked, made)
    )
    assert setup.for_chip(model, mesh) == want
    assert setup.for_chip({"width": 8}, mesh) == {"width": 8}  # a model elsewhere
