"""A list of experiments, one after the other or side by side, resumable, and one table at the end.

    python -m maeclip_jax.sweep pooling_demo [--root=runs] [--jobs=2] [--config.total="200 steps" ...]
    python -m maeclip_jax.sweep pooling_demo --list                        index, workdir and command of each run
    python -m maeclip_jax.sweep pooling_demo --index=0                     this run alone, in place of this process
    python -m maeclip_jax.sweep pooling_demo --root=gs://bucket/runs --launch=slurm|sky|jobset [--on=tpu-v6e-8]

A sweep is a file in experiments/sweeps/ with RUNS = ((experiment, argument[, {setting: value}]), ...). Every run has
its own workdir <root>/<sweep>/<name>, and its output is in <name>.txt beside it; a finished run is not repeated, and an
interrupted one is resumed. --jobs runs have a share of the cores each, or a chip each; fewer run where memory would not
do for all. --launch prints a file for a scheduler, made of its template in tpu/launch/.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from maeclip_jax import cli, remote, report
from maeclip_jax import config as configs
from maeclip_jax.errors import UserError, unknown
from maeclip_jax.parallel import jobs, launch, shares

FOLDER = "experiments/sweeps"


def runs_of(name: str) -> tuple:
    """RUNS of a sweep file, by its name without .py or by its path."""
    path = name if name.endswith(".py") else f"{FOLDER}/{name}.py"
    if not os.path.isfile(path):
        raise unknown("sweep", name, configs.shipped(FOLDER, "RUNS"))
    spec = importlib.util.spec_from_file_location("sweep_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple((experiment, argument, dict(*rest)) for experiment, argument, *rest in module.RUNS)


def label(experiment: str, argument: str, settings: dict) -> str:
    """A folder name that describes the run: `clip-scale-demo-pool-max-seed-1`, and `mesh.replica--1` of a -1."""
    parts = [experiment, argument, *(f"{k}={v}" for k, v in settings.items())]
    text = "-".join(filter(None, parts))
    return re.sub(r"=-(?=[\d.])|[^\w.]+", lambda m: "--" if m[0] == "=-" else "-", text).strip("-")


def labels(runs: Sequence[tuple[str, str, dict]], name: str) -> list[str]:
    """Those of the runs of sweep `name`. UserError for two that have one, whose folder would be the same."""
    found: dict[str, int] = {}
    for i, one in enumerate(runs):
        of = label(*one)
        if of in found:
            raise UserError(
                f"sweep {name}: runs {found[of]} and {i} would both be in {of}; valid: runs that differ in a letter, a "
                "number or a sign"
            )
        found[of] = i
    return list(found)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep. config: --config; settings: of the run, then of the command line; flags: passed on."""

    name: str
    workdir: str
    config: str
    settings: tuple[tuple[str, str], ...]
    flags: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """What trains it, without the Python."""
        more = (*(f"--config.{k}={v}" for k, v in self.settings), *self.flags)
        return ["-m", "maeclip_jax.main", f"--config={self.config}", f"--workdir={self.workdir}", *more]


def run(argv: Sequence[str]) -> None:
    """The command line."""
    parser = cli.ExperimentParser("maeclip_jax.sweep", __doc__)
    parser.add_argument("sweep", nargs="*", help=f"a name in {FOLDER}/, or a path")
    parser.add_argument("--root", default="runs", help="where the sweep's folder goes; local or gs:// (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print index, workdir and command of each run; run none")
    parser.add_argument("--index", type=int, help="run this one of the list alone")
    parser.add_argument("--launch", default="", help=f"print a file for a scheduler: {', '.join(launch.KINDS)}")
    parser.add_argument("--on", default="", help="what --launch asks for, such as gpu:1, H100:8, tpu-v6e-8")
    parser.add_argument("--platform", default="", help="passed on to every run")
    parser.add_argument("--cpu_devices", default="", help="passed on to every run")
    parser.add_argument("--cache", default="", help="passed on to every run")
    source, suite, settings, rest = cli.split_config(argv)
    args = parser.parse_args(rest)
    if len(args.sweep) != 1 or source or suite:
        raise UserError(f"name one sweep; here are: {', '.join(configs.shipped(FOLDER, 'RUNS'))}")
    remote.check_scheme(args.root, "--root", "checkpoints")
    flags = tuple(f"--{n}={x}" for n in ("platform", "cpu_devices", "cache") if (x := getattr(args, n)))
    name = os.path.basename(args.sweep[0]).removesuffix(".py")
    folder = os.path.join(args.root, name)
    listed = runs_of(args.sweep[0])
    runs = [
        Run(of, os.path.join(folder, of), f"experiments/{experiment}.py:{argument}",
            (*((k, f"{v}") for k, v in own.items() if k not in settings), *settings.items()), flags)
        for of, (experiment, argument, own) in zip(labels(listed, name), listed)
    ]  # fmt: skip
    if args.list:
        for i, one in enumerate(runs):
            print(i, one.workdir, shlex.join(["python", *one.command]), sep="\t")
        return
    if args.on and not args.launch:
        raise UserError(f"--on={args.on} goes with --launch; valid there: {', '.join(launch.KINDS)}")
    if args.launch:
        given = [f"--root={args.root}", *(f"--config.{k}={v}" for k, v in settings.items()), *flags]
        print(launch.render(args.launch, name, args.sweep[0], [r.name for r in runs], given, args.on), end="")
        return
    if args.index is not None:
        if not 0 <= args.index < len(runs):
            raise UserError(f"--index={args.index}: sweep {name} has {len(runs)} runs; valid: 0 to {len(runs) - 1}")
        os.execv(sys.executable, [sys.executable, *runs[args.index].command])  # it gets the signals of a scheduler
    _train(runs, name, folder, shares.shares(args.jobs, args.platform or "cpu" * bool(args.cpu_devices)))


def _train(runs: Sequence[Run], name: str, folder: str, given: Sequence[shares.Share]) -> None:
    for one in runs:  # mistakes are found before anything is trained
        configs.load(one.config, dict(one.settings))
    outputs = Path("runs") / name if remote.is_remote(folder) else Path(folder)
    todo = [jobs.Job(one.name, [sys.executable, *one.command], outputs / f"{one.name}.txt") for one in runs]
    crew = jobs.Jobs(todo, given)
    failed = crew.run()
    done = [one.workdir for one, job in zip(runs, todo) if job.code == 0]
    if done:
        report.compare(done, folder)
    crew.report(failed)


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: run(sys.argv[1:])))
