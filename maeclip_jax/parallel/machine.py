"""What this machine is: its accelerator, its packages and sources; jax set up on it before it touches a device."""

from __future__ import annotations

import contextlib
import gc
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from maeclip_jax.errors import UserError

PLATFORMS = ("cpu", "tpu", "gpu")
THREADS_PER_CPU_DEVICE = 16
NEW_OBJECTS = 5_000  # with which Python looks for garbage in cycles: few enough for a batch in a cycle to go soon
# In XLA:CPU's default order of a program, devices may wait for ever, one in a collective of a loop and others in one
# outside of it (jaxlib 0.10.2 and 0.12.0.1 on busy cores; not seen with this. LOG.md has what is known of the cause).
IN_ONE_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
CACHE = "~/.cache/maeclip_jax/xla"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tensorflow-datasets", "clu",
    "ml_collections", "numpy", "opencv-python-headless", "pillow", "tokenizers", "sentencepiece", "libtpu",
    "jax-cuda13-plugin", "apache-beam", "tensorflow-cpu", "tensorflow", "torch",
)  # fmt: skip


_told: set[str] = set()  # what `mend_cache` has said

HOW_TO = {"tpu": "pip install -e '.[tpu]'", "gpu": "pip install -e '.[gpu]'"}


def core_numbers() -> list[int]:
    """Numbers of the cores that this process may use; none where a system does not pin."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def core_count() -> int:
    """How many cores this process may use."""
    return len(core_numbers()) or os.cpu_count() or 1


def accelerator() -> str | None:
    """ "tpu" or "gpu" if the machine has one, going by its device files and drivers, not by jax."""
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") or os.environ.get("TPU_WORKER_HOSTNAMES"):
        return "tpu"
    if glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi"):
        return "gpu"
    return None


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself, as far as the system says."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def has_google_chip() -> bool:
    """Whether a PCI device is Google's (vendor 0x1ae0) and neither a disk nor a network card of its cloud."""
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        with contextlib.suppress(OSError):
            kind = (vendor.parent / "class").read_text()[:4]
            if vendor.read_text().strip() == "0x1ae0" and kind not in ("0x01", "0x02"):
                return True
    return False


def look_for_no_tpu() -> bool:
    """Tells jax to use the CPU where libtpu is installed (for pre-flights) but no accelerator is there.

    jax would ask libtpu for its chips, which writes several lines of errors before it is seen that there are none.
    Nothing is changed where a person has named a platform, or where another accelerator may be there: its plug-in is
    installed, or its device. Returns whether it was told; has no effect once jax has looked at its devices.
    """
    named = os.environ.get("JAX_PLATFORMS")
    if named or accelerator() or has_google_chip() or importlib.util.find_spec("libtpu") is None:
        return False
    import jax

    with contextlib.suppress(ImportError):  # a namespace that exists where some plug-in does
        import jax_plugins

        if [*jax_plugins.__path__]:
            return False
    if jax.config.jax_platforms or importlib.metadata.entry_points(group="jax_plugins"):
        return False
    jax.config.update("jax_platforms", "cpu")
    return True


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


def commit() -> str:
    """The commit that the package's folder is at; `unknown` if git cannot determine it."""
    command = ["git", "-C", str(Path(__file__).parents[1]), "rev-parse", "--short=12", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return "unknown"


def sources() -> str:
    """A digest of all Python files of the package."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def collect_rarely() -> None:
    """Python looks for garbage in cycles after NEW_OBJECTS, where it does so after 700 or 2,000 by itself.

    Tracing a model makes millions of objects that stay, and every look at all of them stops the process for 0.2 s and
    more, on each host of a pod at another time: a tenth of a small run's processor time went there.
    """
    if 0 < gc.get_threshold()[0] < NEW_OBJECTS:  # 0: switched off by the user
        gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def configure_jax(platform: str = "", cpu_devices: int = 0, cache: str = "") -> bool:
    """Sets platform, fake devices and compilation cache; returns whether the CPU was asked for."""
    import jax

    collect_rarely()
    if cpu_devices:
        # Collectives that do not depend on one another wait in threads of one pool, which XLA:CPU makes no wider than
        # the devices: on busy cores they can fill it, so that what they wait for finds no thread, and the process
        # aborts (seen with tensor parallelism, jaxlib 0.10.2). XLA reads the width of the pool from this variable.
        os.environ.setdefault("NPROC", str(max(os.cpu_count() or 1, THREADS_PER_CPU_DEVICE * cpu_devices)))
        flags = os.environ.get("XLA_FLAGS", "")
        if IN_ONE_ORDER.partition("=")[0] not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {IN_ONE_ORDER}".strip()
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    elif not cpu_devices:
        look_for_no_tpu()
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
    return bool(cpu_devices) or "cpu" in (platform, os.environ.get("JAX_PLATFORMS"))


def mend_cache(warning: str) -> str | None:
    """What to say of one of jax's warnings that a compiled program could not be written or read: "" if it was said.

    None for any other warning, also of an entry that is whole and cannot be used here. jax leaves half an entry behind
    on a full disk, never replaces it, and warns of it at every start: entries of that name are removed, so that the
    program is compiled and kept again.
    """
    import jax

    found = re.match(r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", warning)
    if not found:
        return None
    done, name, reason = found.groups()
    if done == "reading" and "decompress" not in reason:
        return None
    folder = jax.config.jax_compilation_cache_dir or ""
    if "://" not in folder:
        for entry in Path(folder).glob(f"{glob.escape(name)}-*-cache"):
            with contextlib.suppress(OSError):
                entry.unlink()
    if done in _told:
        return ""
    _told.add(done)
    what = {"reading": "read from", "writing": "kept in"}[done]
    return f"compiled programs cannot be {what} {folder}: {reason}; they are compiled anew, and the run goes on"


def cache_folder(asked: str | None, workdir: str) -> str:
    """Where compiled programs are kept: as asked, else jax's variable, else a folder of the user's or of the run's."""
    if asked is None:
        here = f"{workdir.rstrip('/')}/xla" if "://" in workdir else CACHE
        asked = os.environ.get("JAX_COMPILATION_CACHE_DIR", here)
    return os.path.expanduser(asked)
