"""What a run says: terminal lines with progress and ETA, metrics.jsonl, TensorBoard, the parameter table, costs.json.

Only process 0 writes. The workdir may be remote (gs://), where files cannot be appended to: there, rows are rewritten
whole and TensorBoard's files copied, at most once a minute and before every checkpoint.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from maeclip_jax.workdir import METRICS, TENSORBOARD, read_metrics, write_text

_REMOTE_SECONDS = 60.0  # how often rows are rewritten to a remote workdir


class Log:
    """Writes scalars of a step to metrics.jsonl and TensorBoard.

    A resumed run drops the rows it is going to write again (step > `resume_step`); what comes later for the step of the
    last row (evaluations) joins that row: there is one row a logged step.
    """

    def __init__(self, workdir: epath.PathLike, resume_step: int):
        self._active = jax.process_index() == 0
        self._path = epath.Path(workdir) / METRICS
        self._remote = "://" in str(workdir)
        self._flushed = time.time()
        if not self._active:
            return
        self._rows = [r for r in read_metrics(workdir) if r.get("step", 0) <= resume_step]
        self._rewrite()
        from tensorboardX import SummaryWriter

        self._board_folder = epath.Path(workdir) / TENSORBOARD
        self._board_files = epath.Path(tempfile.mkdtemp()) if self._remote else self._board_folder
        self._board = SummaryWriter(str(self._board_files), purge_step=resume_step + 1 if resume_step else None)

    def _rewrite(self) -> None:
        write_text(self._path, "".join(json.dumps(r) + "\n" for r in self._rows))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row: {"step": step, **values}. Non-finite values are written as null, which JSON can hold."""
        if not self._active:
            return
        row = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        joins = bool(self._rows) and self._rows[-1]["step"] == step
        if joins:
            self._rows[-1] |= row
        else:
            self._rows.append(row)
        if self._remote:
            if time.time() - self._flushed > _REMOTE_SECONDS:
                self.flush()
        elif joins:
            self._rewrite()
        else:
            with self._path.open("a") as f:
                f.write(json.dumps(row) + "\n")
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def picture(self, step: int, name: str, picture_HxWx3: np.ndarray) -> None:
        """A uint8 picture for TensorBoard."""
        if self._active:
            self._board.add_image(name, picture_HxWx3, step, dataformats="HWC")

    def flush(self) -> None:
        """Everything said so far is on disk, or in the remote workdir, when this returns."""
        if not self._active:
            return
        self._board.flush()
        if self._remote:
            self._rewrite()
            for file in self._board_files.iterdir():
                self._board_folder.mkdir(parents=True, exist_ok=True)
                (self._board_folder / file.name).write_bytes(file.read_bytes())
        self._flushed = time.time()

    def close(self) -> None:
        """Flushes everything."""
        if self._active:
            self._board.close()
            self.flush()
