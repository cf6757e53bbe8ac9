"""The checkpoints of a run: saved asynchronously and whole, kept by policy, made up for where a storage lost one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import UserError, storage
from maeclip_jax.parallel import sleep
from maeclip_jax.parallel.terminal import say, warn
from maeclip_jax.params import flatten, unflatten
from maeclip_jax.run import attempts
from maeclip_jax.run.agreement import Agreement, OtherFailed
from maeclip_jax.run.attempts import Attempts, leave_threads, remove_unfinished
from maeclip_jax.run.checkpoint import COMMITTED, absolute
from maeclip_jax.workdir import CHECKPOINTS

TIMEOUT_SECONDS = 24 * 3600  # of the time of day, in which a machine may sleep; a save that hangs is the watchdog's
_FOLLOWS = (OtherFailed, TimeoutError, jax.errors.JaxRuntimeError)  # what a failure of another process leads to
# Orbax cuts what replicas hold into a part for each to write, however small: for every shape and place in it a program,
# compiled before the first save, and a chunk in the checkpoint. Of an array with smaller parts one replica writes all.
PART_BYTES = 256 * 2**10
_PATIENCE_SECONDS = 60.0  # for threads of a save that a sleep spoilt: they end when they have written


class KeepBest:
    """Orbax preservation policy: the `count` checkpoints with the best value of an evaluation metric.

    Evaluations come after the checkpoint they belong to, so their values are told to `record`, not to orbax.
    """

    def __init__(self, count: int):
        self.count, self.values = count, {}

    def record(self, step: int, value: float, better: str) -> None:
        # A NaN would be before and behind every number at once; it is the worst here.
        self.values[step] = math.inf if math.isnan(value) else -value if better == "higher" else value

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        there = sorted((self.values[c.step], c.step) for c in checkpoints if c.step in self.values)
        best = {step for _, step in there[: self.count]}
        return [c.step in best for c in checkpoints]


class Checkpoints:
    """The checkpoints of one workdir.

    Half-written checkpoints of a killed run are never seen, and removed when it is continued.
    `keep_last`: how many of the newest stay. `keep_every`: a period in steps whose multiples stay for ever (0: none).
    `keep_best`: how many stay by `best`, the name of an evaluation metric, which
    says itself which direction is better.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_best: int = 0,
        best: str = "",
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as cm

        if keep_last < 1:
            raise UserError(f"checkpoint.keep_last must be at least 1, got {keep_last}")
        if keep_best and not best:
            raise UserError(f"checkpoint.keep_best={keep_best} needs checkpoint.best=<evaluation>/<metric>")
        self._best_metric, self._best = best, KeepBest(keep_best)
        policies = [cm.LatestN(keep_last), self._best]
        if keep_every:
            policies.append(cm.EveryNSteps(keep_every))
        self._ocp, self._directory = ocp, absolute(directory)
        self._saving, self._need, self._slept = 0, 0, 0.0  # step, its bytes, what had been slept when it began
        self._together = Agreement()
        self._attempts = Attempts(self._directory, self._together)
        barrier = self._together.barrier if self._together.several else None
        types = ocp.type_handlers
        handlers = {of: types.get_type_handler(of) for of in types.supported_types()}
        handlers[jax.Array] = types.ArrayHandler(min_slice_bytes_for_replica_parallel=PART_BYTES)
        registry = types.create_type_handler_registry(*handlers.items())
        with storage.writing(self._directory), remote.known(self._directory):
            remove_unfinished(self._directory, COMMITTED)
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=cm.AnyPreservationPolicy(policies),
                    enable_async_checkpointing=True,
                    async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT_SECONDS, barrier_sync_fn=barrier),
                ),
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )
        self.whole = self.latest()  # the newest step that is known to be saved, also while another is being saved

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def refuse_going_back(self, resume: str, workdir: epath.Path) -> None:
        """UserError for an earlier step of the same `workdir`: its later ones would win at the next start."""
        latest = self.latest()
        if not resume or latest is None or absolute(resume).parent != self._directory:
            return
        if absolute(resume).name != str(latest):
            raise UserError(
                f"config.resume={resume} is an earlier step of {workdir}, which goes on from step {latest}: move the "
                f"folders of later steps out of {workdir / CHECKPOINTS} and leave config.resume out, or start a new "
                "--workdir with it"
            )

    def steps(self) -> list[int]:
        """All complete steps."""
        return sorted(self._manager.all_steps())

    def folder(self, step: int) -> epath.Path:
        """Where the checkpoint of `step` is."""
        return self._directory / str(step)

    def record(self, step: int, metrics: Mapping[str, float], better: Mapping[str, str]) -> None:
        """Tells the keep-best policy what an evaluation of checkpoint `step` found; `better`: metric -> direction.

        UserError if the evaluation that `best` names ran and has no such metric, or one that cannot be better or worse.
        """
        if self._best_metric in metrics:
            if better.get(self._best_metric) not in ("higher", "lower"):
                valid = sorted(n for n in metrics if better.get(n) in ("higher", "lower"))
                raise UserError(
                    f"checkpoint.best={self._best_metric!r}: neither more nor less of it is better; valid: "
                    + ", ".join(valid)
                )
            self._best.record(step, metrics[self._best_metric], better[self._best_metric])
            return
        siblings = [m for m in metrics if m.partition("/")[0] == self._best_metric.partition("/")[0]]
        if siblings:
            raise UserError(f"unknown checkpoint.best {self._best_metric!r}; valid: {', '.join(sorted(siblings))}")

    def save(self, step: int, state: Any, meta: Mapping) -> None:
        """Saves asynchronously; returns when `state` may be donated. A step that exists is left alone.

        StorageError if this save, or the one before, cannot be written. One that was lost (see `wait`) is made up for.
        While a bucket does not answer, nothing is begun, and `lost` says when to call again.
        """
        self.wait()
        if not self._attempts.begin(step):
            return
        self._together.begin()
        flat, args = flatten(state), self._ocp.args
        self._saving, self._need = step, sum(x.size * x.dtype.itemsize for x in flat.values())
        self._slept = sleep.slept()
        items = args.Composite(state=args.PyTreeSave(unflatten(flat)), meta=args.JsonSave(dict(meta)))
        try:
            with storage.writing(self.folder(step), self._need):
                self._manager.save(step, force=True, args=items)
            self._attempts.owed = False
        except Exception as e:
            self._saving = 0
            # Of several processes, this one alone: the others wait for it, and end with it.
            if not isinstance(e, storage.StorageError) or self._together.several or not self._attempts.later(e):
                raise
            self._clear_away(1.0)

    def announce(self, step: int) -> None:
        """Says, of a bucket, what holds if the machine goes before the last `step` is saved."""
        if remote.is_remote(self._directory):
            safe = "from the start" if self.whole is None else f"from step {self.whole}"
            say(f"stopping was asked for: saving step {step}; until it is saved, the same command continues {safe}")

    def lost(self, step: int) -> bool:
        """Whether a save is to be made up for, now, after `step`: the last has ended and was lost. Never blocks."""
        if not self._attempts.look(step, busy=self._manager.is_saving_in_progress()):
            return False
        self.wait()
        return self._attempts.due()

    def owes(self) -> bool:
        """Waits for what is being saved, or until it is time to save again; whether it is to be saved again."""
        if self.wait() and not self._attempts.owed:
            return False
        self._attempts.pause()
        return True

    def wait(self) -> bool:
        """Blocks until what is being saved is on disk; False if it was lost: save again. All processes wait together.

        It is lost by a sleep of the machine, and by a bucket that is away, also for one of several processes.
        StorageError if it cannot be written, or not for minutes.
        """
        error = None
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            error = e
        failure = error and storage.failure(self.folder(self._saving), error, self._need)
        if error and not failure and not (self._together.several and isinstance(error, _FOLLOWS)):
            self._slept_through(error)
            return False
        failure = self._together.worst(failure, error)
        if failure:
            self._saving = 0
            self._clear_away(1.0)
            if not self._attempts.later(failure):
                raise failure from error
            return False
        if self._saving:
            self._attempts.done(self._saving)
            self.whole, self._saving = self._saving, 0
        return True

    def _slept_through(self, error: Exception) -> None:
        """Puts a save right that a sleep of the machine has spoilt; raises `error` if it was something else."""
        step, self._saving = self._saving, 0
        self._clear_away(_PATIENCE_SECONDS)
        # On several processes, not all may have lost it: they begin anew together.
        if not isinstance(error, TimeoutError) or sleep.slept() <= self._slept or self._together.several:
            raise error
        warn(f"the machine slept while step {step} was being saved, which failed; saving again")
        self._attempts.owed = True

    def _clear_away(self, patience: float) -> None:
        """What a failed save leaves: its threads, its files, and its opinion of which checkpoints there are."""
        leave_threads(patience)
        with contextlib.suppress(OSError, storage.StorageError), remote.patience(attempts.ANSWER_SECONDS):
            remove_unfinished(self._directory, COMMITTED)
        with contextlib.suppress(*((Exception,) if remote.is_remote(self._directory) else ())):  # it may still be away
            self._manager.reload()

    def safe(self) -> str:
        """Waits for what is being saved, and says in words from where the run can be continued."""
        with contextlib.suppress(Exception):  # something went wrong already, and that will be said
            if self._together.several:  # of which this may be the only one in trouble
                self._manager.wait_until_finished()
                self.whole = self._saving or self.whole
            else:
                self.wait()
        return self.said()

    def said(self) -> str:
        """From where the run can be continued, in words."""
        return "no step is saved yet" if self.whole is None else f"step {self.whole} is saved"

    def close(self) -> None:
        """Waits and releases threads."""
        self.wait()
        self._manager.close()
