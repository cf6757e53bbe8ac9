"""Model FLOPs by counting the matrix products of a traced program, and the peak of the chip they run on.

FLOPs of a training step = 3 x the forward pass's matmul FLOPs (2 per multiply-add; the backward pass costs twice the
forward), counted from the jaxpr of the loss: attention in full, causal attention not halved, masked passes at their
kept tokens, scans by their length, rematerialised work not counted. MFU = that / (step time x devices x peak FLOP/s).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

FORMULA = (
    "MFU = 3 x forward matmul FLOPs (2 per multiply-add, counted from the program, remat not counted) "
    "/ (step seconds x devices x peak FLOP/s)"
)

# bf16 peak FLOP/s per jax device, by a piece of jax's device_kind. Source: Google's and NVIDIA's data sheets.
PEAK = {
    "v2": 22.5e12,
    "v3": 61.5e12,  # a jax device is a core: half a chip
    "v4": 275e12,
    "v5 lite": 197e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v5": 459e12,
    "v6 lite": 918e12,
    "v6e": 918e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}


def forward_matmul_flops(function: Callable, *args) -> float:
    """Matmul FLOPs of one call of `function` on the WHOLE (unsharded) arguments; arrays or ShapeDtypeStructs."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            ((lhs_c, _), _) = eqn.params["dimension_numbers"]
            contracted = math.prod(eqn.invars[0].aval.shape[i] for i in lhs_c)
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * contracted
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out_features
        elif name == "pallas_call" and eqn.params["cost_estimate"]:
            total += eqn.params["cost_estimate"].flops  # its body works on a piece, and is padded to the chip's tiles
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in eqn.params["branches"])
        else:
            times = eqn.params["length"] if name == "scan" else 1
            if name == "shard_map":  # its body has the shapes of one device
                times = math.prod(
                    eqn.params["mesh"].shape[axis]
                    for axis in eqn.params["newly_manual_axes"] or eqn.params["mesh"].axis_names
                )
            for value in eqn.params.values():
                for sub in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(sub, "jaxpr", sub)
                    if hasattr(inner, "eqns"):
                        total += times * _count(inner)
    return total


def peak_per_device(dtype: str) -> tuple[float, str]:
    """(peak FLOP/s of one device, where the number is from): the data sheet, or measured where there is none (CPU)."""
    device = jax.local_devices()[0]
    for piece, peak in PEAK.items():
        if piece.lower() in device.device_kind.lower():
            return peak, f"{device.device_kind} data sheet, bf16"
    return _measured(jnp.dtype(dtype)), f"{device.device_kind}: measured here on a {dtype} matmul of 1024 x 1024 x 1024"


def _measured(dtype) -> float:
    n = 1024
    x = jax.device_put(jnp.ones((n, n), dtype), jax.local_devices()[0])
    matmul = jax.jit(lambda a: a @ a)
    matmul(x).block_until_ready()
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        matmul(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    # Devices that are slices of one CPU share its cores; a device's share of the peak is then smaller.
    return 2.0 * n**3 / best / len(jax.local_devices())
