"""What the runs themselves measured, cell by cell and pool by pool: no differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maeclip_jax.evals.statistics import of_seeds
from maeclip_jax.study import design

if TYPE_CHECKING:
    from maeclip_jax.study.analysis import Study

BESIDE = ("similarity_pointing", "baseline_center_pointing")  # the latter points at the middle of every picture


def outcome(study: Study) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of every cell of the design, missing ones too."""
    rows, cells = [], {}
    for run in study.plan["runs"]:
        if run["phase"] != design.TUNE:
            key = (run["arm"], "+".join(run["matched"]), run["pool"], run["weight"], run["size"], run["diversity"])
            cells.setdefault(key, []).append(run["id"])
    have = {r.run.id: r.value for r in study.results}
    for key, ids in cells.items():
        values = [have[i] for i in ids if i in have]
        rows.append(dict(zip(("arm", "matched", "pool", "weight", "size", "diversity"), key)) | {
            "planned": len(ids), "n": len(values), "mean": float(np.mean(values)) if values else None,
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        })  # fmt: skip
    return rows


def measures(study: Study, names: Sequence[str]) -> dict[str, Any]:
    """The outcome and the metrics of these names, of every arm under every pool, at the last size and diversity.

    {"size", "diversity", "match", "rows": [{"metric", "cells": [{"arm", "pool", "mean", "interval", "n"}]}]}; the
    interval is Student's at 95 % over seeds, None of one.
    """
    axes, name = study.axes, study.plan["outcome"]
    match = design.EXAMPLES if design.EXAMPLES in axes["match"] else axes["match"][0]
    size, share = axes["sizes"][-1], axes["diversities"][-1]
    columns = {
        (arm, pool): [
            r.metrics for key, r in study.runs(arm, match, pool).items() if key[:2] == (size, share)
        ] for arm in axes["arms"] for pool in axes["pools"]
    }  # fmt: skip
    there = {metric for of in columns.values() for one in of for metric in one}
    kept = [m for m in sorted(there - {name}) if m.rpartition("/")[2] in (*names, *BESIDE)]
    rows = []
    for metric in [name] * (name in there) + kept:
        cells = []
        for (arm, pool), of in columns.items():
            values = [one[metric] for one in of if metric in one]
            interval = of_seeds(values)
            cells.append({
                "arm": arm, "pool": pool, "n": len(values), "mean": float(np.mean(values)) if values else None,
                "interval": [float(v) for v in interval] if interval else None,
            })  # fmt: skip
        rows.append({"metric": metric, "cells": cells})
    return {"size": size, "diversity": share, "match": match, "rows": rows}
