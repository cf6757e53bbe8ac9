"""Where the time goes from the start of the process to the first finished step."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from maeclip_jax.parallel import sleep

_LOADED = time.monotonic()
FIRST_STEP = "to first step"


def age() -> float:
    """Seconds since this process started; where the system does not tell, since this module was loaded."""
    try:
        with open("/proc/self/stat") as f:
            ticks = int(f.read().rpartition(")")[2].split()[19])  # field 22, counted behind the name in parentheses
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _LOADED


class Startup:
    """Seconds by phase of one start: import, join, devices, restore, first batch, compile, ...

    `spent`: seconds that went by before; None: the age of the process. After `finish` it takes no more.
    """

    def __init__(self, spent: float | None = None):
        self._begun = sleep.awake() - (age() if spent is None else spent)
        self.seconds: dict[str, float] = {}

    @property
    def done(self) -> bool:
        """Whether the first step has been done."""
        return FIRST_STEP in self.seconds

    def so_far(self) -> float:
        """Seconds since the process started."""
        return sleep.awake() - self._begun

    def look(self) -> tuple[float, str, float]:
        """What a watchdog looks at: a pause until the first step is done. From any thread."""
        return 0.0, "start-up", 0.0 if self.done else self.so_far()

    def add(self, phase: str, seconds: float) -> None:
        """Adds to a phase."""
        if not self.done:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside."""
        start = sleep.awake()
        try:
            yield
        finally:
            self.add(name, sleep.awake() - start)

    def finish(self) -> str:
        """The first step is done. Returns the line that says how long everything took."""
        total = self.so_far()
        self.seconds["other"] = total - sum(self.seconds.values())
        parts = [f"{name} {seconds:.1f}s" for name, seconds in self.seconds.items()]
        self.seconds[FIRST_STEP] = total
        return f"start-up (measured): {' | '.join(parts)} | {FIRST_STEP} {total:.1f}s"
