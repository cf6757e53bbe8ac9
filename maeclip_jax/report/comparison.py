"""One table over runs: what each is, and its newest evaluation numbers; chance in the header."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from maeclip_jax.report import cost
from maeclip_jax.report.page import amount, between
from maeclip_jax.report.run import Number, Run, number, readable
from maeclip_jax.workdir import REPORT


def view(runs: Sequence[Run], out: epath.Path) -> dict[str, Any]:
    """`columns`: (evaluator, label, chance); `rows`: name, link, facts, cells (text, whether it is the best)."""
    found: list[dict[tuple[str, str], Number]] = []
    for run in runs:
        metrics = [m for r in run.results() for m in r.metrics if m.shown]
        found.append({(m.evaluator, m.name): m for m in metrics})
    keys = list(dict.fromkeys(k for one in found for k in one))
    columns = []
    for key in keys:
        held = [one[key] for one in found if key in one]
        columns.append((readable(key[0]), held[0].label, _chance(held)))
    best = {k: _best([one[k] for one in found if k in one]) for k in keys}
    rows = []
    for run, one in zip(runs, found):
        cells = [
            (amount(one[k].value, one[k].unit) + between(one[k]), one[k].value == best[k]) if k in one else ("", False)
            for k in keys
        ]
        hours = cost.chip_hours(run)
        rows.append({
            "name": run.workdir.name, "link": link(run, out), "objective": run.objective, "pool": run.pool,
            "scale": run.scale, "step": run.step, "examples": f"{run.examples(run.step):,.0f}" if run.step else "",
            "parameters": run.costs.get("parameters"), "hours": f"{hours:.2g}" if hours else "", "cells": cells,
        })  # fmt: skip
    missing = [f"{run.workdir.name} has not been evaluated." for run, one in zip(runs, found) if not one]
    return {"columns": columns, "rows": rows, "missing": missing}


def _chance(metrics: Sequence[Number]) -> str:
    """`chance 1.6 %`, or the range if the runs' differ; nothing where there is nothing to compare with."""
    metrics = [m for m in metrics if m.reference is not None]
    if not metrics:
        return ""
    shown = list(dict.fromkeys(amount(m.reference, m.unit) for m in sorted(metrics, key=lambda m: m.reference)))
    return f"{metrics[0].kind} {shown[0]}" + (f" to {shown[-1]}" if len(shown) > 1 else "")


def _best(metrics: Sequence[Number]) -> float | None:
    """The best value of a column of several."""
    values = [m.value for m in metrics if number(m.value)]
    best = {"lower": min, "higher": max}.get(metrics[0].better)
    return best(values) if best and len(values) > 1 else None


def link(run: Run, out: epath.Path) -> str:
    """From the table to the run's own page, if both are on one disk and it is there."""
    page = run.workdir / REPORT / "index.html"
    if "://" in f"{run.workdir}{out}" or not page.exists():
        return ""
    return os.path.relpath(page, out).replace(os.sep, "/")
