"""What the runs of a study measured, as small files that are kept and committed: runs/<id>.json in its folder."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maeclip_jax import workdir as workdirs
from maeclip_jax.errors import UserError
from maeclip_jax.study import design

RUNS, NOT_RUN = "runs", "not yet run"


@dataclasses.dataclass(frozen=True)
class Result:
    """A run of the plan with what it measured. value: the outcome, in `unit`; better: "higher", "lower" or "none".

    items_I: the outcome of each item, None if they are not kept; items: which items these are.
    """

    run: design.Run
    value: float
    unit: str
    better: str
    items_I: np.ndarray | None
    items: str
    metrics: Mapping[str, float]
    seconds: float
    data: Mapping[str, float]


class NotMeasured(UserError):
    """A run of the plan has ended, and its evaluations do not have the outcome."""


def file(folder: str | os.PathLike, run: str) -> Path:
    """Where a run's result is."""
    return Path(folder) / RUNS / f"{run}.json"


def collect(run: design.Run, workdir: str | os.PathLike, outcome: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a finished run. NotMeasured if it lacks the outcome."""
    evaluated = workdirs.read_results(workdir)[0]
    last = evaluated[-1] if evaluated else {"step": 0, "metrics": {}, "about": {}}
    if outcome not in last["metrics"]:
        have = ", ".join(sorted(last["metrics"])) or "nothing"
        raise NotMeasured(
            f"{run.id} has not measured --outcome={outcome}; it has {have}. Name one of these, and another --out"
        )
    costs = workdirs.read_object(Path(workdir) / workdirs.COSTS, missing={})
    about = last["about"][outcome]
    return {
        "id": run.id, "settings": dict(run.settings), "config": run.config, "outcome": outcome, "step": last["step"],
        "unit": about.get("unit", ""), "better": about.get("better", "higher"), "metrics": last["metrics"],
        "items": pack(workdirs.read_items(workdir, last["step"]).get(outcome)),
        "seconds": sum(costs.get("seconds", {}).values()), "flops": costs.get("flops_per_step", 0.0) * last["step"],
        "examples": costs.get("examples_seen", 0), "device": costs.get("device_kind", ""), "data": dict(data),
    }  # fmt: skip


def pack(found: Any) -> dict[str, str] | None:
    """Items in the order of their keys: values as float32, compressed, in base64. None of none, or of weighted ones."""
    if found is None or found.stratum is not None or found.weight is not None:
        return None
    names, total, count = found.sums()
    digest = design.stable_hash(tuple(str(n) for n in names))
    return {"items": f"{digest:016x}", "values": pack_values((total / count).ravel())}


def pack_values(values_I: np.ndarray) -> str:
    """Values as float32, compressed, in base64."""
    return base64.b64encode(zlib.compress(np.asarray(values_I, "<f4").tobytes(), 9)).decode()


def unpack(kept: Mapping[str, str] | None) -> np.ndarray | None:
    """float64 [I]; the inverse of `pack`."""
    if not kept:
        return None
    return np.frombuffer(zlib.decompress(base64.b64decode(kept["values"])), "<f4").astype(np.float64)


def read(folder: str | os.PathLike, plan: Mapping) -> tuple[list[Result], dict[str, str]]:
    """(results of the plan's runs, {id: why it is missing}). UserError for files of runs that the plan has not."""
    from maeclip_jax.study.plan import runs_of

    runs = {run.id: run for run in runs_of(plan)}
    there = {p.stem: p for p in sorted((Path(folder) / RUNS).glob("*.json"))}
    strange = sorted(there.keys() - runs.keys())
    if strange:
        raise UserError(f"{folder} holds results of another plan: {', '.join(strange[:3])}; move them away")
    found, missing = [], {}
    for name, run in runs.items():
        kept = workdirs.read_object(there[name]) if name in there else {"failed": NOT_RUN}
        if "failed" in kept:
            missing[name] = kept["failed"]
            continue
        tuned = set(plan["tuning"]["grid"]) if run.phase != design.TUNE else set()
        differ = [k for k, v in run.settings.items() if k not in tuned and kept["settings"].get(k) != v]
        if differ or kept["outcome"] != plan["outcome"]:
            said = ", ".join(differ) or "outcome"
            raise UserError(f"{there[name]} is of another plan: it differs in {said}; move it away")
        metrics = {k: v for k, v in kept["metrics"].items() if math.isfinite(v)}
        if kept["outcome"] not in metrics:
            missing[name] = "its outcome is not a number"
            continue
        of_items, which = unpack(kept["items"]), (kept["items"] or {}).get("items", "")
        about = kept.get("unit", ""), kept.get("better", "higher")
        value = metrics[kept["outcome"]]
        found.append(Result(run, value, *about, of_items, which, metrics, kept["seconds"], kept["data"]))
    return found, missing


def write(folder: str | os.PathLike, run: str, kept: Mapping) -> None:
    """What a run measured, as its file."""
    put(file(folder, run), json.dumps(kept, indent=1, sort_keys=True) + "\n")


def put(path: Path, content: str | bytes) -> None:
    """A file of a study, whole or not at all. Not by `workdir.write_text`, which would take the chips of the runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    temporary.replace(path)
