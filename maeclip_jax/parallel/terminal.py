"""What a person at the terminal reads: lines of process 0, warnings of every process, progress and waiting."""

from __future__ import annotations

import logging
import threading
import time

from maeclip_jax.errors import storage
from maeclip_jax.parallel import sleep


def say(text: str) -> None:
    """A line on the terminal of process 0; in a file on a full disk, it appears when there is room again."""
    import jax

    if jax.process_index():
        return
    try:
        _print(text)
    except OSError as e:
        if e.errno not in storage.ROOM:
            raise


_printed = time.monotonic()  # when something was last said


def _print(text: str) -> None:
    global _printed
    _printed = time.monotonic()
    print(text, flush=True)


class Waiting:
    """A context that says what is waited for when nothing has been said for a while, and how long it has taken.

    `compiling: 10s`, after `after` seconds and then every `every`; plain lines, whatever reads them. `shown`: whether
    this process says it (default: process 0 does; which that is must be said where jax is not there yet).
    """

    def __init__(self, what: str, after: float = 5.0, every: float = 15.0, shown: bool | None = None):
        self.what, self.after, self.every, self.shown = what, after, every, shown
        self._over = threading.Event()

    def __enter__(self) -> Waiting:
        self._begun = self._told = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True, name=f"waiting: {self.what}")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        quiet = self.after
        while not self._over.wait(max(self._until(quiet), 0)):
            if self._until(quiet) <= 0:  # nothing else was said meanwhile
                self._told = time.monotonic()
                self._tell(f"{self.what}: {duration_text(self._told - self._begun)}")
                quiet = self.every

    def _until(self, quiet: float) -> float:
        return max(self._told, _printed) + quiet - time.monotonic()

    def _tell(self, text: str) -> None:
        if self.shown is None:
            say(text)
        elif self.shown:
            _print(text)


def warn(text: str) -> None:
    """A warning on every process's log."""
    logging.getLogger("maeclip_jax").warning(text)


def duration_text(seconds: float) -> str:
    """`75` -> `1m15s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


class Progress:
    """How far something that may take long has come: a line every `every` seconds, none if it is done before.

    `eval probe: 12800 of 50000 pictures 26% | eta 1m20s`.
    """

    def __init__(self, who: str, what: str, total: int, every: float = 15.0):
        self.who, self.what, self.total, self.every = who, what, total, every
        self.done, self.start = 0, sleep.awake()
        self._said = self.start

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self.done, now = min(self.done + n, self.total), sleep.awake()
        if now - self._said >= self.every and 0 < self.done < self.total:
            self._said = now
            left = (now - self.start) / self.done * (self.total - self.done)
            share = f"{100 * self.done / self.total:3.0f}%"
            say(f"{self.who}: {self.done} of {self.total} {self.what} {share} | eta {duration_text(left)}")
