"""What a run says of itself when it starts: parameters, devices, memory."""

from __future__ import annotations

from typing import Any

import jax

from maeclip_jax.parallel import sharding


def parameter_table(params: Any) -> str:
    """Path, shape, type, size and split per parameter, and the totals; `params` may be shapes with shardings."""
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(params, include_stats="sharding", max_lines=None)
    return f"{table}\n{sum(x.size for x in jax.tree.leaves(params)):,} parameters"


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """`8 x TPU v4: replica 2 x fsdp 4, 2 processes`, and what is set for the compiler and can be left."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    several = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    offloaded = sharding.OFFLOADING.items() <= (sharding.compiler_options(mesh) or {}).items()
    more = f", collectives on SparseCores ({sharding.OFFLOAD}=0: on the cores)" if offloaded else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{': ' if axes else ''}{axes}{several}{more}"


def slow_dtype(mesh: jax.sharding.Mesh, dtype: str) -> str:
    """What to say of `model.compute.dtype` on these devices; empty where it is as fast as any.

    Measured on two cores of a Xeon with AMX, CLIP B/16, batch 16, forward, backward and AdamW: XLA computes bfloat16
    products by AMX from jaxlib 0.12 on, and the whole step is slower all the same.
    """
    if mesh.devices.flat[0].platform != "cpu" or dtype != "bfloat16":
        return ""
    return (
        "bfloat16 is slow on a CPU: a step of CLIP B/16 took 51 s, 13 s in float32 (jax 0.12; with 0.10, 18 and 16 s); "
        "--config.model.compute.dtype=float32 is faster here"
    )


def memory_line(analysis: Any) -> str:
    """What the compiler says of a program's memory."""
    if analysis is None:
        return "the compiler does not tell memory here"
    gib = [getattr(analysis, f"{k}_size_in_bytes") / 2**30 for k in ("argument", "temp")]
    return f"per device {gib[0]:.2f} GiB of arguments and {gib[1]:.2f} GiB of temporaries (compiler's figures)"


def device_memory() -> dict[str, float]:
    """perf/device_memory_peak_gib of local device 0, where the backend tells (TPU, GPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"perf/device_memory_peak_gib": peak / 2**30}
