"""What is known of chips: one table of TPUs, the peak FLOP/s of GPUs, and the peak of the devices at hand."""

from __future__ import annotations

import dataclasses
import math
import time


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU. `peak` bf16 FLOP/s of a jax device (data sheets); `kinds`: pieces of jax's device_kind by which it is
    known.

    `clock` Hz of the cycles the compiler estimates with; `hbm` GiB of a jax device that it lets a program use, and
    `bandwidth` bytes/s to it; `ici` bytes/s out of a device (data sheets; None: none published); `axes` of its torus;
    `most` chips of a slice; `devices` of jax in a chip (of v2 and v3, a device is a core).

    Clocks: one bf16 matmul of 8192^3 is estimated at 70 % (v6e) to 100 % (v2) of the data sheet's peak with them.
    Largest slices: the types, shapes and pods listed under cloud.google.com/tpu/docs/v2, .../v3, ... and .../v6e.
    """

    peak: float
    kinds: tuple[str, ...]
    clock: float
    hbm: float
    bandwidth: float
    ici: float | None
    axes: int
    most: int
    devices: int = 1
    cores_in_name: bool = False  # v4-128: 128 cores, two a chip
    config: str = ""  # libtpu's chip configuration


# In this order a device is looked for: "v5 lite" must be found before "v5".
CHIPS = {
    "v2": Chip(22.5e12, ("v2",), 0.70e9, 7.48, 350e9, None, 2, 256, devices=2, cores_in_name=True),
    "v3": Chip(61.5e12, ("v3",), 0.94e9, 15.48, 450e9, None, 2, 1024, devices=2, cores_in_name=True),
    "v4": Chip(275e12, ("v4",), 1.05e9, 30.75, 1228e9, 300e9, 3, 4096, cores_in_name=True, config="megacore"),
    "v5e": Chip(197e12, ("v5 lite", "v5e"), 1.50e9, 15.75, 819e9, 200e9, 2, 256),
    "v5p": Chip(459e12, ("v5p", "v5"), 1.75e9, 95.73, 2765e9, 600e9, 3, 6144, cores_in_name=True),
    "v6e": Chip(918e12, ("v6 lite", "v6e"), 1.75e9, 31.24, 1640e9, 448e9, 2, 256),
}
# Bytes/s a chip of the data centre network, over which hosts read storage: that of a pod, over its 256 chips
# (cloud.google.com/tpu/docs/v5e and .../v6e, 2026-11-29).
NETWORK = {"v5e": 6.4e12 / 8 / 256, "v6e": 25.6e12 / 8 / 256}
# bf16 peak FLOP/s of a GPU, dense, by a piece of jax's device_kind (NVIDIA's data sheets).
GPUS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def peak(device_kind: str) -> float | None:
    """bf16 peak FLOP/s of one jax device, from its data sheet; None if it is not known."""
    known = [(piece, chip.peak) for chip in CHIPS.values() for piece in chip.kinds] + list(GPUS.items())
    return next((found for piece, found in known if piece.lower() in device_kind.lower()), None)


def memory(device) -> float | None:
    """Bytes that a program may use of a jax device, at hand or of a slice that is only compiled for; None: not known
    (a CPU)."""
    kind = device.device_kind.lower()
    known = [(piece, chip.hbm * 2**30) for chip in CHIPS.values() for piece in chip.kinds]
    found = next((size for piece, size in known if device.platform == "tpu" and piece.lower() in kind), None)
    if found or device.platform == "cpu":
        return found
    return (device.memory_stats() or {}).get("bytes_limit")


def peak_per_device(dtype: str) -> tuple[float, str]:
    """(peak FLOP/s of one device, where the number is from): the data sheet, or measured where there is none (CPU)."""
    import jax
    import jax.numpy as jnp

    kind = jax.local_devices()[0].device_kind
    found = peak(kind)
    if found:
        return found, f"{kind} data sheet, bf16"
    return _measured(jnp.dtype(dtype)), f"{kind}: measured here on a {dtype} matmul of 1024 x 1024 x 1024"


def _measured(dtype) -> float:
    import jax
    import jax.numpy as jnp

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
