"""Where scalars and pictures of a run can go, one class each: metrics.jsonl, TensorBoard, Weights & Biases.

A sink is made with a `Story` and has `scalars(step, values)`, `picture(step, name, pixels_HxWx3)`, `flush()` and
`close()`. It may raise: `log.Log` decides what that means. Only process 0 has sinks.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import UserError, storage, unknown
from maeclip_jax.workdir import METRICS, TENSORBOARD, WANDB_ID, write_bytes, write_text


@dataclasses.dataclass(frozen=True)
class Story:
    """What a sink continues: the run in `workdir` from step `resumed`; `rows`: all that metrics.jsonl holds of it.

    `config`: the settings of the run as plain JSON types, for sinks that show them.
    """

    workdir: epath.Path
    resumed: int
    rows: Sequence[Mapping]
    config: Mapping

    @property
    def remote(self) -> bool:
        """Whether nothing can be appended to in the workdir (gs://)."""
        return remote.is_remote(self.workdir)


class Jsonl:
    """metrics.jsonl: one row a logged step, {"step": step, **values}; what the report and a resumed run read.

    A resumed run drops the rows it is going to write again. What comes later for the step of the last row (evaluations)
    joins that row. Values that are not finite are written as null, which JSON can hold. It has no pictures.
    """

    def __init__(self, story: Story):
        self._path, self._remote = story.workdir / METRICS, story.remote
        self.rows = [dict(r) for r in story.rows if r.get("step", 0) <= story.resumed]
        if not self._remote or len(self.rows) < len(story.rows):  # an object has no half row at its end
            self._rewrite()

    def _rewrite(self) -> None:
        write_text(self._path, "".join(json.dumps(r) + "\n" for r in self.rows))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        joins = bool(self.rows) and self.rows[-1]["step"] == step
        if joins:
            self.rows[-1] |= row
        else:
            self.rows.append(row)
        if self._remote:  # rewritten whole when flushed
            return
        if joins:
            self._rewrite()
        else:
            with storage.writing(self._path), self._path.open("a") as f:
                f.write(json.dumps(row) + "\n")

    def picture(self, step: int, name: str, pixels_HxWx3: np.ndarray) -> None:
        pass

    def flush(self) -> None:
        if self._remote:
            self._rewrite()

    def close(self) -> None:
        self.flush()


class TensorBoard:
    """Event files in `tensorboard/`. Those of a remote workdir are written here and copied whenever it is flushed.

    TensorBoard itself hides what an earlier file of the run says of the steps after the one it continues from. Whatever
    cannot be written raises here, at once: tensorboardX's own writer has a thread that dies of it, and then its queue
    blocks the run for ever. What comes later begins another file, because this one may end in half a record.
    """

    EVERY_SECONDS = 30.0  # how long something may wait until it is on disk

    def __init__(self, story: Story):
        self._folder = story.workdir / TENSORBOARD
        self._files = epath.Path(tempfile.mkdtemp()) if story.remote else self._folder
        self._resumed, self._number, self._writer, self._flushed = story.resumed, 0, None, time.monotonic()
        self._write()

    def _write(self, *events: Mapping) -> None:
        """Appends `events` (fields of TensorBoard's Event), to a new file if there is none."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is None:
            self._files.mkdir(parents=True, exist_ok=True)
            self._number += 1
            suffix = f".{self._number}" if self._number > 1 else ""
            self._writer = EventsWriter(str(self._files / "events"), suffix)
            if self._resumed and self._number == 1:
                start = SessionLog(status=SessionLog.START)
                events = ({"step": self._resumed + 1, "session_log": start}, *events)
        try:
            for event in events:
                self._writer.write_event(Event(wall_time=time.time(), **event))
            if time.monotonic() - self._flushed > self.EVERY_SECONDS:
                self._flush()
        except OSError:
            self._writer = None
            raise

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except OSError:
            self._writer = None
            raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        self._write(*({"step": step, "summary": scalar(name, value)} for name, value in values.items()))

    def picture(self, step: int, name: str, pixels_HxWx3: np.ndarray) -> None:
        from tensorboardX.summary import image

        self._write({"step": step, "summary": image(name, pixels_HxWx3, dataformats="HWC")})

    def flush(self) -> None:
        self._flush()
        if self._files != self._folder:
            for file in self._files.iterdir():
                write_bytes(self._folder / file.name, file.read_bytes())

    def close(self) -> None:
        self.flush()
        if self._writer is not None:
            self._writer.close()
        if self._files != self._folder:  # all of it is in the remote workdir now, or waits for it
            self._files.rmtree()


class Wandb:
    """A run of Weights & Biases with the config; its id lies in the workdir, so that a resumed run goes on there.

    Project, entity and mode are those of its environment variables (WANDB_PROJECT, WANDB_MODE=offline, ...). "step" is
    a column of its own, the axis of all others: wandb's own counter would refuse an evaluation of the step a run
    continues from. What a run says again after it was resumed is left out.
    """

    def __init__(self, story: Story):
        import wandb

        path = story.workdir / WANDB_ID
        name = (remote.read_text(path) or secrets.token_hex(4)).strip()
        write_text(path, name)
        self._image = wandb.Image
        self._run = wandb.init(
            id=name, resume="allow", name=story.workdir.name, config=dict(story.config),
            project=os.environ.get("WANDB_PROJECT", "maeclip_jax"),
            dir=tempfile.mkdtemp() if story.remote else str(story.workdir),
            settings=wandb.Settings(reinit="create_new"),  # whatever run a notebook has open is not ours
        )  # fmt: skip
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._resumed = story.resumed
        self._known = {r["step"]: set(r) for r in story.rows if "step" in r}
        # The server may know more than metrics.jsonl, which a remote workdir gets once a minute.
        server = self._run.summary.get("step")
        self._last = max([*self._known, server if isinstance(server, int) else 0], default=0)

    def _said(self, step: int) -> bool:
        """Whether all there is to say of the step was said before the run was resumed: later steps were reached."""
        return self._resumed < step < self._last

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        new = {k: v for k, v in values.items() if k not in self._known.get(step, ())}
        if new and not self._said(step):
            self._run.log({"step": step} | new)

    def picture(self, step: int, name: str, pixels_HxWx3: np.ndarray) -> None:
        if not self._said(step):
            self._run.log({"step": step, name: self._image(pixels_HxWx3)})

    def flush(self) -> None:
        """wandb writes and sends in a process of its own, all the time."""

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Any] = {"jsonl": Jsonl, "tensorboard": TensorBoard, "wandb": Wandb}
DEFAULT = ("jsonl", "tensorboard")
TRUTH = "jsonl"  # the sink that every run has, and whose failure is an error


def check(names: Sequence[str]) -> tuple[str, ...]:
    """`names` with metrics.jsonl first; "jsonl,wandb" is two. UserError for an unknown name or a missing package.

    UserError also where metrics.jsonl is not among them.
    """
    given = (names,) if isinstance(names, str) else names
    names = tuple(dict.fromkeys(name.strip() for one in given for name in one.split(",")))
    for name in names:
        if name not in SINKS:
            raise unknown("name in log.sinks:", name, SINKS)
    if TRUTH not in names:
        raise UserError(f"log.sinks={names} lacks {TRUTH!r}, which the report and a resumed run read; add it")
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise UserError("log.sinks names 'wandb', which is not installed: pip install 'maeclip_jax[wandb]'")
    return (TRUTH, *(n for n in names if n != TRUTH))
