"""Which processes a run consists of.

Found without touching jax, so that a host is never made to wait by asking: flags say it, or the environment of a TPU
slice (TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, MEGASCALE_*), or the metadata server of a TPU VM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import urllib.request
from collections.abc import Callable, Mapping

from maeclip_jax.errors import UserError
from maeclip_jax.parallel.machine import accelerator

# The coordinator's port if none is given. Google opens it between the VMs of a slice; 8482, jax's own, may be shut
# (jax issue 35905).
PORT = 8476


@dataclasses.dataclass(frozen=True)
class Pod:
    """`processes` processes, this one being number `process`; 0 is found at `address` (host:port).

    `hosts`: names by process, as far as they are known beforehand.
    """

    address: str
    processes: int
    process: int
    hosts: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator={self.address!r} is not an address; valid: host:port of process 0")

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    def name(self, process: int, host: str = "") -> str:
        """`process 3 (t1v-n-w-3)`."""
        host = host or self.hosts.get(process, "")
        return f"process {process} ({host})" if host else f"process {process}"


def find(coordinator: str = "", processes: int = 0, process: int = 0, *, ask: bool = True) -> Pod | None:
    """The pod that the flags name, or the environment of a TPU slice; None: a run of one process.

    `processes` 1 without a coordinator means one process; 0 leaves it to the environment. `ask`: whether the metadata
    server may be asked (it answers on a TPU VM only, and within 2 seconds). Raises UserError for inconsistent flags.
    """
    if coordinator or processes > 1:
        if not coordinator:
            raise UserError(f"--processes={processes} needs --coordinator=host:port of process 0")
        processes = processes or 1
        if not 0 <= process < processes:
            raise UserError(f"--process={process} of --processes={processes}; valid: 0 to {processes - 1}")
        return Pod(coordinator, processes, process)
    if processes == 1:
        return None
    if os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES"):
        return _slices(lambda name: os.environ.get(name, ""))
    if ask and "TPU_SKIP_MDS_QUERY" not in os.environ and accelerator() == "tpu":
        return _slices(_metadata())
    return None


def _slices(value: Callable[[str], str]) -> Pod | None:
    """The pod that the variables of a TPU slice describe; several slices are numbered one after the other."""
    named = value("TPU_PROCESS_ADDRESSES") or value("TPU_WORKER_HOSTNAMES")
    workers = [w.strip().partition(":")[0] for w in named.split(",") if w.strip()]
    slices, mine = int(value("MEGASCALE_NUM_SLICES") or 1), int(value("MEGASCALE_SLICE_ID") or 0)
    count = len(workers) * slices
    if count < 2:
        return None
    worker = value("TPU_WORKER_ID")
    if not worker.isdigit() or int(worker) >= len(workers):
        raise UserError(f"TPU_WORKER_ID={worker!r} of {len(workers)} workers ({named}); valid: 0 to {len(workers) - 1}")
    first = mine * len(workers)
    leader = (value("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]).partition(":")[0]
    port = os.environ.get("JAX_COORDINATOR_PORT", PORT)
    return Pod(f"{leader}:{port}", count, first + int(worker), {first + i: w for i, w in enumerate(workers)})


def _metadata() -> Callable[[str], str]:
    """The variables of a TPU slice as the metadata server of a TPU VM gives them; empty if no server answers."""

    def ask(key: str) -> str:
        server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
        url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
        with contextlib.suppress(OSError):
            request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            with urllib.request.urlopen(request, timeout=2) as answer:
                return answer.read().decode()
        return ""

    # An endpoint is a host name, or name:id:ip on older machines.
    workers = [w.split(":")[-1] for w in ask("worker-network-endpoints").split(",")]
    found = {"TPU_WORKER_HOSTNAMES": ",".join(workers)}
    if workers != [""]:
        found["TPU_WORKER_ID"] = ask("agent-worker-number")
        for line in ask("tpu-env").splitlines():
            key, _, text = line.partition(":")
            if key.strip().startswith("MEGASCALE_"):
                found[key.strip()] = text.strip().strip("'\"")
    return lambda name: found.get(name, "")
