"""Kills a run at random moments and restarts it; the end must be bit-equal to that of a run nobody disturbed.

    python -m tests.torture [--kills=20] [--seed=0] [--objective=mae_clip] [--devices=1] [--keep=DIR] [--bucket=yes]

Moments are drawn from: any time after the start (imports, restoring, compiling included), while a checkpoint is being
written, during an evaluation, and right after a row was logged. Compared at the end: every array of the last
checkpoint, the sequence of example keys, every number of metrics.jsonl (times excepted) with one row a step, and the
results of all evaluations.

--bucket=yes: data and workdir are in a storage server on loopback, which is stopped and started again at every tenth
kill; moments are any time after the start. The run that is compared with is a local one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = ("any time", "checkpoint", "evaluation", "row")
TIMES = ("perf/", "progress/eta_seconds")  # what two runs need not share


def command(workdir: Path | str, config: str, *more: str, devices: int = 1) -> list[str]:
    """The command line of a run on `devices` fake CPU devices."""
    return [
        sys.executable, "-m", "maeclip_jax.main", f"--config={config}", f"--workdir={workdir}",
        f"--cpu_devices={devices}", *more,
    ]  # fmt: skip


def start(args: list[str], output: Path) -> subprocess.Popen:
    """A run in the background; what it says goes to `output`."""
    with output.open("ab") as f:
        return subprocess.Popen(args, cwd=ROOT, stdout=f, stderr=subprocess.STDOUT)


def finish(args: list[str], output: Path, timeout: float = 600) -> int:
    """The exit code of a run."""
    process = start(args, output)
    try:
        return process.wait(timeout)
    finally:
        process.kill()


def pulse(moment: str, workdir: Path) -> object:
    """Something that changes when `moment` comes: the row, the half-written checkpoint, the evaluation under way."""
    if moment == "checkpoint":
        return max((p.name for p in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")), default=None)
    path = workdir / "metrics.jsonl"
    last = path.read_text().rstrip("\n").rpartition("\n")[2] if path.exists() else ""
    step = int(last.partition(",")[0].rpartition(" ")[2]) if last else 0
    if moment == "evaluation" and ((step % 4 and step % 6) or (workdir / "evals" / f"{step}.json").exists()):
        return None
    return step or None


def strike(process: subprocess.Popen, moment: str, workdir: Path, rng: random.Random) -> bool:
    """Kills `process` at `moment`; False if it ended by itself before."""
    if moment == "any time":
        deadline = time.monotonic() + rng.uniform(0, 12)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
    else:
        wait_for = rng.randint(1, 12 if moment == "row" else 4)  # the first, second, ... time it comes
        last = pulse(moment, workdir)
        while wait_for and process.poll() is None:
            time.sleep(0.0005)
            now = pulse(moment, workdir)
            if now != last and now is not None:
                wait_for -= 1
            last = now
        time.sleep(rng.uniform(0, 0.05))
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def steps(workdir: Path) -> list[int]:
    """Complete checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """The last checkpoint, whole."""
    from maeclip_jax.run import checkpoint

    return checkpoint.read_numpy(checkpoint.locate(workdir) / checkpoint.STATE)


def examples(workdir: Path) -> list[list[str]]:
    """Keys of the examples of every step; where a step was done twice, both must have had the same. All processes."""
    by_step: dict[int, dict[int, list[str]]] = {}
    for path in sorted((workdir / "examples").iterdir()):
        process = int(path.stem.rsplit("-", 1)[1])
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short by a kill
            had = by_step.setdefault(row["step"], {}).setdefault(process, row["keys"])
            if len(had) == len(row["keys"]):  # else: done again on another number of processes
                assert had == row["keys"], f"step {row['step']} had other examples the second time"
    assert sorted(by_step) == list(range(len(by_step))), "a step is missing"
    return [[key for p in sorted(by_step[s]) for key in by_step[s][p]] for s in sorted(by_step)]


