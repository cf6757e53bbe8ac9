"""`make doctor`: what this machine has, and plainly whether jax missed the accelerator and fell back to the CPU."""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import os
import platform
import shutil
import sys

from maeclip_jax.errors import UserError

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tensorflow-datasets", "clu",
    "ml_collections", "numpy", "opencv-python-headless", "pillow", "tokenizers", "sentencepiece", "libtpu",
    "jax-cuda13-plugin", "apache-beam", "tensorflow-cpu", "tensorflow", "torch",
)  # fmt: skip
HOW_TO = {"tpu": "pip install -e '.[tpu]'", "gpu": "pip install -e '.[gpu]'"}


def accelerator() -> str | None:
    """ "tpu" or "gpu" if the machine has one, going by its device files and drivers, not by jax."""
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") or os.environ.get("TPU_WORKER_HOSTNAMES"):
        return "tpu"
    if glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi"):
        return "gpu"
    return None


def refuse_fallback() -> None:
    """UserError if jax would silently run on the CPU of a machine that has an accelerator."""
    there = accelerator()
    if there is None:
        return
    import jax

    if jax.default_backend() == "cpu":
        raise UserError(
            f"this machine has a {there.upper()}, but jax sees only the CPU; install its support with "
            f"{HOW_TO[there]}, or ask for the CPU with --platform=cpu"
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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


if __name__ == "__main__":
    report_lines = report()
    print("\n".join(report_lines))
    sys.exit(1 if any(line.startswith("PROBLEM") for line in report_lines) else 0)
