"""What the processes of a run agree on while a checkpoint is saved: whether all could write, and when to try again.

They also wait for one another when the training step is compiled, since devices give up on each other. Processes talk
through jax's coordination service, so no device waits. A run of one process agrees with itself.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter

import jax

from maeclip_jax.errors.storage import StorageError

_SECONDS = 24 * 3600.0  # as orbax's: a process that is lost is the matter of the line to the pod
# Orbax's barriers which a process that could not write its part never reaches; the others would wait there for it.
_WRITTEN = ("async_write_complete", "async_commit_complete")
_LONGEST_PAUSE = 1.0


_meetings = itertools.count()


def meet() -> None:
    """Returns when all processes of the run have called it as often as this one.

    The training step is run after it: processes compile at different speeds, and the devices of the first one would
    give up on the others (those of CPUs after 30 s, jaxlib 0.10.2). Ctrl-C ends the wait.
    """
    number, failed = next(_meetings), []
    if jax.process_count() == 1:
        return

    def wait() -> None:
        try:
            _client().wait_at_barrier(f"maeclip-meet-{number}", int(_SECONDS * 1000))
        except Exception as e:  # raised where it is waited for
            failed.append(e)

    waiting = threading.Thread(target=wait, name="meeting", daemon=True)
    waiting.start()
    while waiting.is_alive():  # in C++ a wait is deaf to signals
        waiting.join(0.2)
    if failed:
        raise failed[0]


def _client():
    from jax._src import distributed

    return distributed.global_state.client


class OtherFailed(RuntimeError):
    """Another process could not write its part of a checkpoint."""


class Agreement:
    """Of all processes of this run. Each must ask for the same, in the same order."""

    def __init__(self):
        self.several = jax.process_count() > 1
        self._asked = self._save = 0
        self._here: Counter[str] = Counter()

    def all_say(self, mine: str) -> list[str]:
        """What each process says, in their order; all wait for one another."""
        if not self.several:
            return [mine]
        self._asked += 1
        folder = f"maeclip/said/{self._asked}"
        _client().key_value_set(f"{folder}/{jax.process_index():06}", f"={mine}")
        _client().wait_at_barrier(f"maeclip-said-{self._asked}", int(_SECONDS * 1000))
        said = sorted(_client().key_value_dir_get(f"{folder}/"))
        if jax.process_index() == 0:  # everybody is here, and so has read what was said before
            _client().key_value_delete(f"maeclip/said/{self._asked - 1}/")
        return [text[1:] for _, text in said]

    def first(self, mine: bool) -> bool:
        """What process 0 says."""
        return self.all_say("yes" if mine else "")[0] == "yes"

    def worst(self, failure: StorageError | None, error: Exception | None) -> StorageError | None:
        """What storage did to a save on any process, the same on all; None if all have written.

        failure: what it did on this one. error: what was raised here, if anything, perhaps as a consequence.
        """
        if not self.several:
            return failure
        mine = [0, str(failure), failure.passes] if failure else [1, str(error), True] if error else [2, "", True]
        rank, text, passes = min(json.loads(said) for said in self.all_say(json.dumps(mine)))
        return None if rank == 2 else StorageError(text, passes=passes)

    def begin(self) -> None:
        """A save begins, to which the next calls of `barrier` belong."""
        self._save, self._here = self._save + 1, Counter()
        if self.several and jax.process_index() == 0:
            _client().key_value_delete(f"maeclip/save/{self._save - 2}/")

    def barrier(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's `barrier_sync_fn`: returns when all processes are there. OtherFailed where one never will be.

        Orbax writes in threads, and waits for all to have written. The thread of a process that could not write leaves
        that wait out, and comes to the barrier which says, as the one before a save does, whether something is saved.
        """
        self._here[key] += 1
        place = f"maeclip/save/{self._save}"
        waits = any(name in key for name in _WRITTEN)
        if not waits:
            if self._here[key] > 1 and not any(_WRITTEN[-1] in name for name in self._here):
                _client().key_value_set(f"{place}/failed/{jax.process_index()}", "=")
            _client().wait_at_barrier(f"maeclip-save-{self._save}-{key}-{self._here[key]}", timeout_ms)
            return
        pause, end = 0.02, time.monotonic() + timeout_ms / 1000
        _client().key_value_set(f"{place}/{key}/{jax.process_index()}", "=")
        while time.monotonic() < end:
            if jax.process_index() == 0 and self._count(f"{place}/{key}") == jax.process_count():
                _client().key_value_set(f"{place}/all/{key}/yes", "=", allow_overwrite=True)
            if self._count(f"{place}/all/{key}"):  # what process 0 has seen: one asks about many, many about one
                return
            if self._count(f"{place}/failed"):
                raise OtherFailed("another process could not write its part of the checkpoint")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise TimeoutError(f"{key}: not all processes came within {timeout_ms / 1000:.0f} s")

    def _count(self, folder: str) -> int:
        return len(_client().key_value_dir_get(f"{folder}/"))
