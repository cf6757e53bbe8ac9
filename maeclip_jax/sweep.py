"""A list of experiments one after the other, resumable, and one table at the end.

    python -m maeclip_jax.sweep pooling_demo [--root=runs] [--list] [--config.total="200 steps" ...]

A sweep is a file in experiments/sweeps/ with RUNS = ((experiment, argument[, {setting: value}]), ...). Every run has
its own workdir <root>/<sweep>/<name>; a run that is done costs nothing again, one that was cut off continues.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import subprocess
import sys

from maeclip_jax import main, report
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
    """A folder name that says what the run is: `clip-scale-demo-pool-max-seed-1`."""
    words = [experiment, argument, *(f"{k}={v}" for k, v in settings.items())]
    return re.sub(r"[^\w.]+", "-", "-".join(filter(None, words))).strip("-")


def run(argv: list[str]) -> None:
    """The command line."""
    names = [a for a in argv[1:] if not a.startswith("-")]
    options = dict(a.lstrip("-").partition("=")[::2] for a in argv[1:] if a.startswith("-"))
    overrides = [a for a in argv[1:] if a.startswith(("--config.", "--platform", "--cpu_devices"))]
    for option in options:
        if option not in ("root", "list") and not option.startswith(("config.", "platform", "cpu_devices")):
            raise unknown("option of sweep", option, ("root", "list", "config.<setting>", "platform", "cpu_devices"))
    if len(names) != 1:
        raise UserError(f"name one sweep; here are: {', '.join(sorted(glob.glob(f'{FOLDER}/*.py')))}")
    name = os.path.basename(names[0]).removesuffix(".py")
    folder, workdirs, failed = os.path.join(options.get("root", "runs"), name), [], []
    for experiment, argument, settings in runs_of(names[0]):
        workdir = os.path.join(folder, label(experiment, argument, settings))
        command = [sys.executable, "-m", "maeclip_jax.main", f"--config=experiments/{experiment}.py:{argument}"]
        command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in settings.items()), *overrides]
        print(f"sweep {name}, run {len(workdirs) + 1}: {' '.join(command[1:])}", flush=True)
        workdirs.append(workdir)
        if "list" not in options and subprocess.run(command, check=False).returncode:
            failed.append(workdir)
    if "list" in options:
        return
    done = [w for w in workdirs if w not in failed]
    if done:
        report.compare(done, folder)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(workdirs)} runs failed: {', '.join(failed)}; the same command tries again"
        )


if __name__ == "__main__":
    sys.exit(main.guarded(lambda: run(sys.argv)))
