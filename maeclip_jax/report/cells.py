"""A cell of a table: numbers of one thing that one model was measured on, seeds taken together, never mixed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from maeclip_jax.report import paper
from maeclip_jax.report.models import Entry, Model, differences
from maeclip_jax.report.page import amount
from maeclip_jax.report.run import Number


@dataclasses.dataclass(frozen=True)
class Line:
    """One number of a cell. `spread`: `± 0.3 (n=3)`; `label`: how it was measured, if the cell has several lines."""

    value: float
    text: str
    spread: str
    label: str
    chance: str
    best: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.spread, self.label and f"({self.label})")))


@dataclasses.dataclass(frozen=True)
class Cell:
    """Empty if nothing was measured; `paper`: `11.3M: 52.6`, the paper's number, if it is of the same setting."""

    lines: tuple[Line, ...] = ()
    paper: str = ""


def cell(entries: Sequence[Entry], *, listed: bool = False) -> Cell:
    """What was measured of one thing for one model; ways of measuring it are kept apart, seeds taken together.

    Where features pooled in the model's own way were measured, those pooled otherwise are left to the list of all
    numbers (`listed`), which has no numbers of the paper.
    """
    if not listed and any(e.own_pool for e in entries):
        entries = [e for e in entries if e.own_pool]
    ways: dict[tuple, list[Entry]] = {}
    for e in entries:
        ways.setdefault((e.evaluator, *sorted((k, str(v)) for k, v in e.settings.items())), []).append(e)
    several = list(ways.values())
    labels = [e[0].evaluator.replace("_", " ") for e in several]
    if len(set(labels)) < len(labels):
        labels = [", ".join(d) for d in differences([e[0].settings for e in several])]
    if len(several) == 1:
        labels = [""]
    lines = []
    for label, same in zip(labels, several):
        first = same[0]
        if not label and not first.own_pool:
            label = f"pool {first.settings['pool']}"
        values, held = [e.metric.value for e in same], chance(e.metric for e in same)
        label = ", ".join(dict.fromkeys(filter(None, (label, *(e.metric.note for e in same)))))
        lines.append(line(values, first.metric.unit, label, held, first.metric.interval))
    if len({(x.text, x.spread, x.chance) for x in lines}) == 1:
        lines = [dataclasses.replace(lines[0], label="" if len(lines) > 1 else lines[0].label)]
    shown = {_paper(e) for e in entries if e.own_pool and not listed} - {None}
    if len(shown) != 1:
        return Cell(tuple(lines))
    return Cell(tuple(lines), f"{paper.SCALES[entries[0].model.scale]}: {shown.pop():.1f}")


def _paper(e: Entry) -> float | None:
    m, blind = e.model, e.settings.get("arg.blind")  # answers to questions about grey pictures are not the paper's
    return paper.number(e.column, m.objective, m.image_pool, m.scale, e.split) if m.papers and not blind else None


def line(
    values: Sequence[float], unit: str, label: str = "", held: str = "", interval: tuple[float, float] | None = None
) -> Line:
    """Mean of seeds, ± sample standard deviation; of one seed, the interval of its own evaluation if it has one."""
    mean = statistics.fmean(values)
    text, spread = amount(mean, unit).removesuffix(" %"), ""
    if len(values) > 1:
        sd = statistics.stdev(values)
        shown = f"{sd:.1f}" if unit and sd >= 0.05 else f"{sd:.2g}"
        spread = f"± {shown} (n={len(values)})"
    elif interval:
        spread = "[" + ", ".join(amount(x, unit).removesuffix(f" {unit}") for x in interval) + "]"
    return Line(mean, text, spread, label, held)


def chance(metrics: Iterable[Number]) -> str:
    """`chance 1.6 %, baseline 20.0 %`; of several runs, ranges."""
    found: dict[str, list[tuple[float, str]]] = {}
    for m in metrics:
        for kind, value in m.against:
            found.setdefault(kind, []).append((value, amount(value, m.unit)))
    said = []
    for kind, several in found.items():
        low, high = min(several)[1], max(several)[1]
        said.append(f"{kind} {low}" if low == high else f"{kind} {low} to {high}")
    return ", ".join(said)


def settle(cells: Sequence[Cell]) -> tuple[str, list[Cell]]:
    """What all cells are compared with, said once, and the cells without it; if it differs, "" and the cells."""
    said = {x.chance for c in cells for x in c.lines}
    if len(said) != 1:
        return "", list(cells)
    bare = [dataclasses.replace(c, lines=tuple(dataclasses.replace(x, chance="") for x in c.lines)) for c in cells]
    return said.pop(), bare


def mark_best(models: Sequence[Model], cells: Sequence[Cell], metrics: Iterable[Number]) -> list[Cell]:
    """The best of a column among models of one scale and size, if several have one number each and these differ."""
    groups: dict[tuple[str, str], list[int]] = {}
    for n, m in enumerate(models):
        if len(cells[n].lines) == 1:
            groups.setdefault((m.scale, m.size), []).append(n)
    better = next((b for b in (m.better for m in metrics) if b != "none"), "none")
    best = {"lower": min, "higher": max}.get(better)
    if best is None:
        return list(cells)
    out = list(cells)
    for places in (g for g in groups.values() if len(g) > 1):
        values = [cells[n].lines[0].value for n in places]
        top = best(values) if len(set(values)) > 1 else None
        for n in (n for n in places if cells[n].lines[0].value == top):
            out[n] = dataclasses.replace(cells[n], lines=(dataclasses.replace(cells[n].lines[0], best=True),))
    return out
