"""What each of several independent runs has of one machine: cores of its own, a chip of its own, and room in memory.

Cores are those that this process may use. A chip is given by the variables that its library reads: CUDA_VISIBLE_DEVICES
for NVIDIA, and for TPUs those with which jax's own tests start one process a chip (jax/_src/test_multiprocess.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import machine

TPU_PORT = 8480  # of the first of several processes that have one chip each; jax's own, 8476, stays free
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Share:
    """cores: their numbers, () where a system does not pin; environment: what a process with this share is given."""

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        chip = self.environment.get("CUDA_VISIBLE_DEVICES") or self.environment.get("TPU_VISIBLE_CHIPS")
        parts = [f"chip {chip}"] if chip else []
        if self.cores:
            parts.append(f"core{'s' * (len(self.cores) > 1)} {','.join(map(str, self.cores))}")
        return ", ".join(parts) or "whatever is free"

    def pin(self) -> None:
        """Binds this thread, and the processes that it starts from now on, to the cores of the share."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)


def shares(jobs: int, platform: str = "", flag: str = "--jobs") -> list[Share]:
    """One share for each of `jobs` runs. One run alone has all that there is.

    platform: cpu, gpu or tpu; "": what the machine has. UserError for more runs than cores, or than chips.
    """
    if jobs < 1:
        raise UserError(f"{flag}={jobs}; valid: 1 or more")
    if jobs == 1:
        return [Share()]
    cores, count = machine.core_numbers(), machine.core_count()
    if jobs > count:
        raise UserError(f"{flag}={jobs} runs side by side, and this machine has {count} cores; valid: 1 to {count}")
    kind = _kind(platform)
    chips = _chips(kind)
    if chips is not None and jobs > len(chips):
        raise UserError(
            f"{flag}={jobs} runs side by side have a chip each, and this machine has {len(chips)}; valid: "
            f"1 to {max(1, len(chips))} (1: one run has all chips)"
        )
    found = []
    for i in range(jobs):
        mine = tuple(cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs])
        found.append(Share(mine, {} if chips is None else _one(kind, chips[i], i)))
    return found


def usual(platform: str = "") -> int:
    """How many runs stand side by side where nobody says: one a chip, or two on CPUs of two cores or more."""
    try:
        chips = _chips(_kind(platform))
    except UserError:  # one VM of several, which train one run together
        return 1
    return min(2, machine.core_count()) if chips is None else max(1, min(len(chips), machine.core_count()))


def _kind(platform: str) -> str:
    return platform or os.environ.get("JAX_PLATFORMS", "").split(",")[0] or machine.accelerator() or "cpu"


def _chips(kind: str) -> list[str] | None:
    """Those that this process may use; None of a CPU."""
    return {"gpu": gpus, "cuda": gpus, "tpu": tpus}.get(kind, lambda: None)()


def _one(kind: str, chip: str, i: int) -> dict[str, str]:
    if kind != "tpu":
        return {"CUDA_VISIBLE_DEVICES": chip}
    # Bounds and a port beside the chip: with the chip alone the second process finds the first one's lock.
    port = str(TPU_PORT + i)
    return {
        "TPU_VISIBLE_CHIPS": chip, "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}", "TPU_PROCESS_PORT": port, "CLOUD_TPU_TASK_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # fmt: skip


def gpus() -> list[str]:
    """NVIDIA's devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip()]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
        return [str(i) for i in range(sum(line.startswith("GPU ") for line in said.splitlines()))]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def tpus() -> list[str]:
    """Chips of this TPU VM that this process may use. UserError on one of several VMs, whose chips work together."""
    hosts = [host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) > 1:
        raise UserError(
            f"this TPU VM is one of {len(hosts)} of a slice, which trains one run at a time; valid here: one run "
            "(make tpu-sweep); runs side by side need slices of one VM"
        )
    named = os.environ.get("TPU_VISIBLE_CHIPS")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip()]
    return [str(i) for i in range(len(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")))]


def free_memory() -> float:
    """Bytes that programs can still have: of the machine, or of this container if that is less. Infinite if unknown."""
    found = [_field(PROC / "meminfo", "MemAvailable")]
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        cached = sum(
            int(line.split()[1])
            for line in (CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        found.append(limit - int((CGROUP / "memory.current").read_text()) + cached)
    return min((x for x in found if x is not None), default=float("inf"))


def memory(pid: int) -> tuple[int, int]:
    """(bytes now, most so far) of a process and its children in main memory; (0, 0) if that is unknown.

    The most of each is summed, which is at least the most of all together.
    """
    now = _field(PROC / str(pid) / "status", "VmRSS") or 0
    most = _field(PROC / str(pid) / "status", "VmHWM") or 0
    with contextlib.suppress(OSError):
        for task in (PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                more = memory(int(child))
                now, most = now + more[0], most + more[1]
    return now, most


def _field(path: Path, name: str) -> int | None:
    """Bytes of a line `name: n kB`."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
