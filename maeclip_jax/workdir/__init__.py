"""The folder of a run: its files by name, their readers and their writers.

`identity` says which settings change what is learnt, and `claim` which run a folder holds: what may change when it is
resumed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import UserError, storage
from maeclip_jax.evals import items
from maeclip_jax.parallel.terminal import warn
from maeclip_jax.remote import outbox

CONFIG, METRICS, COSTS, EXAMPLES = "config.json", "metrics.jsonl", "costs.json", "examples"
DATA, OWNER = "data.json", "owner.json"
CHECKPOINTS, EVALS, NAMES, REPORT = "checkpoints", "evals", "names.json", "report"
RESULTS_FORMAT = 2  # of evals/<step>.json: metrics with `about`, which is `evals.Metric.about`
TENSORBOARD, PROFILE, WANDB_ID = "tensorboard", "profile", "wandb_id.txt"


def read_config(workdir: epath.Path) -> dict:
    """config.json of the run in `workdir`, {} if there is none. UserError if it cannot be read."""
    path = workdir / CONFIG
    try:
        return json.loads(remote.read_text(path) or "{}")
    except ValueError as e:
        raise UserError(f"cannot read {path}: {e}; put it right, or move it away to continue without it") from e


def make_workdir(workdir: epath.PathLike) -> epath.Path:
    """The workdir, made if it is not there; UserError if it cannot be (no permission, no support for gs://).

    Folders of a bucket need not be made: the first file makes them.
    """
    remote.check_scheme(workdir, "--workdir", "checkpoints")
    path = epath.Path(workdir)
    if remote.is_remote(workdir):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"workdir {str(workdir)!r} cannot be made: {' '.join(str(e).split()) or type(e).__name__}"
        ) from e
    return path


def write_text(path: epath.Path, text: str) -> None:
    """A whole file of process 0; whoever reads it, or restarts after a kill, sees the old text or the new, not half.

    StorageError if it cannot be written; the old text stays. Within an open `remote.outbox`, a file in a bucket is
    written as soon as that can be done, and raises nothing.
    """
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, data: bytes) -> None:
    """As `write_text`, of bytes."""
    import jax

    if jax.process_index():
        return
    if remote.is_remote(path):  # objects appear when they are complete, and cannot be renamed
        outbox.write(path, data)
        return
    with storage.writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def read_metrics(workdir: epath.PathLike) -> list[dict]:
    """The rows of metrics.jsonl; a last line cut short by a kill is left out."""
    return read_lines(workdir)[0]


def read_lines(workdir: epath.PathLike) -> tuple[list[dict], int]:
    """The rows of metrics.jsonl, and how many of its lines are not rows: cut short, broken, or without a step."""
    path, rows, unreadable = epath.Path(workdir) / METRICS, [], 0
    for line in (remote.read_text(path) or "").splitlines():
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            unreadable += bool(line.strip())
    return rows, unreadable


def read_object(path: epath.Path, missing: dict | None = None) -> dict:
    """The object in a JSON file; `missing` where there is no file.

    UserError, with the path, if it cannot be read or holds something else, or is not there and may not be.
    """
    try:
        text = remote.read_text(path)
        if text is None and missing is not None:
            return missing
        if text is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        value = json.loads(text)
    except UserError:
        raise
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {str(path)!r}: {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"cannot read {str(path)!r}: it holds a {type(value).__name__}, not an object")
    return value


def read_results(workdir: epath.PathLike) -> tuple[list[dict], list[epath.Path]]:
    """Every evals/<step>.json by step, and the files that are left out: of older versions, without units.

    UserError for a file that cannot be read.
    """
    results, older = [], []
    for path in sorted(result_files(epath.Path(workdir)), key=lambda p: int(p.stem)):
        one = read_object(path)
        if not isinstance(one.get("step"), int):
            raise UserError(f"{str(path)!r} has no step; delete it and evaluate again")
        if one.get("format") == RESULTS_FORMAT:
            results.append(one)
        else:
            older.append(path)
    if older:
        warn(
            f"left out, as their numbers have no units (written by an older version): {', '.join(map(str, older))}; "
            "evaluating the checkpoint of such a step writes its file anew"
        )
    return sorted(results, key=lambda one: one["step"]), older


def read_evals(workdir: epath.PathLike) -> dict[int, dict[str, float]]:
    """{step: metrics} of every evaluation in a workdir."""
    return {one["step"]: one["metrics"] for one in read_results(workdir)[0]}


def result_files(workdir: epath.Path) -> list[epath.Path]:
    folder = workdir / EVALS
    return [folder / n for n in remote.names(folder) if n.endswith(".json") and n.removesuffix(".json").isdigit()]


def items_file(workdir: epath.PathLike, step: int) -> epath.Path:
    """Where the items behind the metrics of a step are kept: see `evals.items`."""
    return epath.Path(workdir) / EVALS / f"{step}.items.parquet"


def read_items(workdir: epath.PathLike, step: int) -> Mapping[str, items.Items]:
    """{metric: items} of a step; {} where none are kept. UserError for a file that cannot be read."""
    path = items_file(workdir, step)
    data = remote.read(path)
    try:
        return items.Kept(items.from_bytes(data)) if data else {}
    except ValueError as e:
        raise UserError(f"cannot read {str(path)!r}: {e}; delete it and evaluate again") from e


def write_names(workdir: epath.Path, names: Mapping[str, Sequence[str]], objective: Any) -> dict[str, list[str]]:
    """Keeps with the run what the numbers of its data mean: names.json, vocabulary -> names in order. Returns them.

    UserError if the objective's targets come from a vocabulary of another size, or from another than so far.
    """
    before = read_names(workdir)
    for what, size in getattr(objective, "outputs", dict)().items():
        if len(names.get(what, ())) != size:
            raise UserError(
                f"the training data has {len(names.get(what, ()))} names of {what}, the model is made for {size}; "
                f"set config.model.{what}s={len(names.get(what, ()))}, or train on other data"
            )
        if list(before.get(what, names[what])) != list(names[what]):
            raise UserError(
                f"the names of {what} in the training data are not those of {workdir / NAMES}: the data has changed; "
                "use the data of before, or start a new --workdir with config.init_from"
            )
    if names and names != before:
        write_text(workdir / NAMES, json.dumps(names, indent=0, ensure_ascii=False))
    return dict(names) or before


def read_names(*workdirs: epath.PathLike) -> dict[str, list[str]]:
    """names.json of the first of the workdirs (or checkpoints in one) that has it, or {}."""
    for workdir in map(epath.Path, filter(None, workdirs)):
        folder = workdir.parent.parent if workdir.parent.name == CHECKPOINTS else workdir
        if text := remote.read_text(folder / NAMES):
            return json.loads(text)
    return {}
