"""When a checkpoint that could not be saved into a bucket is tried again, and what its save took."""

from __future__ import annotations

import time

import jax
from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import storage
from maeclip_jax.parallel.terminal import say, warn
from maeclip_jax.remote import deadline, traffic

# Seconds to wait for an answer before a save is begun, between two attempts, and after which the run ends.
ANSWER_SECONDS, AGAIN_SECONDS, GIVE_UP_SECONDS = 5.0, 30.0, 900.0


class Attempts:
    """Of one process alone: on several, all wait together for the storage. `owed`: whether a save is to be made up for.

    `folder`: where the checkpoints are. In a local one, nothing is tried again.
    """

    def __init__(self, folder: epath.Path):
        self.folder, self.owed = folder, False
        self._remote = remote.is_remote(folder)
        self._again = self._failing = 0.0  # not before when, and since when it fails
        self._before, self._told = None, False

    def begin(self, step: int) -> bool:
        """Whether a save can be begun. One into a bucket that is away would hold up the steps until it is back.

        StorageError if it has been away for GIVE_UP_SECONDS.
        """
        alone = self._remote and jax.process_count() == 1
        if alone and not deadline.answers(self.folder / "answers", ANSWER_SECONDS):
            failure = storage.no_answer("write", self.folder / str(step), ANSWER_SECONDS)
            if not self.later(failure):
                raise failure
            return False
        self._before = traffic.so_far() if self._remote else None
        return True

    def later(self, failure: storage.StorageError) -> bool:
        """Whether a save that failed is to be tried again: for minutes, into a bucket."""
        now = time.monotonic()
        if not self._remote or jax.process_count() > 1 or (self._failing and now - self._failing > GIVE_UP_SECONDS):
            return False
        if not self._failing:
            self._failing = now
            warn(f"{failure}; the run goes on, and tries again for {GIVE_UP_SECONDS / 60:.0f} minutes")
        self.owed, self._again = True, now + AGAIN_SECONDS
        return True

    def due(self) -> bool:
        """Whether it is time to save again."""
        return self.owed and time.monotonic() >= self._again

    def pause(self) -> None:
        """Waits until it is time to save again."""
        time.sleep(max(0.0, self._again - time.monotonic()))

    def done(self, step: int) -> None:
        """What was being saved is whole. Says, of the first, what it took."""
        if self._failing:
            say(f"{self.folder} answers again")
            self._failing = 0.0
        if self._before and not self._told:
            self._told = True
            say(f"step {step} is saved: {traffic.so_far() - self._before}, other small files of the run included")
        self._before = None
