"""The page of a study, its figure as PNG, and its numbers as CSV and JSON, in the study's folder."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maeclip_jax.errors import UserError
from maeclip_jax.report.figures import compact
from maeclip_jax.report.page import TEMPLATES
from maeclip_jax.study import analysis, curves, figure, plan, results

ANALYSIS, TABLE, INDEX = "analysis.json", "gains.csv", "index.html"


def write(folder: str | os.PathLike) -> Path:
    """Reads the results in `folder` and writes index.html, gains.csv, gain-*.png and analysis.json; the page's path.

    UserError where there is no plan, or results of another one.
    """
    folder = Path(folder)
    made = plan.read(folder)
    if made is None:
        raise UserError(f"no study in {folder}: it has no {plan.PLAN}; valid: a folder of results of `make study`")
    found, missing = results.read(folder, made)
    numbers = analysis.analyse(analysis.Study(made, found, missing))
    results.put(folder / ANALYSIS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    results.put(folder / TABLE, table(numbers))
    pictures = {}
    for name, png in figure.panels(numbers).items():
        results.put(folder / f"gain-{name}.png", png)
        pictures[name] = base64.b64encode(png).decode()
    results.put(folder / INDEX, html(made, numbers, pictures, os.fspath(folder)))
    return folder / INDEX


def table(numbers: Mapping[str, Any]) -> str:
    """The points of the figure, a row each."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["arm", "minus", "matched by", "pool", "diversity", "pairs", "gain", "low", "high", "seeds"])
    for line in numbers["lines"]:
        for point in line["points"]:
            where = [line["arm"], numbers["baseline"], line["match"], line["pool"], line["diversity"], point["size"]]
            rows.writerow([*where, point["value"], *(point["interval"] or ("", "")), point["n"]])
    return out.getvalue()


def html(made: Mapping, numbers: Mapping, pictures: Mapping[str, str], folder: str) -> str:
    """One self-contained page."""
    view = {
        "plan": made, "n": numbers, "pictures": pictures, "folder": folder, "compact": compact, "effect": effect,
        "crossing": crossing, "p": p_value, "amount": amount, "level": level, "interval": interval,
        "law": law, "plan_text": plan.text(made),
    }  # fmt: skip
    import jinja2

    source = {p.name: p.read_text() for p in TEMPLATES.iterdir() if p.name in ("study.html.j2", "style.css.j2")}
    setting = {"loader": jinja2.DictLoader(source), "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, **setting)
    return environment.get_template("study.html.j2").render(**view)


def effect(row: Mapping) -> str:
    """`+2.1 (0.4 to 3.8)`."""
    if row["value"] is None:
        return "missing"
    value = f"{row['value']:+.2f}"
    return (
        f"{value} ({row['interval'][0]:+.2f} to {row['interval'][1]:+.2f})"
        if row["interval"]
        else f"{value} (no interval)"
    )


def interval(found: Sequence[float] | None) -> str:
    """`+0.4 to +3.8`, or nothing."""
    return f"{found[0]:+.2f} to {found[1]:+.2f}" if found else ""


def level(cell: Mapping) -> str:
    """`61.8 ± 1.9`, `61.8` where there is no interval."""
    if cell["mean"] is None:
        return "missing"
    mean, low_high = f"{cell['mean']:.1f}", cell["interval"]
    return f"{mean} ± {(low_high[1] - low_high[0]) / 2:.1f}" if low_high else mean


def law(row: Mapping, name: str) -> str:
    """`0.41 (0.35 to 0.48)` of a power law's `a` or `c`; where the search for c ended, no interval does."""
    if not row["determined"]:
        return "not determined"
    value = f"{row[name]:.3g}"
    if not row["intervals"]:
        return value
    low, high = row["intervals"][name]
    least, most = row["intervals"]["c"]  # a steeper law has a larger rest
    flat, steep = least <= curves.EXPONENTS[0] and low > 0, most >= curves.EXPONENTS[1]
    return f"{value} ({low:.3g}{' or less' * flat} to {high:.3g}{' or more' * steep})"


def p_value(value: float | None) -> str:
    """`0.013`, `< 0.001`, or nothing."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def amount(value: float) -> str:
    """`20,000`, `5.905`: counts whole, all else with three decimals."""
    return f"{value:,.0f}" if value == round(value) or value >= 1000 else f"{value:.3f}"


def crossing(found: Mapping) -> str:
    """`8.1k (4.2k to 16k): inside the range`."""
    low, high = found["interval"] or (None, None)
    within = f" ({compact(low) if low else 'below the smallest'} to {compact(high) if high else 'above the largest'})"
    size = compact(found["size"]) if found["size"] else ""
    return f"{size}{within if found['interval'] else ''}{': ' if size or found['interval'] else ''}{found['said']}"
