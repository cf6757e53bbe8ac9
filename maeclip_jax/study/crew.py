"""The processes that train a study: several at a time, each run after run; a run that is done is never redone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import jobs, shares
from maeclip_jax.parallel.terminal import duration_text
from maeclip_jax.study import design, draws, plan, results
from maeclip_jax.study.work import DONE, FAILED, MISTAKE

TRIES = 2  # of a run whose process dies


def work(
    folder: Path,
    workdirs: Path,
    made: Mapping,
    *,
    given: Sequence[shares.Share],
    part: tuple[int, int] = (0, 1),
    only: str = "",
    flags: Sequence[str] = (),
    show: Callable[[], None] = lambda: None,
) -> None:
    """Trains what is missing, tuning first, and says how far it is; as many at once as there are `given` shares.

    part: (i, n): every n-th run, from the i-th on; only: the run of this name alone. Runs that
    failed before are tried again. `show` is called after every run, in one thread at a time.
    """
    draws.write(plan.axes_of(made), plan.runs_of(made), folder)
    for phases in ((design.TUNE,), (design.MAIN, design.WEIGHT)):
        if only and only not in (run.id for run in plan.runs_of(made) if run.phase in phases):
            continue
        chosen = tuned(folder, made) if design.TUNE not in phases else {}
        found = results.read(folder, made)[0]
        done = {r.run.id for r in found}
        runs = [run for run in plan.runs_of(made) if run.phase in phases]
        left = [run for i, run in enumerate(runs) if run.id not in done and i % part[1] == part[0]]
        left = [run for run in left if only in ("", run.id)]
        if left:
            crew = _Crew(folder, workdirs, made, left, chosen, flags, show)
            crew.run(given[: len(left)])
        if design.TUNE in phases and made["tuning"]["grid"] and not only:
            _choose(folder, made)


def tuned(folder: Path, made: Mapping) -> dict[str, dict[str, Any]]:
    """{arm: the settings that tuning chose}."""
    path = folder / "tuned.json"
    if not made["tuning"]["grid"]:
        return {}
    if not path.exists():
        raise UserError(f"{path} is missing: the runs that tune have not all been made; run the study without --part")
    return json.loads(path.read_text())["chosen"]


def _choose(folder: Path, made: Mapping) -> None:
    """Writes tuned.json: of each arm the settings with the best outcome. Written once."""
    path = folder / "tuned.json"
    tries = [r for r in results.read(folder, made)[0] if r.run.phase == design.TUNE]
    if path.exists():
        return
    chosen, table = {}, {}
    for arm in made["axes"]["arms"]:
        mine = [r for r in tries if r.run.arm == arm]
        if not mine:
            raise UserError(f"no run that tunes {arm!r} has a result; see the logs, and run the same command again")
        if mine[0].better == "none":
            raise UserError(f"--tune takes the best {made['outcome']}, of which neither more nor less is better; name "
                            "another --outcome, and another --out")  # fmt: skip
        higher = mine[0].better == "higher"
        best = max(mine, key=lambda r: -math.inf if math.isnan(r.value) else r.value if higher else -r.value)
        chosen[arm] = {k: best.run.settings[k] for k in made["tuning"]["grid"]}
        table[arm] = {r.run.id: r.value for r in mine}
    path.write_text(json.dumps({"chosen": chosen, "outcomes": table}, indent=1) + "\n")


class _Crew:
    def __init__(self, folder, workdirs, made, runs, chosen, flags, show):
        self.folder, self.workdirs, self.chosen, self.flags, self.show = folder, workdirs, chosen, flags, show
        self.queue, self.total, self.tried = deque(runs), len(runs), dict.fromkeys((r.id for r in runs), 0)
        self.lock, self.begun, self.done, self.failed = threading.Lock(), time.monotonic(), 0, []
        self.weight = {run.id: run.flops for run in runs}
        self.processes: list[subprocess.Popen] = []
        self.stopped, self.mistake = 0.0, ""  # when it was; what no run of the plan can do
        self.broken: Exception | None = None  # what ended a thread of ours

    def run(self, given: Sequence[shares.Share]) -> None:
        threads = [threading.Thread(target=self._serve, args=(share,), daemon=True) for share in given]
        for thread in threads:
            thread.start()
        try:
            with jobs.asked(self.stop) as came:
                while any(thread.is_alive() for thread in threads):
                    time.sleep(0.1)
                    if self.stopped and time.monotonic() > self.stopped + jobs.GRACE:
                        break
            if came:
                raise KeyboardInterrupt
            if self.broken:
                raise self.broken
            if self.mistake:
                raise UserError(self.mistake)
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()

    def stop(self, why: str) -> None:
        """Starts nothing more; what is under way saves and ends. Asked again, it is killed."""
        number = signal.SIGKILL if self.stopped else signal.SIGTERM
        self.stopped = self.stopped or time.monotonic()
        for process in list(self.processes):
            if process.poll() is None:
                process.send_signal(number)

    def _serve(self, share: shares.Share) -> None:
        try:
            self._train_all(share)
        except Exception as e:  # no run is left untrained in silence
            self.broken = self.broken or e
            self.stop(str(e))

    def _train_all(self, share: shares.Share) -> None:
        share.pin()  # this thread, of which the process inherits it
        process = None
        while True:
            with self.lock:
                if not self.queue or self.stopped:
                    break
                run = self.queue.popleft()
                self.tried[run.id] += 1
            if process is None or process.poll() is not None:
                process = self._start(share)
            said = self._ask(process, run)
            if said.startswith(MISTAKE):
                self.mistake = said.removeprefix(MISTAKE)
                self.stop(self.mistake)
            if self.stopped and said not in (DONE, FAILED):
                break
            if not said and self.tried[run.id] < TRIES:
                with self.lock:
                    self.queue.append(run)
                continue
            if not said:
                why = f"its process ended with {process.wait()} in {TRIES} tries; see {self.workdirs / run.id}.log"
                results.write(self.folder, run.id, {"id": run.id, "failed": why})
            with self.lock:
                self._tell(run, said)
        if process is not None:
            process.stdin.close()
            process.wait()

    def _start(self, share: shares.Share) -> subprocess.Popen:
        command = [sys.executable, "-m", "maeclip_jax.study.work", os.fspath(self.folder), os.fspath(self.workdirs)]
        process = subprocess.Popen(
            [*command, *self.flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=os.environ | dict(share.environment),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def _ask(self, process: subprocess.Popen, run: design.Run) -> str:
        """What the worker answers; "" if its process ended."""
        try:
            print(json.dumps({"run": run.id, "tuned": self.chosen.get(run.arm, {})}), file=process.stdin, flush=True)
            return process.stdout.readline().strip()
        except OSError:
            return ""

    def _tell(self, run: design.Run, said: str) -> None:
        self.done += 1
        if said in ("", FAILED):
            self.failed.append(run.id)
        spent = time.monotonic() - self.begun
        work = sum(self.weight.values())
        left = sum(self.weight[r.id] for r in self.queue)
        eta = spent * left / max(work - left, 1e-9) if work else 0.0
        failed = f" | {len(self.failed)} failed" if self.failed else ""
        print(f"{self.done} of {self.total} runs | {run.id}: {said or 'process died'} | {duration_text(spent)} | eta "
              f"{duration_text(eta)}{failed}", flush=True)  # fmt: skip
        try:
            self.show()
        except Exception:  # the runs are worth more than a look at them; at the end it is raised
            print(f"the page of {self.done} runs cannot be written:", flush=True)
            traceback.print_exc(limit=-1)
