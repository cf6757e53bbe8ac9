"""Small files of a run on their way into a bucket: nothing waits for them, and a storage that is away loses none.

Within `opened`, `write` keeps the newest content of each file and returns; a thread writes it. What cannot be written
is warned of once, stays in memory, and is tried again. Outside, `write` writes at once, and raises.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from maeclip_jax import remote
from maeclip_jax.errors import storage

AGAIN_SECONDS = 10.0  # between two attempts at what could not be written
LAST_SECONDS = 300.0  # how long the end of a run waits for what is not written yet

_current: _Outbox | None = None


def write(path: object, data: bytes) -> None:
    """Writes a file of a bucket: soon, within `opened`; else at once, or StorageError."""
    if _current:
        _current.put(str(path), data)
    else:
        remote.write(path, data)


def flush(seconds: float) -> bool:
    """Waits until everything is written, at most so long; whether it is."""
    return _current is None or _current.flush(seconds)


def give_up() -> None:
    """What is not written by now is put into a local folder, which a warning names."""
    if _current and remote.pending:
        _current.keep_here()


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """What is written inside is written in the background, and all of it at the end.

    What the storage has not taken by then is put into a local folder, which a warning names.
    """
    global _current
    before, _current = _current, _Outbox()
    try:
        yield
    finally:
        _current.close()
        _current = before


class _Outbox:
    def __init__(self):
        self._new = threading.Condition()
        self._ended, self._warned, self._tried = False, False, 0  # how often all that waits has been tried
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, path: str, data: bytes) -> None:
        with self._new:
            remote.pending.pop(path, None)  # to the end: files are written in the order in which they were said
            remote.pending[path] = data
            self._new.notify_all()

    def flush(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        with self._new:
            while remote.pending and time.monotonic() < end:
                self._new.notify_all()
                self._new.wait(min(1.0, max(0.0, end - time.monotonic())))
            return not remote.pending

    def close(self) -> None:
        tried = self._tried
        end = time.monotonic() + LAST_SECONDS
        while not self.flush(0.2) and time.monotonic() < end:
            if self._warned and self._tried > tried + 1:  # it answers, and refuses
                break
        with self._new:
            self._ended = True
            self._new.notify_all()
        if remote.pending:
            self.keep_here()

    def keep_here(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="maeclip-unwritten-"))
        for path, data in list(remote.pending.items()):
            copy = folder / path.partition("://")[2]
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
        _warn(f"{', '.join(remote.pending)} could not be written; copies are in {folder}")
        remote.pending.clear()

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._new:
                while not self._ended and not remote.pending:
                    self._new.wait()
                end = time.monotonic() + pause
                while not self._ended and (left := end - time.monotonic()) > 0:
                    self._new.wait(left)
                if self._ended:
                    return
                waiting = list(remote.pending.items())
            pause = 0.0
            for path, data in waiting:
                try:
                    remote.write(path, data)
                except Exception as e:  # libraries and networks raise what they like
                    pause = AGAIN_SECONDS
                    if not self._warned:
                        self._warned = True
                        reason = e if isinstance(e, storage.StorageError) else f"{type(e).__name__}: {e}"
                        _warn(f"{' '.join(str(reason).split())}; it is kept and tried again, and the run goes on")
                    continue
                with self._new:
                    if remote.pending.get(path) is data:
                        del remote.pending[path]
                    self._new.notify_all()
            self._tried += 1


def _warn(text: str) -> None:
    logging.getLogger("maeclip_jax").warning(text)
