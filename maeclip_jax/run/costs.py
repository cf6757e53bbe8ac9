"""costs.json: what a run took so far, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from maeclip_jax.workdir import COSTS, read_metrics, write_text


def write_costs(workdir: epath.PathLike, costs: Mapping, rows: Sequence[Mapping] | None = None) -> None:
    """costs.json: what the run took so far, and the `median` of every perf/* over its rows; for the report.

    `rows`: those of metrics.jsonl, where they are known.
    """
    if jax.process_index():
        return
    rows = [r for r in (read_metrics(workdir) if rows is None else rows) if "perf/step_seconds" in r and r["step"] > 1]
    names = [k for k in (rows[-1] if rows else ()) if k.startswith("perf/")]
    median = {k: float(np.median([r[k] for r in rows if k in r])) for k in names}
    write_text(epath.Path(workdir) / COSTS, json.dumps(dict(costs) | {"median": median}, indent=1))
