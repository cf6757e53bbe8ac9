"""Plans a study, trains its runs and writes its page; the same command goes on where it was.

    python -m maeclip_jax.study --data=scenes --sizes=1k,4k,20k --diversity=0.25,1 --arms=clip,mae_clip --pool=gap,max
        --seeds=3 --match=examples,flops --weights=0.1 --topology=cpu --budget=10h --out=results/study [--dry_run]
    python -m maeclip_jax.study --report --out=results/study

The first arm is what the others are compared with. --dry_run prints the plan and writes nothing. The plan becomes
study.json in --out before the first run and is never changed; results are small files beside it; what training leaves
is in --runs. --match=flops gives every arm the FLOPs of the dearest. --tune="optim.lr=1e-3,2e-3" tries a grid for each
arm first. --topology is cpu (this machine, measured) or a slice such as v6e-256 (estimated; only with --dry_run).
--config.x=y changes every run. --data may be a prepared set: its subsets are drawn into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from maeclip_jax import cli
from maeclip_jax.errors import UserError
from maeclip_jax.parallel import shares
from maeclip_jax.study import design, plan, spending
from maeclip_jax.study.subsets import number

EVERY = 60.0  # seconds between two pages


def parser() -> cli.ExperimentParser:
    """The flags."""
    made = cli.ExperimentParser("maeclip_jax.study", __doc__)
    add, default = made.add_argument, design.Axes

    def several(kind):
        return lambda text: tuple(kind(word) for word in text.split(",") if word.strip())

    add("--data", default=default.data, help="scenes, or a prepared set (%(default)s)")
    add("--sizes", type=several(number), default=default.sizes, help="unique pairs, such as 1k,4k,20k")
    add("--diversity", type=several(float), default=default.diversities, help="shares, such as 0.25,1")
    add("--arms", type=several(str), default=default.arms, help="experiments; the first is the baseline")
    add("--pool", type=several(str), default=default.pools, help="of the picture; the last is the primary one")
    add("--seeds", type=int, default=default.seeds, help="how many (%(default)s)")
    add("--match", type=several(str), default=default.match, help="examples, flops or both")
    add("--weights", type=several(float), default=default.weights, help="of the reconstruction, the main one first")
    add("--examples", type=number, default=default.examples, help="that a run sees (%(default)s)")
    add("--scale", default=default.scale, help="of the experiments (%(default)s)")
    add("--runlocal", action="store_true", help="tiny towers, to try it out")
    add("--clusters", default="", help="of a prepared set, file of study.subsets cluster: what diversity goes by")
    add("--outcome", default="", help="metric, such as zero_shot_seen/top1 (the default of scenes)")
    add("--evals", type=several(str), default=(), help="evaluations to make (default: all of the experiment)")
    add("--tune", default="", help="a grid for every arm: optim.lr=1e-3,2e-3;optim.weight_decay=0.1,0.2")
    add("--sd", type=float, default=plan.ASSUMED_SD, help="standard deviation of the difference of paired runs, points")
    add("--topology", default=spending.CPU, help="cpu, or a slice of TPUs (%(default)s)")
    add("--price", type=float, default=0.0, help="of a chip-hour")
    add("--budget", default="", help="hours that the plan may take, such as 10h")
    add("--out", default="results/study", help="folder of the plan, the results and the page (%(default)s)")
    add("--runs", default="", help="folder of what training leaves (default: runs/<name of --out>)")
    add("--jobs", type=int, help="runs side by side (default: one a chip, two on CPUs)")
    add("--part", default="", metavar="I/N", help="every N-th run from the I-th on, for one of N machines: 0/4")
    add("--list", action="store_true", help="print index, workdir and command of each run of the plan, and stop")
    add("--index", type=int, help="train this run of the plan alone")
    add("--keep", action="store_true", help="keep the checkpoints of runs that are done")
    add("--dry_run", action="store_true", help="print the plan and stop")
    add("--report", action="store_true", help="write the page of --out anew and stop")
    cli.add_machine(made)
    return made


def grid(text: str) -> dict[str, tuple]:
    """`optim.lr=1e-3,2e-3;optim.weight_decay=0.1` as {setting: values}."""
    found = {}
    for part in filter(None, (word.strip() for word in text.split(";"))):
        name, equals, values = part.partition("=")
        try:
            found[name] = tuple(float(value) for value in values.split(","))
        except ValueError:
            equals = ""
        if not equals:
            raise UserError(f"--tune={text!r}; valid: a setting and its numbers, such as optim.lr=1e-3,2e-3")
    return found


def axes_of(args: argparse.Namespace, settings: dict[str, str]) -> design.Axes:
    """The axes of a command line."""
    return design.Axes(
        data=args.data, sizes=args.sizes, diversities=args.diversity, arms=args.arms, pools=args.pool, seeds=args.seeds,
        match=args.match, weights=args.weights, examples=args.examples, scale=args.scale, runlocal=args.runlocal,
        clusters=args.clusters, outcome=args.outcome, evals=args.evals, tune=grid(args.tune), settings=settings,
    )  # fmt: skip


def run(argv: Sequence[str]) -> int:
    """The command line; returns 1 if runs of the plan have failed."""
    from maeclip_jax.study import page

    source, suite, settings, rest = cli.split_config(argv)
    if source or suite:
        raise UserError("a study names its experiments by --arms; valid: --config.name=value, for every run")
    args = parser().parse_args(rest)
    folder = Path(args.out)
    if args.report:
        print(page.write(folder))
        return 0
    part, limit = _part(args.part), spending.budget(args.budget)
    idle = args.dry_run or args.list
    platform = args.platform or "cpu" * bool(args.cpu_devices)
    jobs = shares.usual(platform) if args.jobs is None else args.jobs
    given = [] if idle else shares.shares(jobs, platform)
    if args.topology != spending.CPU and not args.dry_run:
        raise UserError(f"--topology={args.topology} is a plan for machines elsewhere: valid with --dry_run; there, "
                        "the same command with --topology=cpu runs on what the machine has")  # fmt: skip
    axes, made = axes_of(args, settings), plan.read(folder)
    if made is not None:
        plan.same(made, axes, folder)
    else:
        from maeclip_jax.parallel import machine

        platform = args.platform or ("" if args.topology == spending.CPU else "cpu")
        machine.configure_jax(platform, args.cpu_devices, machine.cache_folder(args.cache, ""))
        made = plan.make(axes, args.topology, args.sd, args.price)
        if not args.list:
            print(plan.text(made), flush=True)
        spending.check(axes, plan.runs_of(made), speed_of(made), limit)
    if args.list:
        _list(args, made, argv)
        return 0
    only = ""
    if args.index is not None:
        if not 0 <= args.index < len(made["runs"]):
            raise UserError(f"--index={args.index}: the plan has {len(made['runs'])} runs; valid: 0 to "
                            f"{len(made['runs']) - 1}")  # fmt: skip
        only = made["runs"][args.index]["id"]
    if args.dry_run:
        if plan.read(folder) is not None:
            print(plan.text(made), flush=True)
        return 0
    return _go_on(args, folder, made, part, given, only)


def speed_of(made: dict) -> spending.Speed:
    """The speed that a plan was made with."""
    costs = made["costs"]
    chips = round(costs["chip_hours"] / costs["hours"]) if costs["hours"] else 0
    return spending.Speed(costs["step_seconds"], costs["start_seconds"], chips, costs["how"])


def _list(args: argparse.Namespace, made: dict, argv: Sequence[str]) -> None:
    """The runs of a plan, those that tune first, which the others wait for."""
    workdirs = args.runs or os.path.join("runs", Path(args.out).name)
    same = [word for word in argv if word != "--list"]
    for i, one in enumerate(made["runs"]):
        command = shlex.join(["python", "-m", "maeclip_jax.study", *same, f"--index={i}"])
        print(i, os.path.join(workdirs, one["id"]), command, sep="\t")


def _go_on(args, folder: Path, made: dict, part: tuple[int, int], given: Sequence[shares.Share], only: str) -> int:
    from maeclip_jax.study import crew, page, results

    if plan.read(folder) is None:
        results.put(folder / plan.PLAN, json.dumps(made, indent=1) + "\n")
    workdirs = Path(args.runs or os.path.join("runs", folder.name))
    workdirs.mkdir(parents=True, exist_ok=True)
    results.read(folder, made)  # of another plan: said before anything is trained
    written = [0.0]

    def show() -> None:
        if time.monotonic() - written[0] > EVERY:
            page.write(folder)
            written[0] = time.monotonic()

    flags = [f"--{n}={x}" for n in ("platform", "cpu_devices", "cache") if (x := getattr(args, n))]
    crew.work(folder, workdirs, made, given=given, part=part, only=only, flags=flags, show=show)
    found, missing = results.read(folder, made)
    for result in found if not args.keep else ():
        shutil.rmtree(workdirs / result.run.id / "checkpoints", ignore_errors=True)
    print(page.write(folder))
    failed = {name: why for name, why in missing.items() if why != results.NOT_RUN}
    for name, why in failed.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return int(bool(failed))


def _part(text: str) -> tuple[int, int]:
    first, slash, count = text.partition("/")
    if not text:
        return 0, 1
    if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UserError(f"--part={text!r}; valid: I/N with I from 0 to N - 1, such as 0/4")
    return int(first), int(count)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 where runs have failed, 2 for what the user can put right."""
    return cli.guarded(lambda: run(sys.argv[1:] if argv is None else argv))
