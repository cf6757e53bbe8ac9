"""One owner of a workdir: a training run says in owner.json who it is, and no second one starts beside it.

The file holds host, process and a count that its owner raises every few seconds. Whoever finds it takes over at once
if the process is gone from the same host; elsewhere, if the count stands still for SILENCE seconds. It works where
files can be read and written, so on gs:// too: nothing needs to be locked by the file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import UserError, storage
from maeclip_jax.parallel.terminal import duration_text, say
from maeclip_jax.workdir import OWNER, write_text

BEAT, REMOTE_BEAT = 5.0, 8.0  # seconds between two signs of life
SILENCE = 25.0  # seconds without one after which an owner elsewhere counts as gone; three signs fit into it


class Owner:
    """A context in which this run owns `workdir`; of several processes, process 0 does. UserError if another one does.

    `check` raises UserError once another run has taken over, which happens to a process that slept for long.
    """

    def __init__(self, workdir: epath.Path, *, silence: float = SILENCE):
        self.path, self._silence = workdir / OWNER, silence
        self._every = REMOTE_BEAT if remote.is_remote(workdir) else BEAT
        self._card = _own_card()
        self._lost: dict = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)

    def __enter__(self) -> Owner:
        if jax.process_index() == 0:
            self._acquire()
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self._thread.is_alive():
            self._end.set()
            self._thread.join()
            with contextlib.suppress(Exception):  # a storage that is away: the next run waits for a sign of this one
                if _read(self.path).get("token") == self._card["token"]:
                    remote.delete(self.path)

    def check(self) -> None:
        """UserError if another run owns the workdir by now: what this one writes would be mixed with its files."""
        if self._lost:
            raise UserError(
                f"{self.path.parent} was taken over by {_name(self._lost)} while this process gave no sign; "
                "it stops, so that two runs do not write the same files"
            )

    def _acquire(self) -> None:
        theirs = _read(self.path)
        if theirs and _is_gone(theirs) is None:
            theirs = self._watch(theirs)
        with _alone(self.path.parent):
            # Nobody can be alone in a bucket: there, the last of two that start at once stays.
            now = theirs if remote.is_remote(self.path) else _read(self.path)
            if (now and now.get("token") != theirs.get("token")) or (now and _is_gone(now) is False):
                raise self._taken(now)
            self._write()
        if remote.is_remote(self.path):
            time.sleep(1)
            now = _read(self.path)
            if now.get("token") != self._card["token"]:
                raise self._taken(now)

    def _watch(self, theirs: dict) -> dict:
        """Waits for a sign of an owner whose process cannot be looked up; {} once it has left by itself."""
        where = self.path.parent
        say(f"{where} belongs to {_name(theirs)}: waiting up to {self._silence:.0f} s for a sign of it")
        end = time.monotonic() + self._silence
        while time.monotonic() < end:
            time.sleep(min(1.0, self._silence / 10))
            now = _read(self.path)
            if not now:
                return {}
            if (now.get("token"), now.get("beat")) != (theirs.get("token"), theirs.get("beat")):
                raise self._taken(now)
        say(f"{where}: no sign for {self._silence:.0f} s; taking over")
        return theirs

    def _taken(self, theirs: dict) -> UserError:
        age = duration_text(max(0.0, time.time() - theirs.get("since", time.time())))
        return UserError(
            f"{self.path.parent} is being trained by {_name(theirs)}, for {age}; stop it, or use another --workdir"
        )

    def _beat(self) -> None:
        while not self._end.wait(self._every):
            with contextlib.suppress(Exception):  # a storage that is away for a while: later
                now = _read(self.path)
                if now and now.get("token") != self._card["token"]:
                    self._lost = now
                    return
                self._card["beat"] += 1
                self._write()

    def _write(self) -> None:
        text = json.dumps(self._card, indent=1)
        if remote.is_remote(self.path):
            remote.write(self.path, text.encode())  # now, and not when other files are: its time is what counts
        else:
            write_text(self.path, text)


def _own_card() -> dict:
    pid = os.getpid()
    return {
        "host": socket.gethostname(), "pid": pid, "space": _space(), "started": _started(pid),
        "since": time.time(), "token": uuid.uuid4().hex, "beat": 0, "command": " ".join(sys.orig_argv),
    }  # fmt: skip


def _read(path: epath.Path) -> dict:
    """The card of the owner, {} if there is none. A file that is being written is read again."""
    for _ in range(3):
        try:
            return json.loads(remote.read_text(path) or "{}")
        except storage.StorageError:
            raise
        except ValueError:
            time.sleep(0.2)
    return {}


def _is_gone(card: dict) -> bool | None:
    """Whether the process of a card has ended; None if that cannot be known from here."""
    if card.get("space") != _space() or not card.get("space"):
        return None
    return _started(card["pid"]) != card["started"]


def _space() -> str:
    """What two processes share that see the same process numbers: this start of the machine, and their container."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> str:
    """When a process began, in ticks of the machine, so that a number used again is another process; "": not there."""
    with contextlib.suppress(OSError, IndexError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    return ""


def _name(card: dict) -> str:
    return f"process {card.get('pid', '?')} on {card.get('host', '?')}"


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
    """At most one process of this host, and of others where the file system can, is in here for a local folder."""
    handle = None
    with contextlib.suppress(OSError, ImportError):
        if not remote.is_remote(folder):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
