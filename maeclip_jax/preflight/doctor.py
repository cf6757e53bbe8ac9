"""`make doctor`: what this machine has, and plainly whether jax missed the accelerator and fell back to the CPU."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence

from maeclip_jax import cli
from maeclip_jax.parallel.machine import HOW_TO, accelerator, look_for_no_tpu, versions


def report() -> list[str]:
    """Lines to print."""
    import jax

    lines = [f"machine   {platform.machine()}, {os.cpu_count()} CPU cores; {sys.executable}"]
    lines += [f"version   {name} {version}" for name, version in versions().items()]
    devices = jax.devices()
    lines.append(f"devices   {len(devices)} x {devices[0].device_kind} (jax backend: {jax.default_backend()})")
    from maeclip_jax.data.source import data_dir

    where = data_dir()
    sets = sorted(p for p in os.listdir(where)) if os.path.isdir(where) else []
    state = ", ".join(sets) if sets else ("empty" if os.path.isdir(where) else "not there yet; `make data` makes it")
    lines.append(f"data      {os.path.abspath(where)}: {state}")
    for name in ("MAECLIP_DATA_DIR", "TFDS_DATA_DIR", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):
        if name in os.environ:
            lines.append(f"env       {name}={os.environ[name]}")
    there = accelerator()
    if there and jax.default_backend() == "cpu":
        lines.append(f"PROBLEM   the machine has a {there.upper()}, but jax fell back to the CPU: {HOW_TO[there]}")
    else:
        lines.append(
            f"ok        jax uses the {jax.default_backend().upper()}" + ("" if there else "; no accelerator is here")
        )
    return lines


def run(argv: Sequence[str]) -> int:
    """Prints the report; returns 1 where jax missed an accelerator."""
    cli.Parser("maeclip_jax.preflight.doctor", __doc__).parse_args(argv)
    look_for_no_tpu()
    lines = report()
    print("\n".join(lines))
    return int(any(line.startswith("PROBLEM") for line in lines))


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: run(sys.argv[1:])))
