"""What a run says: terminal lines with progress and ETA, metrics.jsonl, TensorBoard, the parameter table, costs.json.

Only process 0 writes. The workdir may be remote (gs://), where files cannot be appended to: there, rows are rewritten
whole and TensorBoard's files copied, at most once a minute and before every checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from maeclip_jax import startup
from maeclip_jax.errors import UserError

CONFIG, METRICS, COSTS, EXAMPLES = "config.json", "metrics.jsonl", "costs.json", "examples"
_REMOTE_SECONDS = 60.0  # how often rows are rewritten to a remote workdir


def say(text: str) -> None:
    """A line on the terminal of process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def read_rows(workdir: epath.PathLike) -> list[dict]:
    """The rows of metrics.jsonl; a last line cut short by a kill is left out."""
    path, rows = epath.Path(workdir) / METRICS, []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def make_workdir(workdir: epath.PathLike) -> epath.Path:
    """The workdir, made if it is not there; UserError if it cannot be (no permission, no support for gs://)."""
    try:
        path = epath.Path(workdir)
        path.mkdir(parents=True, exist_ok=True)
    except Exception as e:  # remote file systems raise what they like
        raise UserError(
            f"workdir {str(workdir)!r} cannot be made: {' '.join(str(e).split()) or type(e).__name__}"
        ) from e
    return path


def write_text(path: epath.Path, text: str) -> None:
    """A whole file of process 0; whoever reads it, or restarts after a kill, sees the old text or the new, not half."""
    if jax.process_index():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in str(path):  # objects appear when they are complete, and cannot be renamed
        path.write_text(text)
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


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
        self._rows = [r for r in read_rows(workdir) if r.get("step", 0) <= resume_step]
        self._rewrite()
        from tensorboardX import SummaryWriter

        self._board_folder = epath.Path(workdir) / "tensorboard"
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


