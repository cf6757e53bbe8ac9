"""One table over runs: what each is, and its newest evaluation numbers; chance in the header.

The best of a column is bold if tests on the items of all runs separate it from each other run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from maeclip_jax.report import cost
from maeclip_jax.report.cells import separated
from maeclip_jax.report.page import amount, measured
from maeclip_jax.report.paired import Shelf
from maeclip_jax.report.run import Number, Run, number, readable
from maeclip_jax.workdir import REPORT


class Measured(NamedTuple):
    """A number, and where it is from."""

    run: Run
    step: int
    evaluator: str
    metric: Number


def view(runs: Sequence[Run], out: epath.Path) -> dict[str, Any]:
    """`columns`: (evaluator, label, chance); `rows`: name, link, facts, cells (text, whether it is the best)."""
    found: list[dict[tuple[str, str], Measured]] = []
    for run in runs:
        made = [Measured(run, r.step, m.evaluator, m) for r in run.results() for m in r.metrics if m.shown]
        found.append({(one.evaluator, one.metric.name): one for one in made})
    shelf = Shelf()
    keys = list(dict.fromkeys(k for one in found for k in one))
    columns = []
    for key in keys:
        held = [one[key].metric for one in found if key in one]
        columns.append((readable(key[0]), held[0].label, _chance(held)))
    best = {k: _best([one[k] for one in found if k in one], shelf) for k in keys}
    rows = []
    for run, one in zip(runs, found):
        cells = [(measured(one[k].metric), one[k] is best[k]) if k in one else ("", False) for k in keys]
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


def _best(several: Sequence[Measured], shelf: Shelf) -> Measured | None:
    """The best of a column of several, if it is more than noise that makes it so."""
    several = [one for one in several if number(one.metric.value)]
    best = {"lower": min, "higher": max}.get(several[0].metric.better) if len(several) > 1 else None
    if best is None:
        return None
    first = best(several, key=lambda one: one.metric.value)
    apart = all(separated([first], [one], shelf) for one in several if one is not first)
    return first if apart else None


def link(run: Run, out: epath.Path) -> str:
    """From the table to the run's own page, if both are on one disk and it is there."""
    page = run.workdir / REPORT / "index.html"
    if "://" in f"{run.workdir}{out}" or not page.exists():
        return ""
    return os.path.relpath(page, out).replace(os.sep, "/")
