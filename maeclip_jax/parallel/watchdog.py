"""Says where a run hangs: when a step takes far longer than its peers, the stacks of all threads, once. Never kills."""

from __future__ import annotations

import dataclasses
import faulthandler
import statistics
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

from maeclip_jax import remote


@dataclasses.dataclass(frozen=True)
class Limits:
    """A step stalls after `factor` times the median step and at least `seconds`; a pause after `pause_seconds`.

    Pauses are the start, checkpoints and evaluations, which have no peers. `seconds` 0: no watchdog.
    """

    factor: float = 10.0
    seconds: float = 60.0
    pause_seconds: float = 1800.0


class Watchdog:
    """A thread that looks at a run every now and then. A context: it watches while it is open.

    `look`: () -> (seconds of training so far without pauses, what is being done, seconds that has taken if it is a
    pause, else 0). `file` takes the words and, having a file descriptor, the stacks.
    """

    def __init__(self, limits: Limits, look: Callable[[], tuple[float, str, float]], file: TextIO | None = None):
        self.limits, self._look, self._file = limits, look, file
        self._steps: deque[float] = deque(maxlen=1000)
        self._step, self._since, self._told = 0, look()[0], ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.limits.seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, step: int) -> None:
        """Step number `step` begins; the one before it is done."""
        now = self._look()[0]
        if self._step:
            self._steps.append(now - self._since)
        if self._told:
            self._say(f"{self._told} went on")
        self._step, self._since, self._told = step, now, ""

    def check(self) -> bool:
        """Reports a stall that has not been reported yet; -> whether it did."""
        trained, doing, paused = self._look()
        what, limit, known = f"step {self._step}", self.limits.seconds, "there is no other step to compare with"
        taken = trained - self._since
        if paused:
            what, taken, limit, known = doing, paused, self.limits.pause_seconds, ""
        elif self._steps:
            median = statistics.median(list(self._steps))
            limit, known = (
                max(limit, self.limits.factor * median),
                f"the median of {len(self._steps)} is {median:.2g} s",
            )
        if not (self._step or paused) or taken < limit or self._told == what:
            return False
        if not paused and remote.is_waiting():  # for storage, as has been said: stacks would add nothing
            return False
        self._told = what
        where = f", in {doing}" if doing and not paused else ""
        self._say(
            f"{what} has taken {taken:.0f} s{where} (reported after {limit:.0f} s{'; ' if known else ''}{known}); "
            "the run goes on waiting; stacks of all threads:"
        )
        try:
            faulthandler.dump_traceback(file=self._file or sys.stderr, all_threads=True)
        except (AttributeError, OSError, RuntimeError, ValueError):  # no real file, as in notebooks
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        return True

    def _say(self, text: str) -> None:
        print(f"watchdog: {text}", file=self._file or sys.stderr, flush=True)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.limits.seconds / 4)):
            self.check()
