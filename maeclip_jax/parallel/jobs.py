"""Commands side by side on one machine: a share each, their output in files, stopped together, failures at the end.

How many run at once is bounded by memory too. Until a run of the list has trained, each is taken to need UNKNOWN bytes;
after that, as much as the largest has been seen to take, times MARGIN. One starts where what is free, less what those
under way may still take, is enough; where memory runs low all the same, the youngest is stopped (it saves) and started
again later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import shares

GIB = 2**30
UNKNOWN, MARGIN = 3 * GIB, 1.15
LOW = 0.75 * GIB  # free bytes below which the youngest of several runs is stopped
LOOK = 0.5  # seconds between two looks at memory
GRACE = 110.0  # seconds in which what is stopped saves; then it is killed
MISTAKE = 2  # the exit code of what the user has to put right
# Lines of a run that are shown beside its file.
SHOWN = re.compile(r"(step \d+/|start-up|error: |stopping |.*: all \d+ steps are done)")
STARTED = re.compile(r"(step \d+/|start-up)")


@dataclasses.dataclass
class Job:
    """A command with a name, and the file that its output goes to. The rest is what has become of it."""

    name: str
    command: Sequence[str]
    output: Path
    code: int | None = None
    seconds: float = 0.0
    last: str = ""  # what it said last
    started: bool = False  # whether it has trained
    process: subprocess.Popen | None = None
    requeued: bool = False


class Jobs:
    """Runs `todo`, as many at a time as there are `given` shares and room in memory.

    A job that fails does not stop the others, except by a mistake (exit code 2) before its first step, which the others
    may share: then all are stopped. say: prints a line.
    """

    def __init__(self, todo: Sequence[Job], given: Sequence[shares.Share], say: Callable[[str], None] | None = None):
        self.todo, self.shares = deque(todo), given
        self.all, self.count = list(todo), len(todo)
        self._say = say or (lambda text: print(text, flush=True))
        self._under_way: list[Job] = []
        self._lock, self._most, self._stopped, self._told = threading.RLock(), 0, "", False
        self._allowed = len(given)  # at once; less once memory has run low
        self._looked = 0.0
        self._broken: Exception | None = None  # what ended a thread of ours

    def run(self) -> list[Job]:
        """Returns the jobs that have failed, in their order. KeyboardInterrupt after Ctrl-C or SIGTERM, all ended."""
        threads = [
            threading.Thread(target=self._serve, args=(share,), daemon=True) for share in self.shares[: self.count]
        ]
        with asked(self.stop) as came:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                self._look()
                time.sleep(LOOK / 5)
        if came:
            raise KeyboardInterrupt
        if self._broken:
            raise self._broken
        return [job for job in self.all if job.code]

    def stop(self, why: str) -> None:
        """Starts nothing more and asks what is under way to save and end; asked again, kills it."""
        again = bool(self._stopped)
        self._stopped = why
        for job in list(self._under_way):
            self._end(job, signal.SIGKILL if again else signal.SIGTERM)

    def _serve(self, share: shares.Share) -> None:
        try:
            share.pin()  # of this thread, which its children inherit
            while job := self._next():
                self._train(job, share)
        except Exception as e:  # no run is left out in silence
            self._broken = self._broken or e
            self.stop(str(e))

    def _next(self) -> Job | None:
        """The next job, as soon as there is room for it; None if none is left."""
        while True:
            with self._lock:
                if self._stopped or not (self.todo or self._under_way):
                    return None
                if self.todo and len(self._under_way) < self._allowed and self._fits():
                    job = self.todo.popleft()
                    self._under_way.append(job)
                    return job
                if not self.todo and not any(j.requeued for j in self._under_way):
                    return None
            time.sleep(LOOK / 5)

    def _fits(self) -> bool:
        """Whether memory is enough for one more."""
        free = shares.free_memory()
        if not self._under_way or free == float("inf"):
            return True
        need = MARGIN * self._most if self._most else UNKNOWN
        taken = [shares.memory(job.process.pid)[0] if job.process else 0 for job in self._under_way]
        owed = sum(max(0.0, need - now) for now in taken)
        fits = free - owed >= need
        if not fits and not self._told:
            self._told = True
            said = f"{need / GIB:.1f} GiB ({'measured' if self._most else 'guessed'})"
            self._say(
                f"{len(self._under_way)} of {len(self.shares)} runs at a time: {free / GIB:.1f} GiB are free, of which "
                f"those under way may take {owed / GIB:.1f}, and one more needs {said}"
            )
        return fits

    def _look(self) -> None:
        """Sees how much memory is taken; if it runs low, the youngest of several gives its own back."""
        if time.monotonic() < self._looked + LOOK:
            return
        self._looked = time.monotonic()
        with self._lock:
            for job in self._under_way:
                if job.started and job.process:
                    self._most = max(self._most, shares.memory(job.process.pid)[1])
            if len(self._under_way) > 1 and shares.free_memory() < LOW and not self._stopped:
                youngest = self._under_way[-1]
                if youngest.process and not any(j.requeued for j in self._under_way):
                    youngest.requeued = True
                    self._allowed = len(self._under_way) - 1
                    self._say(
                        f"[{youngest.name}] stopped: less than {LOW / GIB:.2f} GiB of memory are free; it goes on "
                        f"later, and {self._allowed} at a time from now on"
                    )
                    self._end(youngest, signal.SIGTERM)

    def _train(self, job: Job, share: shares.Share) -> None:
        begun, which = time.monotonic(), self.all.index(job) + 1
        job.output.parent.mkdir(parents=True, exist_ok=True)
        self._say(f"[{job.name}] run {which} of {self.count} on {share}; its output: {job.output}")
        with open(job.output, "a", buffering=1, encoding="utf-8") as file:
            print(f"$ {' '.join(job.command)}", file=file)
            job.process = process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                bufsize=1, errors="replace", env=os.environ | dict(share.environment),
            )  # fmt: skip
            if self._stopped:  # meanwhile
                self._end(job, signal.SIGTERM)
            for line in process.stdout:
                file.write(line)
                job.last = line.strip() or job.last
                job.started = job.started or bool(STARTED.match(line))
                if SHOWN.match(line):
                    self._say(f"[{job.name}] {line.rstrip()}")
        job.code, job.seconds = process.wait(), time.monotonic() - begun
        with self._lock:
            self._under_way.remove(job)
            if job.requeued and not self._stopped:
                job.requeued, job.process, job.code = False, None, None
                self.todo.append(job)
                return
        how = "done" if not job.code else f"ended with code {job.code}"
        self._say(f"[{job.name}] {how} after {job.seconds:.1f} s")
        if job.code == MISTAKE and not job.started and not self._stopped:
            self.stop(f"{job.name}: {job.last.removeprefix('error: ')}")

    def _end(self, job: Job, number: int) -> None:
        process = job.process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            process.send_signal(number)
        if number == signal.SIGTERM:
            timer = threading.Timer(GRACE, lambda: process.poll() is None and process.kill())
            timer.daemon = True
            timer.start()

    def report(self, failed: Sequence[Job]) -> None:
        """Raises UserError that names what has failed, with the last line of each."""
        if not failed:
            return
        mistake = next((job for job in failed if job.code == MISTAKE and not job.started), None)
        left = sum(job.code is None for job in self.all)
        if mistake is not None:
            said = f"; {left} of {self.count} runs were not started" if left else ""
            raise UserError(f"{self._stopped or f'{mistake.name}: {mistake.last}'}{said}")
        named = "; ".join(f"{job.name} (code {job.code}: {job.last.removeprefix('error: ')[:160]})" for job in failed)
        raise UserError(f"{len(failed)} of {self.count} runs failed: {named}; the same command tries again")


@contextlib.contextmanager
def asked(stop: Callable[[str], None]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM call `stop`; yields the list of the signals that came. In other threads nothing is heard."""
    came: list[int] = []

    def hear(number, frame) -> None:
        came.append(number)
        os.write(2, b"stopping all runs, which save first (Ctrl-C again: at once)\n")
        stop("stopped")

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {n: signal.signal(n, hear) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
