"""The plan of a study: study.json, written before the first run and never again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from maeclip_jax import config as configs
from maeclip_jax.errors import UserError
from maeclip_jax.study import design, draws, power, spending

PLAN, FORMAT = "study.json", 1
# Spread of the difference of two paired runs in points, where no pilot has measured it: three differences of a cell
# have a mean with a standard error of 2.1 points then.
ASSUMED_SD = 3.6
STOPPING = "every run of this plan is trained to its end, whatever the others found; nothing is looked at to decide"


def make(axes: design.Axes, topology: str, sd: float, price: float) -> dict[str, Any]:
    """The content of study.json. UserError for what cannot be planned."""
    if not 0 < sd < math.inf:
        raise UserError(f"--sd={sd:g}; valid: points above 0")
    if not 0 <= price < math.inf:
        raise UserError(f"--price={price:g}; valid: 0 or more")
    runs = design.runs(axes, spending.flops_of)
    ids = [run.id for run in runs]
    assert len(set(ids)) == len(ids), "two runs with one name"
    unchecked = draws.check(axes, runs)
    speed = spending.speed(axes, runs, topology)
    total = spending.hours(runs, speed)
    tests = primary(axes)
    first = next(run for run in runs if run.phase == design.MAIN)
    leaves = dict(configs.leaves(configs.plain(design.load(first, axes))))
    return {
        "format": FORMAT, "command": " ".join(sys.orig_argv[1:]), "axes": axes.plain(), "outcome": axes.outcome,
        "recipe": {n: v for n, v in leaves.items() if n == "batch_size" or n.startswith("optim.")},
        "tuning": {
            "grid": {k: list(v) for k, v in axes.tune.items()},
            "at": f"size {axes.sizes[0]}, diversity {axes.diversities[-1]:g}, pool {axes.pools[-1]}, a draw of its own",
            "rule": "the setting with the best outcome of each arm is that of all its other runs" if axes.tune else
            "none: the arms share the recipe",
        },
        "contrasts": {
            "primary": tests,
            "test": "two-sided t of the linear model of paired differences, Holm over the primary contrasts",
            "level": power.ALPHA,
        },
        "stopping": STOPPING, "unchecked": unchecked,
        "costs": {
            "topology": topology, "how": speed.how, "runs": len(runs), "flops": sum(run.flops for run in runs),
            "hours": total, "chip_hours": total * speed.chips, "price": price * total * speed.chips,
            "step_seconds": dict(speed.step), "start_seconds": speed.start, "devices": jax.device_count(),
        },
        "power": {
            "sd": sd, "detectable": finite(power.table(axes.sizes, axes.diversities, axes.seeds, sd, len(tests))),
        },
        "runs": [dataclasses.asdict(run) for run in runs],
    }  # fmt: skip


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def primary(axes: design.Axes) -> list[dict[str, str]]:
    """The contrasts that are declared before the first run: mean and slope of each arm's gain, under the last pool."""
    match = design.FLOPS if design.FLOPS in axes.match else axes.match[0]
    terms = ["mean", *(["slope"] if len(axes.sizes) > 1 else [])]
    return [{"arm": arm, "against": axes.arms[0], "pool": axes.pools[-1], "match": match, "term": term}
            for arm in axes.arms[1:] for term in terms]  # fmt: skip


def axes_of(plan: Mapping) -> design.Axes:
    """The axes that a plan was made from."""
    return design.Axes(**plan["axes"])


def runs_of(plan: Mapping) -> list[design.Run]:
    """The runs of a plan."""
    return [design.Run(**(run | {"matched": tuple(run["matched"])})) for run in plan["runs"]]


def read(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The plan in a folder, None if there is none. UserError for a file that is not one."""
    path = Path(folder) / PLAN
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_text())
        known = plan["format"] == FORMAT and plan["axes"] and plan["runs"] is not None
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path} is not the plan of a study of format {FORMAT}; name another --out")
    return plan


def same(plan: Mapping, axes: design.Axes, folder: str | os.PathLike) -> None:
    """UserError if the folder's plan is of other axes: what it holds would not be this study's."""
    mine, theirs = axes.plain(), plan["axes"]
    differ = [n for n in mine if mine[n] != theirs.get(n)]
    if differ:
        said = ", ".join(f"{n} {theirs.get(n)} there and {mine[n]} here" for n in differ)
        raise UserError(f"{folder} holds another study: {said}; a plan is never changed: name another --out")


def text(plan: Mapping) -> str:
    """The plan as a table."""
    costs, axes, found = plan["costs"], plan["axes"], plan["power"]
    rows: dict[tuple, list] = {}
    for run in plan["runs"]:
        weight = "" if run["weight"] is None else f"{run['weight']:g}"
        rows.setdefault((run["phase"], run["arm"], "+".join(run["matched"]), weight), []).append(run)
    lines = [("runs for", "arm", "matched by", "weight", "runs", "steps", "FLOPs a run", "hours")]
    for key, runs in rows.items():
        seconds = [r["steps"] * costs["step_seconds"][r["arm"]] + costs["start_seconds"] for r in runs]
        steps = sorted({r["steps"] for r in runs})
        lines.append((*key, str(len(runs)), _span(steps, "{:,}"), _span([r["flops"] for r in runs], "{:.3g}"),
                      f"{sum(seconds) / 3600:.2f}"))  # fmt: skip
    wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = ["  ".join(cell.ljust(w) for cell, w in zip(line, wide)).rstrip() for line in lines]
    cells = f"{axes['data']}: {' x '.join(f'{n:,}' for n in axes['sizes'])} pairs, diversity {axes['diversities']}"
    price = f", {costs['price']:,.0f} at the given price" if costs["price"] else ""
    chips = f" ({costs['chip_hours']:,.1f} chip-hours{price})" if costs["chip_hours"] else ""
    least = {k: "nothing" if v is None else f"{v:.2g}" for k, v in found["detectable"].items()}
    per = {
        "mean": "a mean gain of {}",
        "slope": "a slope of {} a decade of pairs",
        "diversity": "{} from diversity 0 to 1",
    }
    out += [
        "", f"{cells}; pools {', '.join(axes['pools'])}; {axes['seeds']} seeds; outcome {plan['outcome']}",
        f"{costs['runs']} runs, {costs['flops']:.3g} FLOPs, {costs['hours']:.2f} h on {costs['topology']}{chips}, one "
        f"run after the other; {costs['how']}; evaluations and reading of data are not in it",
        "declared: " + "; ".join(f"{c['term']} of {c['arm']} minus {c['against']}, {c['pool']}, matched by {c['match']}"
                                 for c in plan["contrasts"]["primary"]),
        f"found with 80 % power, if paired runs differ by chance by {found['sd']:.3g} points (standard deviation): "
        + ", ".join(per[k].format(v) for k, v in least.items()),
    ]  # fmt: skip
    if plan.get("unchecked"):
        out.append(plan["unchecked"])
    if axes["seeds"] < 2:
        out.append("one seed: no effect has an interval, and nothing can be said to be more than chance")
    return "\n".join(out)


def _span(values: Sequence, form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
