"""When a checkpoint that could not be saved into a bucket is tried again, what it leaves there, what a save took."""

from __future__ import annotations

import math
import threading
import time

import jax
from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import storage
from maeclip_jax.parallel.terminal import say, warn
from maeclip_jax.remote import deadline, traffic
from maeclip_jax.run.agreement import Agreement

# Seconds to wait for an answer before a save is begun, between two attempts, and after which the run ends.
ANSWER_SECONDS, AGAIN_SECONDS, GIVE_UP_SECONDS = 5.0, 30.0, 900.0


class Attempts:
    """Of all processes of a run together: each calls the same, at the same step. `owed`: whether a save is to be made.

    `folder`: where the checkpoints are. In a local one, nothing is tried again.
    """

    def __init__(self, folder: epath.Path, together: Agreement):
        self.folder, self.together, self.owed = folder, together, False
        self._remote = remote.is_remote(folder)
        self._again = self._failing = 0.0  # not before when, and since when it fails
        self._before, self._told = None, False
        self._look: tuple[int, int, float] | None = None  # at which step, from which step and time on

    def begin(self, step: int) -> bool:
        """Whether a save can be begun. One into a bucket that is away would hold up the steps until it is back.

        StorageError if it has been away for GIVE_UP_SECONDS.
        """
        self._look = step + 1, step, time.monotonic()
        here = jax.process_index() == 0 and self._remote
        answers = not here or deadline.answers(self.folder / "answers", ANSWER_SECONDS)
        if self._remote and not self.together.first(answers):
            failure = storage.no_answer("write", self.folder / str(step), ANSWER_SECONDS)
            if not self.later(failure):
                raise failure
            return False
        self._before = traffic.so_far() if self._remote else None
        return True

    def later(self, failure: storage.StorageError) -> bool:
        """Whether a save that failed is to be tried again: for minutes, into a bucket."""
        now = time.monotonic()
        if not self._remote or self.together.first(bool(self._failing) and now - self._failing > GIVE_UP_SECONDS):
            return False
        if not self._failing:
            self._failing = now
            if jax.process_index() == 0:
                warn(f"{failure}; the run goes on, and tries again for {GIVE_UP_SECONDS / 60:.0f} minutes")
        self.owed, self._again = True, now + AGAIN_SECONDS
        return True

    def look(self, step: int, busy: bool) -> bool:
        """Whether to see at this step what has become of a save. Never while one is `busy` with it.

        One process always does. Several do at the same step, every AGAIN_SECONDS or so as long as there is something
        to see.
        """
        if not self.together.several:
            return not busy
        if self._look is None or step < self._look[0]:
            return False
        now, (_, before, then) = time.monotonic(), self._look
        steps = max(1, math.ceil(AGAIN_SECONDS * (step - before) / max(now - then, 1e-3)))
        said = self.together.all_say(f"{steps} {'busy' if busy else ''}")
        self._look = step + int(said[0].split()[0]), step, now
        return not any("busy" in text for text in said)

    def due(self) -> bool:
        """Whether it is time to save again."""
        return self.owed and self.together.first(time.monotonic() >= self._again)

    def pause(self) -> None:
        """Waits until it is time to save again."""
        time.sleep(max(0.0, self._again - time.monotonic()))

    def done(self, step: int) -> None:
        """What was being saved is whole. Says, of the first, what it took."""
        self._look = None
        if self._failing:
            say(f"{self.folder} answers again")
            self._failing = 0.0
        if self._before and not self._told:
            self._told = True
            say(f"step {step} is saved: {traffic.so_far() - self._before}, other small files of the run included")
        self._before = None


def remove_unfinished(folder: epath.Path, complete: str) -> None:
    """Removes what a save that failed or was killed has left; `complete`: the file of whole ones in a bucket."""
    if jax.process_index():
        return
    if remote.is_remote(folder):  # nothing can be renamed there: whole is what says that it is
        found = remote.sizes(folder)
        whole = {name.partition("/")[0] for name in found if name.count("/") == 1 and name.endswith(complete)}
        for step in {name.partition("/")[0] for name in found} - whole:
            if step.isdigit():
                remote.remove_folder(folder / step)
    elif folder.exists():
        for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
            leftover.rmtree(missing_ok=True)


def leave_threads(patience: float) -> None:
    """Lets threads of a save that failed end: some wait minutes for a folder that another could not make.

    `patience`: seconds to wait for them.
    """
    until = time.monotonic() + patience
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, max(0.0, until - time.monotonic()))
