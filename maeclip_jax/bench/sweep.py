"""Runs an hour of a sweep, one after the other and side by side, measured in one go on this machine.

    python -m maeclip_jax.bench sweep pooling_demo [--jobs=2] [--rounds=1] [--json=FILE] [--config.total="50 steps" ...]

Every sweep is made in a folder of its own, with a compilation cache that a first sweep has filled and that is not
counted. The ways take turns, so that what else the machine does falls on both. The time is that of the whole command,
its table included.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from maeclip_jax import cli
from maeclip_jax.bench.children import last_words
from maeclip_jax.bench.figures import add_json, write
from maeclip_jax.errors import UserError

SILENT = "the sweep failed and said nothing"


def measure(words: Sequence[str], ways: Sequence[int], rounds: int) -> tuple[dict[int, list[float]], int]:
    """({jobs: seconds of each sweep}, runs of the sweep). UserError if one fails."""
    command = [sys.executable, "-m", "maeclip_jax.sweep", *words]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise UserError(last_words(listed.stderr, SILENT))
    seconds: dict[int, list[float]] = {jobs: [] for jobs in ways}
    with tempfile.TemporaryDirectory() as folder:
        for i, jobs in enumerate([max(ways), *ways * rounds]):
            begun = time.monotonic()
            flags = [f"--root={folder}/{i}", f"--jobs={jobs}", f"--cache={folder}/xla"]
            done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(last_words(done.stderr, SILENT))
            took = time.monotonic() - begun
            print(f"{'first, not counted' if not i else f'jobs={jobs}'}: {took:.1f} s", file=sys.stderr, flush=True)
            if i:
                seconds[jobs].append(took)
    return seconds, len(listed.stdout.splitlines())


def run(argv: Sequence[str]) -> None:
    """The command line: a sweep, its settings and --jobs, --rounds, --json."""
    source, suite, settings, rest = cli.split_config(argv)
    parser = cli.ExperimentParser("maeclip_jax.bench sweep", __doc__)
    parser.add_argument("sweep", help="a name in experiments/sweeps/, or a path")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="sweeps of each way (%(default)s)")
    parser.add_argument("--platform", default="", help="passed on to every run")
    add_json(parser)
    args = parser.parse_args(rest)
    if source or suite:
        raise UserError("a sweep names its experiments itself; valid: --config.name=value, for every run")
    if args.jobs < 2 or args.rounds < 1:
        raise UserError(f"--jobs={args.jobs} --rounds={args.rounds}; valid: 2 or more jobs, 1 or more rounds")
    words = [args.sweep, *(f"--config.{k}={v}" for k, v in settings.items())]
    words += [f"--platform={args.platform}"] if args.platform else []
    seconds, runs = measure(words, (1, args.jobs), args.rounds)
    hourly = {jobs: 3600 * runs / statistics.median(took) for jobs, took in seconds.items()}
    for jobs, rate in hourly.items():
        print(f"jobs={jobs}: {rate:.1f} runs an hour ({runs} runs, median of {args.rounds}, measured here)")
    ratio = hourly[args.jobs] / hourly[1]
    print(f"runs an hour, {args.jobs} side by side / one after the other: {ratio:.2f}")
    write("sweep", {"seconds": seconds, "runs": runs, "ratio": ratio}, args.json)
