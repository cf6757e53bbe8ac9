"""What our Pallas kernels for TPUs share: products, tiles, and the way from a kernel to a chip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

LANES, ROW_TILE = 128, 16  # of a bfloat16 tile
# MiB of a core's own memory by pieces of its device_kind (jax 0.12.0.1, _src/tpu_info.py), of which a kernel plans with
# SHARE; RESERVE: bytes that the compiler may take beside a plan. What is not a TPU interprets kernels, in steps as on
# the first.
VMEM = {"v5 lite": 128, "v5e": 128, "v6": 128, "v5": 64, "7x": 64, "TPU": 16, "": 128}
SHARE, RESERVE = 7 / 8, 8 * 2**20
# Tokens of a device, and of a step, from which on kernels of a half of a block were seen to be faster (LOG.md).
LEAST_ROWS, LEAST_ROWS_A_STEP = 4096, 192
AB, ABT, ATB = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # axes contracted in a @ b, a @ b.T, a.T @ b


def dot(a: jax.Array, b: jax.Array, axes: tuple) -> jax.Array:
    """The product of two matrices in float32, over `axes`: AB, ABT or ATB."""
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def whole_tiles(rows: int) -> int:
    """Rows with those that fill up their last tile."""
    return -(-rows // ROW_TILE) * ROW_TILE


def vmem() -> int:
    """Bytes of the own memory of a core of the devices that are computed for: those of the mesh in use."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = device.device_kind if device else jax.devices()[0].device_kind
    return 2**20 * next(mib for words, mib in VMEM.items() if words in kind)


def vmem_to_plan() -> int:
    """Bytes of `vmem` that the plan of a kernel may take."""
    return int(SHARE * vmem())


def vmem_limit(planned: int) -> int:
    """The compiler's limit for a kernel that plans so many bytes: RESERVE more, at most `vmem`."""
    return min(planned + RESERVE, vmem())


def worthwhile(batch: int, tokens: int, plans: Iterable) -> bool:
    """Whether kernels fit, and are faster, for a device's share of a batch: see LEAST_ROWS and LEAST_ROWS_A_STEP.

    `plans`: of each pass, with the `samples` of a step; None: it does not fit.
    """
    return batch * tokens >= LEAST_ROWS and all(p and p.samples * tokens >= LEAST_ROWS_A_STEP for p in plans)


def moved(arrays: Sequence) -> int:
    """Bytes of arrays, or of their shapes, for the compiler's estimate of a kernel."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in arrays)


def run(kernel: Callable, xla: Callable, args: Sequence[jax.Array | None], interpret: bool) -> tuple[jax.Array, ...]:
    """kernel(interpret, *args) where a program is lowered for a TPU, or if it is interpreted; elsewhere xla(*args).

    By what the program is lowered for, not where it is traced: pre-flights trace for TPUs on a CPU.
    """
    if interpret:
        return tuple(kernel(True, *args))
    return jax.lax.platform_dependent(*args, tpu=lambda *a: tuple(kernel(False, *a)), default=xla)
