"""SIGTERM and Ctrl-C: a run finishes its step, saves and leaves, on all processes at the same step, and in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from maeclip_jax.parallel import joining
from maeclip_jax.parallel.rollcall import LOST
from maeclip_jax.remote import outbox

GRACE_SECONDS = 100.0  # in which a run that is asked to stop does; tpu/worker.sh kills it after 120


class StopSignal:
    """SIGTERM (preemption) or the first Ctrl-C: finish the step, save, leave. All processes agree on the step.

    A context: handlers are put back at its end. Several processes hear of SIGTERM through jax's coordination service.
    grace: seconds after which `late` is called if the context is still open, by another thread; 0: never. Of several
    processes they count from the step at which all stop.
    """

    def __init__(self, grace: float = 0.0, late: Callable[[float], None] = lambda seconds: None):
        self.grace, self.late = grace, late
        self._asked, self._before = False, {}
        self._called, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> StopSignal:
        import jax

        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}
        if self.grace:
            threading.Thread(target=self._watch, name="grace", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._called.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C means it
        os.write(2, b"stopping after this step (Ctrl-C again: at once)\n")  # print() may be what was interrupted
        self._called.set()

    @property
    def called(self) -> bool:
        """Whether this process was asked to stop, or has agreed with others to."""
        return self._called.is_set()

    def _watch(self) -> None:
        self._called.wait()
        if not self._over.wait(self.grace):
            self.late(self.grace)

    def agreed(self, step: int) -> bool:
        """Whether to stop after `step`, the same answer on every process."""
        import jax

        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        stops = multihost_utils.reached_preemption_sync_point(step)
        if stops:
            self._called.set()
        return stops


def leave(seconds: float, saved: str) -> NoReturn:
    """Ends all processes of the run at once with code 75; what is not written into a bucket is put into a folder.

    seconds: since it was asked to stop. saved: from where it can be continued, in words.
    """
    why = (
        f"the run has not stopped within {seconds:.0f} s of being asked to (--grace); {saved}; the same command goes "
        "on from there"
    )
    outbox.give_up()
    print(f"error: {why}", file=sys.stderr, flush=True)
    joining.failed(LOST, why)
    joining.leave(LOST)
    os._exit(LOST)
