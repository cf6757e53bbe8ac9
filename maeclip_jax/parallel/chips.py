"""Peak FLOP/s of chips, from their data sheets or measured."""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp

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
