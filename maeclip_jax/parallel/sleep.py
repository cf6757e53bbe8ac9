"""Time that a machine slept through: a laptop whose lid was closed, a suspended virtual machine, a stopped process.

A thread wakes every second. Where much more time than that has passed, and the process has used no processor meanwhile,
nothing of it ran: it slept. `awake()` is a clock without such times. Suspension does not advance Linux's monotonic
clock, but a stopped process (SIGSTOP, a paused container) does; the clock here is right for both.
"""

from __future__ import annotations

import logging
import threading
import time

LEAST_SECONDS = 10.0  # a shorter sleep is not told from a busy machine, and disturbs nothing
_PULSE_SECONDS = 1.0
_BUSY = 0.1  # processors in use, above which the process was at work and only this thread had no turn

_lock = threading.Lock()
_thread: threading.Thread | None = None
_last = (0.0, 0.0, 0.0)
_slept, _unreal = 0.0, 0.0  # seconds slept, and what of these the monotonic clock counted


def watch() -> None:
    """Starts the thread, once a process."""
    global _thread, _last
    with _lock:
        if _thread is None:
            _last = _now()
            _thread = threading.Thread(target=_watch, name="sleep", daemon=True)
            _thread.start()


def awake() -> float:
    """Seconds on a clock that stands still while the machine sleeps; only differences mean something."""
    return look()[0]


def slept() -> float:
    """Seconds slept since `watch`."""
    return look()[1]


def look() -> tuple[float, float]:
    """(awake, slept) at one moment. Whoever wakes first finds out that there was a sleep, and says so."""
    global _last, _slept, _unreal
    with _lock:
        now, before = _now(), _last
        if _thread is None:
            return now[1], 0.0
        wall, counted, used = (a - b for a, b in zip(now, before))
        _last, missed = now, wall - _PULSE_SECONDS
        if missed >= LEAST_SECONDS and used < _BUSY * missed:
            _slept += missed
            _unreal += max(0.0, counted - _PULSE_SECONDS)
        else:
            missed = 0.0
        result = now[1] - _unreal, _slept
    if missed:
        logging.getLogger("maeclip_jax").warning(
            "the machine slept for %.0f s, or this process was stopped; times, rates and costs leave it out", missed
        )
    return result


def _now() -> tuple[float, float, float]:
    """Seconds that go on in suspension, seconds of the clock that everything is measured with, seconds of processors.

    Systems other than Linux have only the time of day for the first.
    """
    wall = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()
    return wall, time.perf_counter(), time.process_time()


def _watch() -> None:
    while True:
        time.sleep(_PULSE_SECONDS)
        look()
