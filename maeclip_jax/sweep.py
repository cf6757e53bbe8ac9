"""A list of experiments one after the other, resumable, and one table at the end.

    python -m maeclip_jax.sweep pooling_demo [--root=runs] [--list] [--config.total="200 steps" ...]

A sweep is a file in experiments/sweeps/ with RUNS = ((experiment, argument[, {setting: value}]), ...). Every run has
its own workdir <root>/<sweep>/<name>; a finished run is not repeated, and an interrupted one is resumed.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from maeclip_jax import cli, remote, report
from maeclip_jax.errors import UserError, unknown

FOLDER = "experiments/sweeps"


def runs_of(name: str) -> tuple:
    """RUNS of a sweep file, by its name without .py or by its path."""
    path = name if name.endswith(".py") else f"{FOLDER}/{name}.py"
    if not os.path.isfile(path):
        raise unknown("sweep", name, sorted(os.path.basename(p)[:-3] for p in glob.glob(f"{FOLDER}/*.py")))
    spec = importlib.util.spec_from_file_location("sweep_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple((experiment, argument, dict(*rest)) for experiment, argument, *rest in module.RUNS)


def label(experiment: str, argument: str, settings: dict) -> str:
    """A folder name that describes the run: `clip-scale-demo-pool-max-seed-1`."""
    parts = [experiment, argument, *(f"{k}={v}" for k, v in settings.items())]
    return re.sub(r"[^\w.]+", "-", "-".join(filter(None, parts))).strip("-")


def run(argv: Sequence[str]) -> None:
    """The command line."""
    parser = cli.ExperimentParser("maeclip_jax.sweep", __doc__)
    parser.add_argument("sweep", nargs="*", help=f"a name in {FOLDER}/, or a path")
    parser.add_argument("--root", default="runs", help="where the sweep's folder goes; local or gs:// (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    parser.add_argument("--platform", default="", help="passed on to every run")
    parser.add_argument("--cpu_devices", default="", help="passed on to every run")
    source, suite, settings, rest = cli.split_config(argv)
    args = parser.parse_args(rest)
    if len(args.sweep) != 1 or source or suite:
        raise UserError(f"name one sweep; here are: {', '.join(sorted(glob.glob(f'{FOLDER}/*.py')))}")
    remote.check_scheme(args.root, "--root", "checkpoints")
    overrides = [f"--config.{n}={x}" for n, x in settings.items()]
    overrides += [f"--{n}={x}" for n in ("platform", "cpu_devices") if (x := getattr(args, n))]
    name = os.path.basename(args.sweep[0]).removesuffix(".py")
    folder, workdirs, failed = os.path.join(args.root, name), [], []
    for experiment, argument, own in runs_of(args.sweep[0]):
        workdir = os.path.join(folder, label(experiment, argument, own))
        command = [sys.executable, "-m", "maeclip_jax.main", f"--config=experiments/{experiment}.py:{argument}"]
        command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in own.items()), *overrides]
        print(f"sweep {name}, run {len(workdirs) + 1}: {' '.join(command[1:])}", flush=True)
        workdirs.append(workdir)
        if not args.list and subprocess.run(command, check=False).returncode:
            failed.append(workdir)
    if args.list:
        return
    done = [w for w in workdirs if w not in failed]
    if done:
        report.compare(done, folder)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(workdirs)} runs failed: {', '.join(failed)}; the same command tries again"
        )


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: run(sys.argv[1:])))
