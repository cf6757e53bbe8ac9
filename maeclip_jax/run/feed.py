"""Batches of the pipeline, placed on the devices one step before they are needed."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import jax
import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import sharding
from maeclip_jax.run.clock import Clock
from maeclip_jax.run.step import TrainStep


class Feed:
    """Batches of the pipeline, placed on the device one step before they are needed, and the keys of their examples."""

    def __init__(self, batches: Iterator[dict], built: TrainStep, clock: Clock):
        self._batches, self._built, self._clock = batches, built, clock
        self._queue: collections.deque = collections.deque()
        self._fill()

    def _fill(self) -> None:
        with self._clock.phase("input_wait"):
            host = next(self._batches)
        missing = [name for name in self._built.inputs if name not in host]
        if missing:
            kept = ", ".join(k for k in host if not k.startswith("_"))
            raise UserError(f"the data's ops must keep {missing[0]!r} for this objective; they keep {kept}")
        arrays = {name: host[name] for name in (*self._built.inputs, "_bad")}
        for name, want in self._built.inputs.items():
            have = arrays[name]
            if have.shape[1:] != want.shape[1:] or have.dtype != want.dtype:
                raise UserError(
                    f"batch {name!r} is {have.dtype} {have.shape[1:]} per example, the model takes "
                    f"{np.dtype(want.dtype)} {want.shape[1:]}: see data.ops and the model's towers"
                )
        self._queue.append((sharding.place(arrays, self._built.mesh), [str(k) for k in host["_key"]]))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and shardings of a placed batch."""
        batch, _ = self._queue[0]
        return {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in batch.items()}

    def next(self) -> tuple[dict, list[str]]:
        """The next placed batch; another one is fetched meanwhile."""
        out = self._queue.popleft()
        self._fill()
        return out
