"""A stand-in for `gcloud compute tpus`: slices are folders, their workers are folders with a home.

    FAKE_GCLOUD=DIR python tests/fake_gcloud.py compute tpus tpu-vm create NAME --zone=z --version=v ...

Knows the verbs and flags that tpu/ uses and refuses others, as gcloud would. DIR/calls.txt lists the calls. A worker's
command really runs, under `bash -c` in its home, with nothing of the caller's environment (DIR/environment.json adds
some), and with a `curl` that answers as the metadata server does. The tests set the scene with `preempt`, `crash`,
DIR/refuse (so many creations fail for want of capacity), DIR/offline, and `silent` in a slice's folder (workers that do
not answer).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMON = ("zone", "project", "quiet")
CREATE = ("accelerator-type", "spot", "reserved", "network")
FLAGS = {
    ("tpu-vm", "create"): ("version", *CREATE),
    ("tpu-vm", "delete"): (),
    ("tpu-vm", "describe"): ("format",),
    ("tpu-vm", "ssh"): ("worker", "command", "ssh-flag", "internal-ip"),
    ("tpu-vm", "scp"): ("worker", "internal-ip"),
    ("queued-resources", "create"): ("runtime-version", "node-id", "node-count", "node-prefix", *CREATE),
    ("queued-resources", "delete"): ("force",),
    ("queued-resources", "describe"): ("format",),
}
CURL = '#!/bin/sh\nfor url; do :; done\nexec cat "$(dirname "$0")/../attributes/${url##*/}"\n'


def refuse(message: str) -> None:
    """Ends with gcloud's way of saying no."""
    sys.exit(f"ERROR: (gcloud.compute.tpus) {message}")