def metrics(workdir: Path) -> list[dict]:
    """Rows of metrics.jsonl without times; every line must be whole, every step there once."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    twice = [step for step, n in Counter(r["step"] for r in rows).items() if n > 1]
    assert not twice, f"steps with several rows: {twice}"
    assert [r["step"] for r in rows] == sorted(r["step"] for r in rows)
    return [{k: v for k, v in r.items() if not k.startswith(TIMES)} for r in rows]


def evaluations(workdir: Path) -> dict[str, dict]:
    """Results of evaluations without their times."""
    found = {p.name: json.loads(p.read_text()) for p in sorted((workdir / "evals").glob("*.json"))}
    for result in found.values():
        result["seconds"] = sorted(result["seconds"])
    return found


def compare(run: Path, reference: Path) -> list[str]:
    """What was compared, a line each; AssertionError where the two differ."""
    a, b = arrays(run), arrays(reference)
    assert a.keys() == b.keys()
    differ = [p for p in a if a[p].tobytes() != b[p].tobytes()]
    assert not differ, f"{len(differ)} of {len(a)} arrays differ: {differ[:3]}"
    assert steps(run) == steps(reference), f"checkpoints {steps(run)} and {steps(reference)}"
    keys = examples(run)
    assert keys == examples(reference), "the examples differ"
    rows = metrics(run)
    for mine, other in zip(rows, metrics(reference), strict=True):
        assert mine == other, f"step {mine['step']}: {set(mine.items()) ^ set(other.items())}"
    evals = evaluations(run)
    assert evals == evaluations(reference), "evaluations differ"
    return [
        f"{len(a)} arrays of the last checkpoint: bit-equal",
        f"{len(keys)} steps of {len(keys[0])} example keys: equal",
        f"{len(rows)} rows of metrics.jsonl: equal, one a step",
        f"{len(evals)} evaluations: equal",
    ]


def torture(folder: Path, config: str, *, kills: int, seed: int, devices: int = 1, moments=MOMENTS) -> list[str]:
    """Runs `config` in `folder`, undisturbed and killed `kills` times; says what was compared and found equal."""
    rng = random.Random(seed)
    reference, run = folder / "reference", folder / "killed"
    if not reference.exists():
        code = finish(command(reference, config, devices=devices), folder / "reference.txt")
        assert code == 0, (folder / "reference.txt").read_text()
    count, said = 0, folder / "killed.txt"
    said.touch()
    while count < kills:
        moment = moments[count % len(moments)] if kills <= len(moments) else rng.choice(moments)
        had = max(steps(run), default=0)
        process = start(command(run, config, devices=devices), said)
        struck = strike(process, moment, run, rng)
        if not struck:
            assert process.returncode == 0, said.read_text()
            print("  the run came to its end; it begins anew", flush=True)
            run.rename(folder / f"ended-{count}")
            compare(folder / f"ended-{count}", reference)
            continue
        count += 1
        print(
            f"kill {count:2}: {moment:10}  from step {had:3}, complete checkpoint {max(steps(run), default=0):3}, "
            f"half-written ones {len(list((run / 'checkpoints').glob('*tmp*')))}",
            flush=True,
        )
    code = finish(command(run, config, devices=devices), said)
    assert code == 0, said.read_text()
    assert not list((run / "checkpoints").glob("*tmp*")), "half-written checkpoints were left behind"
    return compare(run, reference)


def torture_in_bucket(folder: Path, objective: str, *, kills: int, seed: int) -> list[str]:
    """As `torture`, of a run whose data and workdir are in a bucket."""
    from maeclip_jax import remote
    from maeclip_jax.bench import bucket
    from maeclip_jax.prepare.builders import scenes

    config, rng = f"tests/stored.py:objective={objective},steps=120,save=4,evals=True", random.Random(seed)
    scenes.build("mu", folder / "data")
    os.environ["MAECLIP_DATA_DIR"] = str(folder / "data")
    assert finish(command(folder / "reference", config), folder / "reference.txt") == 0
    with bucket.serve("torture") as served:
        os.environ.update(served.env, MAECLIP_DATA_DIR=served.upload(folder / "data", "data"))
        where, said, count, runs = "gs://torture/run-0", folder / "killed.txt", 0, 0
        while True:
            process = start(command(where, config), said)
            if count < kills:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0, 14))
            else:
                process.wait(600)
            if process.poll() is not None:  # it came to its end
                assert process.returncode == 0, said.read_text()[-4000:]
                run = folder / f"run-{runs}"
                remote.system(where).get(f"{where}/", f"{run}/", recursive=True)
                lines = compare(run, folder / "reference")
                if count >= kills:
                    return lines
                print(f"  run {runs} came to its end and is equal; another begins", flush=True)
                runs += 1
                where = f"gs://torture/run-{runs}"
                continue
            process.kill()
            process.wait()
            count += 1
            if count % 10 == 0:
                served.restart()
                print(f"kill {count}", flush=True)


def main() -> None:
    """The command line."""
    given = dict(kills="20", seed="0", objective="mae_clip", devices="1", keep="", bucket="")
    given |= dict(arg.removeprefix("--").split("=", 1) for arg in sys.argv[1:])
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    folder = Path(given["keep"] or tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    # A step every checkpoint or two, so that whatever is random falls everywhere; 40 records: an epoch ends in a batch.
    config = f"tests/tiny.py:objective={given['objective']},steps=120,count=40,save=4"
    how = {"kills": int(given["kills"]), "seed": int(given["seed"])}
    if given["bucket"]:
        lines = torture_in_bucket(folder, given["objective"], **how)
    else:
        lines = torture(folder, config, devices=int(given["devices"]), **how)
    print("\n".join([f"{given['kills']} kills, {time.time() - begun:.0f} s, {folder}", *lines]))


if __name__ == "__main__":
    main()