class Examples:
    """One line per step with the keys of this process's examples: the proof that no sample is lost or repeated.

    A restart from step n begins a file of its own, `examples/<n>-of-<processes>-<process>.jsonl`; later files win.
    """

    def __init__(self, workdir: epath.Path, first: int):
        folder = workdir / EXAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{first:08}-of-{jax.process_count()}-{jax.process_index()}.jsonl").open("w")

    def write(self, step: int, keys: list[str]) -> None:
        self._file.write(json.dumps({"step": step, "keys": keys}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Clock:
    """Where the time of a run goes, in seconds by phase, summed over restarts (the sums travel in the checkpoint).

    `train` is the time in the loop that was no checkpoint and no evaluation; `input_wait` is the part of it spent
    waiting for data. `start` takes the phases of this start alone, up to its first step.
    """

    PAUSES = ("checkpoint", "eval")
    PHASES = ("compile", "restore", "train", "input_wait", *PAUSES)

    def __init__(self, seconds: Mapping[str, float] | None = None, start: startup.Startup | None = None):
        self._seconds = dict.fromkeys(self.PHASES, 0.0) | dict(seconds or {})
        self._loop: tuple[float, float] | None = None
        self._doing = ("", 0.0)  # phase, since when
        self.start = start or startup.Startup(0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to phase `name`."""
        start, before = time.perf_counter(), self._doing
        self._doing = (name, start)
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)
            self._doing = before  # last, so that `look` never counts a pause as training

    def add(self, name: str, seconds: float) -> None:
        """Adds to a phase."""
        self._seconds[name] += seconds
        if self._loop is None:
            self.start.add({"input_wait": "first batch"}.get(name, name), seconds)

    def look(self) -> tuple[float, str, float]:
        """(seconds of training, the phase it is in, seconds in it so far if it is a pause); from any thread."""
        doing, since = self._doing
        paused = time.perf_counter() - since if doing in self.PAUSES else 0.0
        return self.seconds["train"], doing, paused

    def start_loop(self) -> None:
        """From now on time is training, unless a phase says otherwise."""
        self._loop = (time.perf_counter(), self.paused)

    def stop_loop(self) -> None:
        """Books the training time so far."""
        self._seconds, self._loop = self.seconds, None

    @property
    def paused(self) -> float:
        """Seconds so far that stood between steps."""
        return sum(self._seconds[p] for p in self.PAUSES)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now."""
        out = dict(self._seconds)
        if self._loop:
            start, paused = self._loop
            out["train"] += time.perf_counter() - start - (self.paused - paused)
        return out


class Progress:
    """Turns finished steps into throughput, ETA and the line a person watches."""

    def __init__(
        self,
        start_step: int,
        total: int,
        batch_size: int,
        flops_per_step: float,
        peak: float,
        devices: int,
        seconds: Mapping,
    ):
        self.total, self.batch_size, self.devices = total, batch_size, devices
        self.flops_per_step, self.peak = flops_per_step, peak
        self._last = (start_step, seconds["train"], seconds["input_wait"])
        self._start = (start_step, self._wall(seconds))

    @staticmethod
    def _wall(seconds: Mapping) -> float:
        return seconds["train"] + sum(seconds[p] for p in Clock.PAUSES)

    def measure(self, step: int, seconds: Mapping[str, float]) -> dict[str, float]:
        """perf/* since the last call, from the clock's seconds: training time only, without pauses.

        `progress/eta_seconds` goes by the wall clock of this start, pauses included.
        """
        start_step, start_wall = self._start
        wall_a_step = (self._wall(seconds) - start_wall) / max(step - start_step, 1)
        last_step, last_trained, last_waited = self._last
        trained, waited = seconds["train"], seconds["input_wait"]
        elapsed, steps = max(trained - last_trained, 1e-9), max(step - last_step, 1)
        self._last = (step, trained, waited)
        per_step = elapsed / steps
        return {
            "perf/step_seconds": per_step,
            "perf/img_per_sec": self.batch_size / per_step,
            "perf/img_per_sec_per_chip": self.batch_size / per_step / self.devices,
            "perf/mfu": self.flops_per_step / per_step / self.devices / self.peak,
            "perf/input_wait_fraction": min(1.0, (waited - last_waited) / elapsed),
            "progress/eta_seconds": (self.total - step) * wall_a_step,
        }

    def line(self, step: int, row: Mapping[str, float]) -> str:
        """`step 120/600 20% | eta 3m10s | loss 2.345 | 410 img/s | mfu 21% | input wait 1%`."""
        parts = [
            f"step {step}/{self.total} {100 * step / self.total:3.0f}%",
            f"eta {duration(row['progress/eta_seconds'])}",
            f"loss {row['train/loss']:.4f}",
            f"{row['perf/img_per_sec']:.0f} img/s",
            f"mfu {100 * row['perf/mfu']:.0f}%",
            f"input wait {100 * row['perf/input_wait_fraction']:.0f}%",
        ]
        if row.get("train/skipped"):
            parts.append(f"skipped {row['train/skipped']:.0f} steps")
        if row.get("train/bad_records"):
            parts.append(f"bad records {row['train/bad_records']:.0f}")
        return " | ".join(parts)


class Eta:
    """How far something that may take long has come: a line every `every` seconds, none if it is done before.

    `eval probe: 12800 of 50000 pictures 26% | eta 1m20s`.
    """

    def __init__(self, who: str, what: str, total: int, every: float = 15.0):
        self.who, self.what, self.total, self.every = who, what, total, every
        self.done, self.start = 0, time.perf_counter()
        self._said = self.start

    def __enter__(self) -> Eta:
        return self

    def __exit__(self, *_) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self.done, now = min(self.done + n, self.total), time.perf_counter()
        if now - self._said >= self.every and 0 < self.done < self.total:
            self._said = now
            left = (now - self.start) / self.done * (self.total - self.done)
            share = f"{100 * self.done / self.total:3.0f}%"
            say(f"{self.who}: {self.done} of {self.total} {self.what} {share} | eta {duration(left)}")


def duration(seconds: float) -> str:
    """`75` -> `1m15s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


def device_memory() -> dict[str, float]:
    """perf/device_memory_peak_gib of local device 0, where the backend tells (TPU, GPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"perf/device_memory_peak_gib": peak / 2**30}


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """`8 x TPU v4: replica 2 x fsdp 4, 2 processes`."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    several = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{': ' if axes else ''}{axes}{several}"


def memory_line(analysis: Any) -> str:
    """What the compiler says of a program's memory."""
    if analysis is None:
        return "the compiler does not tell memory here"
    gib = [getattr(analysis, f"{k}_size_in_bytes") / 2**30 for k in ("argument", "temp")]
    return f"per device {gib[0]:.2f} GiB of arguments and {gib[1]:.2f} GiB of temporaries (compiler's figures)"


def parameter_table(params: Any) -> str:
    """Path, shape, type, size and split per parameter, and the totals; `params` may be shapes with shardings."""
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(params, include_stats="sharding", max_lines=None)
    return f"{table}\n{sum(x.size for x in jax.tree.leaves(params)):,} parameters"


def write_costs(workdir: epath.PathLike, costs: Mapping) -> None:
    """costs.json: what the run took so far, and the `median` of every perf/* over its rows; for the report."""
    if jax.process_index():
        return
    rows = [r for r in read_rows(workdir) if "perf/step_seconds" in r and r["step"] > 1]
    names = [k for k in (rows[-1] if rows else ()) if k.startswith("perf/")]
    median = {k: float(np.median([r[k] for r in rows if k in r])) for k in names}
    write_text(epath.Path(workdir) / COSTS, json.dumps(dict(costs) | {"median": median}, indent=1))


def warn(text: str) -> None:
    """A warning on every process's log."""
    logging.getLogger("maeclip_jax").warning(text)
