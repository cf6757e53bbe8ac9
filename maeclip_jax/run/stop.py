"""SIGTERM and Ctrl-C: a run finishes its step, saves and leaves, on all processes at the same step."""

from __future__ import annotations

import os
import signal
import threading

import jax


class StopSignal:
    """SIGTERM (preemption) or the first Ctrl-C: finish the step, save, leave. All processes agree on the step.

    A context: handlers are put back at its end. Several processes hear of SIGTERM through jax's coordination service.
    """

    def __init__(self):
        self._asked, self._before = False, {}

    def __enter__(self) -> StopSignal:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C means it
        os.write(2, b"stopping after this step (Ctrl-C again: at once)\n")  # print() may be what was interrupted

    def agreed(self, step: int) -> bool:
        """Whether to stop after `step`, the same answer on every process."""
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
