"""Restart to first step, with a cold compilation cache and with a warm one, measured in one go on this machine.

    python -m maeclip_jax.bench startup --config=experiments/mae_clip.py:runlocal [--repeats=3] [--json=FILE] [flags]

Trains until the first step is done and stops with a checkpoint; then restarts from it, with an empty cache and with the
one that restart filled in turn, `--repeats` times each, as processes of their own. Flags are those of training. Figures
are medians; the files of the operating system are as warm in the one as in the other.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from maeclip_jax import cli
from maeclip_jax.bench.children import last_words
from maeclip_jax.bench.figures import add_json, write
from maeclip_jax.errors import UserError
from maeclip_jax.run import startup
from maeclip_jax.workdir import COSTS

KINDS = ("cold", "warm")


def start(argv: list[str], workdir: Path, cache: Path) -> dict[str, float]:
    """Seconds by phase of one start in `workdir`, which is then stopped with a checkpoint. UserError if it fails."""
    costs, said = workdir / COSTS, workdir.with_suffix(".txt")
    costs.unlink(missing_ok=True)
    # A million steps, so that a short experiment is not over when it is stopped; no checkpoint but the last.
    long = ["--config.total=1000000 steps", "--config.checkpoint.every=1000000 steps"]
    command = [sys.executable, "-m", "maeclip_jax.main", f"--workdir={workdir}", f"--cache={cache}", *long, *argv]
    with said.open("w") as f:
        process = subprocess.Popen(command, stdout=f, stderr=subprocess.STDOUT)
    try:
        while not costs.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(600)
    finally:
        process.kill()
    if process.returncode or not costs.exists():
        last = last_words(said.read_text(), "nothing was said")
        raise UserError(f"training ended with code {process.returncode}: {last}")
    return json.loads(costs.read_text())["start_seconds"]


def measure(argv: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """{"cold", "warm"} -> median seconds by phase over `repeats` restarts of each."""
    found: dict[str, list] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        workdir, cache = Path(folder) / "run", Path(folder) / "xla"
        start(argv, workdir, cache)
        for _ in range(repeats):
            shutil.rmtree(cache, ignore_errors=True)
            for kind in KINDS:
                found[kind].append(start(argv, workdir, cache))
                print(f"{kind}: to first step {found[kind][-1][startup.FIRST_STEP]:.1f} s", file=sys.stderr, flush=True)
    return {
        kind: {phase: statistics.median(s.get(phase, 0.0) for s in starts) for phase in starts[0]}
        for kind, starts in found.items()
    }


def table(seconds: dict[str, dict[str, float]], repeats: int) -> str:
    """A row a phase, and the ratio of the sums."""
    phases = list(seconds["cold"])
    width = max(map(len, phases))
    rows = [f"{p.ljust(width)}  " + "  ".join(f"{seconds[kind].get(p, 0.0):8.2f}" for kind in KINDS) for p in phases]
    ratio = seconds["cold"][startup.FIRST_STEP] / seconds["warm"][startup.FIRST_STEP]
    head = f"{'seconds'.ljust(width)}  " + "  ".join(f"{kind:>8}" for kind in KINDS)
    end = f"restart to first step: cold / warm = {ratio:.2f} (measured here, medians of {repeats} restarts each)"
    return "\n".join([head, *rows, end])


def run(argv: Sequence[str]) -> None:
    """The command line: the flags of training and --repeats, --json."""
    source, suite, settings, _ = cli.split_config(argv)
    parser = cli.ExperimentParser("maeclip_jax.bench startup", __doc__)
    parser.add_argument("--repeats", type=int, default=3, help="restarts of each kind (%(default)s)")
    add_json(parser)
    cli.add_machine(parser)
    args = parser.parse_experiment(argv)  # mistakes are found before anything starts
    if args.repeats < 1:
        raise UserError(f"--repeats={args.repeats} is not a number of restarts; valid: 1, 2, ...")
    flags = [f"--config={source}", *(f"--config.{n}={x}" for n, x in settings.items())]
    flags += [f"--config.evals={suite}"] if suite else []
    flags += [f"--{n}={x}" for n, x in vars(args).items() if n in ("platform", "cpu_devices") and x]
    seconds = measure(flags, args.repeats)
    print(table(seconds, args.repeats))
    write("startup", seconds, args.json)
