"""Trains the runs of a study, several after one another in each of a few processes. `crew` starts them.

    python -m maeclip_jax.study.work FOLDER WORKDIRS [--platform=cpu]      started by the study's command

A worker reads from stdin what to train, a line of JSON each, and answers each with a line when it is done; what
training says goes to WORKDIRS/<run>.log. A run that fails is kept as such with its reason; one whose process dies is
tried once more. SIGTERM lets a run save and ends its worker. A worker that has lost its parent leaves at once, so that
nothing trains unseen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from maeclip_jax import cli
from maeclip_jax import config as configs
from maeclip_jax.errors import UserError
from maeclip_jax.study import design, diversity, plan, results

MEASURED = 200_000  # records of which the realised diversity is measured
DONE, FAILED, STOPPED = "done", "failed", "stopped"
MISTAKE = "mistake: "  # of the plan, so that every run would fail alike


def train(run: design.Run, folder: Path, workdir: Path, made: dict, tuned: dict) -> bool:
    """One run to its end, and its result. False if it was asked to stop before, and has saved."""
    from maeclip_jax.data import source
    from maeclip_jax.run import train as loop

    settings = dict(run.settings) | tuned | {"log.sinks": "jsonl", "checkpoint.every": "25%", "checkpoint.keep_last": 1}
    config = configs.load(run.config.replace("{study}", os.fspath(folder)), settings)
    if made["axes"]["evals"]:
        config.evals = {name: config.evals[name] for name in made["axes"]["evals"]}
    for entry in config.evals.values():
        entry.every = "0 steps"  # at the end alone
    if not loop.run(config, workdir):
        return False
    data = _measured(run.config, run.size, run.diversity, run.seed, config.data.source, source)
    run = dataclasses.replace(run, settings=dict(run.settings) | tuned)
    results.write(folder, run.id, results.collect(run, workdir, made["outcome"], data))
    return True


_known: dict[tuple, dict] = {}


def _measured(name: str, size: int, share: float, seed: int, of, source) -> dict:
    """What the training data of a run really hold; computed once for the arms of a cell."""
    key = (size, share, seed)
    if key not in _known:
        described = of.to_dict()
        if described.get("kind") == "scenes":
            described["truth"] = "all"
        _known[key] = diversity.measure(source.make(described), most=MEASURED)
    return _known[key]


def serve(argv: Sequence[str]) -> None:
    """The command line of a worker."""
    parser = cli.Parser("maeclip_jax.study.work", __doc__)
    parser.add_argument("folder")
    parser.add_argument("workdirs")
    cli.add_machine(parser)
    args = parser.parse_args(argv)
    folder, answer = Path(args.folder), os.fdopen(os.dup(1), "w", buffering=1)
    parent = os.getppid()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    made = plan.read(folder)
    runs = {run.id: run for run in plan.runs_of(made)}
    cli.start_logging()
    from maeclip_jax.parallel import machine

    machine.configure_jax(args.platform, args.cpu_devices, machine.cache_folder(args.cache, ""))
    import jax

    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["run"]
        run, workdir = runs[name], Path(args.workdirs) / name
        with _said_to(Path(args.workdirs) / f"{name}.log"):
            try:
                said = DONE if train(run, folder, workdir, made, asked["tuned"]) else STOPPED
            except results.NotMeasured as e:
                said = MISTAKE + " ".join(str(e).split())
            except Exception as e:
                traceback.print_exc()
                said = " ".join(str(e).split()) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
                results.write(folder, name, {"id": name, "failed": " ".join(said.split())})
                said = FAILED
        jax.clear_caches()
        print(said, file=answer, flush=True)
        if said == STOPPED or said.startswith(MISTAKE):
            break


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def _said_to(path: Path):
    """stdout and stderr of this process go to a file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(1), os.dup(2)
    with open(path, "a", buffering=1) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in enumerate(before, 1):
                os.dup2(old, number)
                os.close(old)


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: serve(sys.argv[1:])))
