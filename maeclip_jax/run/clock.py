"""Where the time of a run goes, by phase, over all its restarts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from maeclip_jax.parallel import sleep
from maeclip_jax.run import startup


class Clock:
    """Where the time of a run goes, in seconds by phase, summed over restarts (the sums travel in the checkpoint).

    `train` is the time in the loop that went into neither checkpoints nor evaluations; `input_wait` is the part of it
    spent waiting for data. `slept`, if any, is time in which the machine slept, which belongs to no other phase.
    `start` takes the phases of this start alone, up to its first step. `chips` are those of this start, and
    `chip_seconds` the sum of those before it, None if only their seconds are known.
    """

    PAUSES = ("checkpoint", "eval")
    SLEPT = "slept"
    SPENT = ("compile", "restore", "train", *PAUSES)
    PHASES = (*SPENT, "input_wait")

    def __init__(
        self,
        seconds: Mapping[str, float] | None = None,
        start: startup.Startup | None = None,
        chips: float = 1,
        chip_seconds: float | None = None,
    ):
        self._seconds = dict.fromkeys(self.PHASES, 0.0) | dict(seconds or {})
        before = sum(self._seconds[phase] for phase in self.SPENT)
        self._chips, self._before = chips, (before, before * chips if chip_seconds is None else chip_seconds)
        self._loop: tuple[float, float] | None = None
        self._slept = self._seconds.get(self.SLEPT, 0.0) - sleep.slept()
        self._doing = ("", 0.0)  # phase, since when
        self.start = start or startup.Startup(0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to phase `name`."""
        start, before = sleep.awake(), self._doing
        self._doing = (name, start)
        try:
            yield
        finally:
            self.add(name, sleep.awake() - start)
            self._doing = before  # last, so that `look` never counts a pause as training

    def add(self, name: str, seconds: float) -> None:
        """Adds to a phase."""
        self._seconds[name] += seconds
        if self._loop is None:
            self.start.add({"input_wait": "first batch"}.get(name, name), seconds)

    def look(self) -> tuple[float, str, float]:
        """(seconds of training, the phase it is in, seconds in it so far if it is a pause); from any thread."""
        doing, since = self._doing
        paused = sleep.awake() - since if doing in self.PAUSES else 0.0
        return self.seconds["train"], doing, paused

    def start_loop(self) -> None:
        """From now on time is training, unless a phase says otherwise."""
        self._loop = (sleep.awake(), self.paused)

    def stop_loop(self) -> None:
        """Books the training time so far."""
        self._seconds, self._loop = self.seconds, None

    @property
    def paused(self) -> float:
        """Seconds so far that stood between steps."""
        return sum(self._seconds[p] for p in self.PAUSES)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now."""
        out, slept = dict(self._seconds), self._slept + sleep.slept()
        if slept:
            out[self.SLEPT] = slept
        if self._loop:
            start, paused = self._loop
            out["train"] += sleep.awake() - start - (self.paused - paused)
        return out

    @property
    def chip_seconds(self) -> float:
        """Seconds of all chips together up to now, of every start with those that it had."""
        seconds, (spent, chip_seconds) = self.seconds, self._before
        return chip_seconds + (sum(seconds[phase] for phase in self.SPENT) - spent) * self._chips
