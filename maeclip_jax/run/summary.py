"""What a run says of itself when it starts: parameters, devices, memory."""

from __future__ import annotations

from typing import Any

import jax

from maeclip_jax.parallel import machine, sharding
from maeclip_jax.run import optim


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
    """Why `model.compute.dtype` is slower than float32 on these devices; empty where it is not.

    Products of bfloat16 are computed in float32 on CPUs before jax 0.12, and from then on by instructions for bfloat16
    where the processor has them (LOG.md: two layers of CLIP B/16 take 0.72 times the processor time of float32).
    """
    if mesh.devices.flat[0].platform != "cpu" or dtype != "bfloat16":
        return ""
    instead = "; --config.model.compute.dtype=float32 computes in float32"
    if jax.__version_info__ < (0, 12):
        why = f"jax {jax.__version__} converts to float32 for products, which jax 0.12 does not"
        return f"bfloat16 is slower than float32 on a CPU: {why}{instead}"
    if not machine.has_bfloat16():
        return f"bfloat16 is probably slower than float32 on this CPU, which has no instructions for it{instead}"
    return ""


def without_effect(config: Any, rate: optim.Rate, total: int) -> list[str]:
    """Sentences about settings that were asked for and change nothing; `rate`: of the run's `total` steps."""
    found = optim.without_effect(config.optim, rate, total)
    for name, tower in config.model.items():
        if name.endswith("_tower") and tower and tower.get("drop_path") and tower.get("depth") == 1:
            found.append(
                f"model.{name}.drop_path={tower.drop_path:g} has no effect: the first block drops nothing, and the "
                "tower has no other"
            )
    return found


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