class Cloud:
    """Everything in the folder `root`. A slice has two workers, or as many as root/workers says."""

    def __init__(self, root: Path):
        self.root = root
        self.workers = int((root / "workers").read_text()) if (root / "workers").exists() else 2

    def call(self, argv: list[str]) -> None:
        """One command line, without `gcloud`."""
        with (self.root / "calls.txt").open("a") as f:
            f.write(" ".join(argv) + "\n")
        words = [a for a in argv if not a.startswith("--")]
        flags = dict(a.removeprefix("--").partition("=")[::2] for a in argv if a.startswith("--"))
        if words[:2] != ["compute", "tpus"] or tuple(words[2:4]) not in FLAGS:
            refuse(f"Invalid choice: {' '.join(words)}")
        kind, verb = words[2:4]
        unknown = set(flags) - set(COMMON) - set(FLAGS[kind, verb])
        if unknown or not flags.get("zone"):
            refuse(f"unrecognized arguments: {sorted(unknown)}" if unknown else "Missing required argument [--zone]")
        getattr(self, f"{verb}_{kind.replace('-', '_')}" if verb in ("create", "delete", "describe") else verb)(
            *words[4:], **{k.replace("-", "_"): v for k, v in flags.items()}
        )

    # Slices.

    def create_tpu_vm(self, name: str, *, version: str, accelerator_type: str, slice_id=0, slices=1, first="", **_):
        node = self.root / "nodes" / name
        if node.exists():
            refuse(f"ALREADY_EXISTS: {name}")
        self._capacity()
        for i in range(self.workers):
            worker = node / str(i)
            (worker / "home").mkdir(parents=True)
            (worker / "bin").mkdir()
            (worker / "bin" / "curl").write_text(CURL)
            (worker / "bin" / "curl").chmod(0o755)
            (worker / "attributes").mkdir()
            many = f"MEGASCALE_COORDINATOR_ADDRESS: 'localhost:8080'\nMEGASCALE_NUM_SLICES: '{slices}'\n"
            many += f"MEGASCALE_SLICE_ID: '{slice_id}'\n"
            attributes = {
                "agent-worker-number": str(i),
                "worker-network-endpoints": ",".join(f"{name}:{w}:127.0.0.1" for w in range(self.workers)),
                "tpu-env": f"ACCELERATOR_TYPE: '{accelerator_type}'\n{many if slices > 1 else ''}",
            }
            for key, text in attributes.items():
                (worker / "attributes" / key).write_text(text)
        (node / "state").write_text("READY")

    def create_queued_resources(self, name, *, runtime_version, accelerator_type, node_id="", node_count="1", **flags):
        request = self.root / "queued" / name
        if request.exists():
            refuse(f"ALREADY_EXISTS: {name}")
        prefix = flags.get("node_prefix", "")
        nodes = [node_id] if node_id else [f"{prefix}-{i}" for i in range(int(node_count))]
        request.parent.mkdir(exist_ok=True)
        request.write_text(json.dumps({"nodes": nodes, "looks": 0, "type": accelerator_type}))

    def _capacity(self) -> None:
        path = self.root / "refuse"
        left = int(path.read_text()) if path.exists() else 0
        if left:
            path.write_text(str(left - 1))
            refuse("RESOURCE_EXHAUSTED: There is no more capacity in the zone")

    def describe_tpu_vm(self, name: str, **_):
        if (self.root / "offline").exists():
            refuse("UNAVAILABLE: the service is currently unavailable")
        node = self.root / "nodes" / name
        if not node.exists():
            refuse(f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{name}' was not found")
        print((node / "state").read_text())

    def describe_queued_resources(self, name: str, **_):
        """WAITING_FOR_RESOURCES at the first look, then ACTIVE."""
        request = self.root / "queued" / name
        if not request.exists():
            refuse(f"NOT_FOUND: queuedResources/{name} was not found")
        had = json.loads(request.read_text())
        if not had["looks"]:
            request.write_text(json.dumps(had | {"looks": 1}))
            print("WAITING_FOR_RESOURCES")
            return
        for i, node in enumerate(had["nodes"]):
            if not (self.root / "nodes" / node).exists():
                self.create_tpu_vm(node, version="", accelerator_type=had["type"], slice_id=i, slices=len(had["nodes"]))
        print("ACTIVE")

    def delete_tpu_vm(self, name: str, **_):
        for i in range(self.workers):
            self.crash(name, i)
        shutil.rmtree(self.root / "nodes" / name)

    def delete_queued_resources(self, name: str, *, force=None, **_):
        if force is None:
            refuse("FAILED_PRECONDITION: the queued resource has nodes: --force")
        for node in json.loads((self.root / "queued" / name).read_text())["nodes"]:
            if (self.root / "nodes" / node).exists():
                self.delete_tpu_vm(node)
        (self.root / "queued" / name).unlink()

    # Workers.

    def _chosen(self, name: str, worker: str) -> list[Path]:
        node = self.root / "nodes" / name
        if not node.exists() or (node / "state").read_text() != "READY":
            refuse(f"{name} cannot be reached")
        return [node / str(i) for i in range(self.workers) if worker in ("all", str(i))]

    def ssh(self, name: str, *, command: str, worker: str = "0", **_):
        """The command on the chosen workers, at once."""
        silent = self.root / "nodes" / name / "silent"
        without = silent.read_text().split() if silent.exists() else []

        def code(worker: Path) -> int:
            if worker.name in without:
                print(f"ssh: connect to host worker-{worker.name}: Connection timed out", file=sys.stderr)
                return 255
            return subprocess.run(["bash", "-c", command], **self._session(worker)).returncode

        with ThreadPoolExecutor() as pool:
            codes = list(pool.map(code, self._chosen(name, worker)))
        if any(codes):
            sys.exit(max(codes))

    def _session(self, worker: Path) -> dict:
        added = self.root / "environment.json"
        more = json.loads(added.read_text()) if added.exists() else {}
        path = f"{worker / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        env = {"PATH": path, "LANG": "C.UTF-8", "HOME": str(worker / "home"), **more}
        return {"cwd": worker / "home", "env": env, "stdin": subprocess.DEVNULL}

    def scp(self, source: str, target: str, *, worker: str = "0", **_):
        name, _, path = target.partition(":")
        for chosen in self._chosen(name, worker):
            shutil.copy(source, chosen / "home" / path)

    # What the tests do to them.

    def crash(self, name: str, worker: int) -> None:
        """SIGKILL to everything that runs on a worker: all that has its home."""
        home = f"HOME={self.root / 'nodes' / name / str(worker) / 'home'}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and home in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # gone meanwhile, or not ours

    def preempt(self, name: str, worker: int) -> None:
        """Takes one worker away; the slice is PREEMPTED, the other workers still run until it is deleted."""
        (self.root / "nodes" / name / "state").write_text("PREEMPTED")
        self.crash(name, worker)


if __name__ == "__main__":
    Cloud(Path(os.environ["FAKE_GCLOUD"])).call(sys.argv[1:])
