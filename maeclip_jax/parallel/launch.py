"""Files by which schedulers run a list of runs on other machines, made of the templates in tpu/launch/.

SLURM gets an array job, SkyPilot a managed job that is launched once a run, GKE a JobSet a run. Each starts
`python -m maeclip_jax.sweep ... --index=I` with a workdir that all machines see, and with this one's MAECLIP_DATA_DIR
where that is a bucket.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from maeclip_jax.errors import UserError, choose

FOLDER = "tpu/launch"
KINDS = {"slurm": "slurm.sh.j2", "sky": "sky.yaml.j2", "jobset": "jobset.yaml.j2"}
DEFAULT = {"slurm": "gpu:1", "sky": "tpu-v6e-8", "jobset": "v6e-8"}
# GKE's names of chips, and topologies by the number of chips, as cloud.google.com/kubernetes-engine lists them.
GKE = {"v5e": "tpu-v5-lite-podslice", "v6e": "tpu-v6e-slice"}
TOPOLOGIES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
ONE_HOST, A_HOST = 8, 4  # chips of the largest slice of one host; chips of each host of a larger one


def render(kind: str, name: str, sweep: str, runs: Sequence[str], flags: Sequence[str], on: str = "") -> str:
    """The text of a file for the scheduler `kind`. runs: their names by index; flags: of the sweep.

    on: what a run asks for: a generic resource of SLURM, accelerators of SkyPilot, or a slice of GKE. UserError for a
    scheduler or a slice that there is not, and for workdirs that other machines do not see.
    """
    import jinja2

    template = choose("--launch", kind, KINDS)
    on = on or DEFAULT[kind]
    root = next((f.partition("=")[2] for f in flags if f.startswith("--root=")), "runs")
    if kind != "slurm" and "://" not in root:
        raise UserError(f"--root={root} is a folder of this machine, which others do not see; valid with "
                        f"--launch={kind}: a bucket, such as --root=gs://bucket/runs")  # fmt: skip
    arguments = ["-m", "maeclip_jax.sweep", sweep, *flags]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    data = os.environ.get("MAECLIP_DATA_DIR", "")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return environment.from_string(Path(FOLDER, template).read_text()).render(
        name=name, slug=slug, runs=runs, arguments=arguments, command=shlex.join(arguments), on=on,
        tpu=on.startswith("tpu"), data=data if "://" in data else "", slice=_slice(on) if kind == "jobset" else {},
    )  # fmt: skip


def _slice(on: str) -> dict[str, str | int]:
    """What GKE calls a slice such as v6e-16."""
    generation, _, count = on.partition("-")
    chips = int(count) if count.isdigit() else 0
    if generation not in GKE or chips not in TOPOLOGIES:
        sizes = ", ".join(map(str, TOPOLOGIES))
        raise UserError(f"--on={on} is not a slice of {', '.join(GKE)}; valid: v5e-N or v6e-N with N of {sizes}")
    hosts = 1 if chips <= ONE_HOST else chips // A_HOST
    return {"accelerator": GKE[generation], "topology": TOPOLOGIES[chips], "hosts": hosts, "chips": chips // hosts}
