"""What a run says, to all the sinks its config names: rows in metrics.jsonl, TensorBoard, Weights & Biases.

Only process 0 writes. The workdir may be remote (gs://), where files cannot be appended to: there, what was said is
written whole, at most once a minute and before every checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from maeclip_jax.parallel.terminal import warn
from maeclip_jax.run import sinks
from maeclip_jax.workdir import read_metrics

_REMOTE_SECONDS = 60.0  # how often a remote workdir is written to


class Log:
    """Scalars and pictures of steps, for the sinks called `names` (see `sinks.SINKS`; UserError for others).

    A run that is resumed continues the same rows, event files and wandb run from `resumed`, the step of its checkpoint.
    A sink that raises is warned of once, by name, and asked again the next time; it never ends a run. metrics.jsonl
    alone may: without it, the report and a resumed run would know nothing.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        resumed: int,
        names: Sequence[str] = sinks.DEFAULT,
        config: Mapping | None = None,
    ):
        names = sinks.check(names)
        self._sinks: dict[str, Any] = {}
        self._warned: set[str] = set()
        self._flushed = time.time()
        if jax.process_index() == 0:
            story = sinks.Story(epath.Path(workdir), resumed, read_metrics(workdir), config or {})
            self._remote = story.remote
            for name in names:
                self._guard(name, lambda name=name: self._sinks.update({name: sinks.SINKS[name](story)}))

    @property
    def rows(self) -> list[dict] | None:
        """The rows of metrics.jsonl so far; None on processes that do not write it."""
        return self._sinks[sinks.TRUTH].rows if sinks.TRUTH in self._sinks else None

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as e:  # libraries and networks raise what they like
            if name == sinks.TRUTH:
                raise
            if name not in self._warned:
                self._warned.add(name)
                reason = " ".join(f"{type(e).__name__}: {e}".split())
                warn(f"log sink {name!r} failed: {reason}; training goes on, further failures of it are not said")

    def _each(self, action: Callable[[Any], None]) -> None:
        for name, sink in self._sinks.items():
            self._guard(name, lambda sink=sink: action(sink))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step, by name; those that come later for the same step (evaluations) join them."""
        self._each(lambda sink: sink.scalars(step, values))
        if self._sinks and self._remote and time.time() - self._flushed > _REMOTE_SECONDS:
            self.flush()

    def picture(self, step: int, name: str, pixels_HxWx3: np.ndarray) -> None:
        """A uint8 picture of a step."""
        self._each(lambda sink: sink.picture(step, name, pixels_HxWx3))

    def flush(self) -> None:
        """Everything said so far is on disk, or in the remote workdir, when this returns."""
        self._each(lambda sink: sink.flush())
        self._flushed = time.time()

    def close(self) -> None:
        """Flushes everything; nothing can be said afterwards."""
        self._each(lambda sink: sink.close())
        self._sinks = {}
