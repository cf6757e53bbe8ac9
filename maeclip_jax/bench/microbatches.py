"""Memory and speed of a step in micro-batches, beside the same batch whole and the batch that fits into their memory.

    python -m maeclip_jax.bench microbatches --config=experiments/clip.py:scale=demo --parts=16
        [--batch=4096] [--steps=2] [--rounds=1] [--json=FILE] [--config.x=y]

Three ways, each in processes of its own that take turns: the batch in `parts` parts, the batch whole, and a batch of
one part, which has the examples that the first way holds at a time. Memory is the most that the process had resident,
Python, jax and the compiler's own included; speed is of the median step. Everything is measured here, in one run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from maeclip_jax import cli
from maeclip_jax.bench.children import last_words
from maeclip_jax.bench.figures import add_json, write
from maeclip_jax.errors import UserError

SPEED, MEMORY = "images/s", "peak resident GiB (process)"


def measure(words: Sequence[str], ways: dict[str, tuple[int, int]], steps: int, rounds: int) -> dict[str, list[dict]]:
    """`bench step`'s figures of each way, {name: (batch, parts)}, in each round. UserError if a process fails."""
    found: dict[str, list[dict]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        for name, (batch, parts) in list(ways.items()) * rounds:
            command = [
                sys.executable, "-m", "maeclip_jax.bench", "step", *words, f"--steps={steps}", "--batches=0",
                f"--json={file}", f"--config.batch_size={batch}", f"--config.microbatches={parts}",
            ]  # fmt: skip
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise UserError(f"{name}: {last_words(done.stderr, f'a process ended with code {done.returncode}')}")
            found[name].append(json.loads(file.read_text())["figures"])
            print(
                f"{name}: {found[name][-1][SPEED]:.1f} images/s, {found[name][-1][MEMORY]:.2f} GiB",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return found


def run(argv: Sequence[str]) -> None:
    """The command line: an experiment and --parts, --batch, --steps, --rounds, --json."""
    source, suite, settings, rest = cli.split_config(argv)
    parser = cli.ExperimentParser("maeclip_jax.bench microbatches", __doc__)
    parser.add_argument("--parts", type=int, default=16, help="micro-batches (%(default)s)")
    parser.add_argument("--batch", type=int, default=4096, help="examples in all of them (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each way (%(default)s)")
    parser.add_argument("--platform", default="", help="passed on to every process")
    parser.add_argument("--cpu_devices", default="", help="passed on to every process")
    add_json(parser)
    args = parser.parse_args(rest)
    if not source or suite:
        raise UserError("name an experiment; valid: --config=experiments/FILE.py:ARGUMENT, and --config.name=value")
    if args.parts < 2 or args.batch % args.parts or min(args.steps, args.rounds) < 1:
        raise UserError(
            f"--parts={args.parts} --batch={args.batch} --steps={args.steps} --rounds={args.rounds}; valid: 2 or more "
            "parts, which divide the batch, 1 or more steps and rounds"
        )
    words = [f"--config={source}", *(f"--config.{k}={v}" for k, v in settings.items())]
    words += [f"--{n}={x}" for n in ("platform", "cpu_devices") if (x := getattr(args, n))]
    part = args.batch // args.parts
    parts, whole, one = ways = f"{args.batch} in {args.parts} parts", f"{args.batch} whole", f"{part} whole"
    sizes = dict(zip(ways, ((args.batch, args.parts), (args.batch, 1), (part, 1))))
    found = measure(words, sizes, args.steps, args.rounds)
    speed = {name: statistics.median(f[SPEED] for f in found[name]) for name in ways}
    memory = {name: max(f[MEMORY] for f in found[name]) for name in ways}
    for name in ways:
        print(f"{name}: {speed[name]:.1f} images/s, {memory[name]:.2f} GiB resident at most (measured here)")
    ratios = {"memory": memory[parts] / memory[whole], "speed": speed[parts] / speed[one]}
    print(f"memory, {parts} / {whole}: {ratios['memory']:.2f}")
    print(f"images/s, {parts} / {one}: {ratios['speed']:.2f}")
    write("microbatches", {"runs": found, "ratios": ratios}, args.json)
