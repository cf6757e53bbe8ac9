"""Trains or evaluates one experiment.

    python -m maeclip_jax.main --config=experiments/mae_clip.py:pool=max,scale=low --workdir=runs/a [--config.x.y=v ...]
    python -m maeclip_jax.main --mode=eval --config=runs/a/config.json --workdir=runs/a \
        --config.evals=experiments/eval/scenes.py

Running the same command again continues the run. A mistake in it ends in one line and exit code 2. --config is an
experiment file with its argument, or the config.json of a run; --config.evals may name a file of evaluations (a suite)
to take the place of the config's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maeclip_jax import cli
from maeclip_jax.errors import UserError, unknown
from maeclip_jax.parallel import sleep, terminal, watchdog
from maeclip_jax.run import profile, stop

MODES = ("train", "eval")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with the config loaded; UserError for anything wrong in it, with the valid choices."""
    parser = cli.ExperimentParser("maeclip_jax.main", __doc__)
    limits = watchdog.Limits()
    parser.add_argument("--workdir", default="", help="directory of the run; local or gs://")
    parser.add_argument("--mode", default="train", help=f"one of {', '.join(MODES)} (%(default)s)")
    cli.add_machine(parser)
    parser.add_argument("--stall_factor", type=float, default=limits.factor,
                        help="stacks are printed when a step takes this many median steps (%(default)s),")  # fmt: skip
    parser.add_argument("--stall_seconds", type=float, default=limits.seconds,
                        help="... and at least this many seconds; 0: never (%(default)s)")  # fmt: skip
    parser.add_argument("--grace", type=float, default=stop.GRACE_SECONDS,
                        help="seconds after SIGTERM in which a run that uses a bucket ends, saved or not; 0: it waits "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--profile", default="", help="START:STOP: a profile of these steps, in WORKDIR/profile")
    args = parser.parse_experiment(argv)
    args.profile = profile.parse(args.profile)
    if not args.workdir:
        raise UserError("--workdir is missing: name the directory of the run, such as --workdir=runs/mine")
    if args.mode not in MODES:
        raise unknown("--mode", args.mode, MODES)
    if args.profile and args.mode != "train":
        raise UserError("--profile is of training steps; valid with --mode=train only")
    return args


def run(argv: Sequence[str], spent: float | None = None) -> None:
    """Parses, sets up jax, trains or evaluates. `spent`: see `startup.Startup`."""
    from maeclip_jax.run import startup

    sleep.watch()
    start = startup.Startup(spent)
    args = parse(argv)
    cli.start_logging()
    import jax

    from maeclip_jax.run import evaluate, train

    start.add("import", start.so_far())
    limits = watchdog.Limits(args.stall_factor, args.stall_seconds)
    with watchdog.Watchdog(limits, start.look):
        with start.phase("join"), terminal.Waiting("waiting for the other processes", shown=True):
            cli.start_jax(args, mode=args.mode, workdir=args.workdir)
        with start.phase("devices"), terminal.Waiting("waiting for the devices", shown=True):
            jax.devices()
        if args.mode == "train":
            train.run(args.config, args.workdir, start=start, limits=limits, profile=args.profile,
                      grace=args.grace)  # fmt: skip
    if args.mode == "eval":
        evaluate.run(args.config, args.workdir)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done or stopped on request, 2 for a mistake of the user's, 130 for Ctrl-C.

    75 (rollcall.LOST) where the same command goes on later: storage was away for too long, or another process is lost.
    A process of several also exits with the code of one that fails.
    """
    # Where something else calls this, the process is older than the run's start, by hours perhaps.
    return cli.guarded(lambda: run(sys.argv[1:]) if argv is None else run(argv, spent=0.0))


if __name__ == "__main__":
    cli.leave(main)
