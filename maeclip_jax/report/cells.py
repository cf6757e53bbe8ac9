"""A cell of a table: numbers of one thing that one model was measured on, seeds taken together, never mixed.

Behind every number stands how far chance could explain it. Of one seed, that is the interval of its evaluation, over
items; of several, the mean's by Student's distribution, over seeds. The best of a column is bold only if tests on the
items that all were evaluated on separate it from every other; of several seeds, Welch's test over them has to, too.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from maeclip_jax.evals.statistics import of_seeds, paired_means, plus_minus, welch
from maeclip_jax.report import paper, shipped
from maeclip_jax.report.models import Entry, Model, differences
from maeclip_jax.report.page import amount
from maeclip_jax.report.paired import Shelf
from maeclip_jax.report.run import Number

TIED = "≈"  # the best of a column, and what is within noise of it
DRAWS = 2000  # of a test, which only has to tell 95 % from less


@dataclasses.dataclass(frozen=True)
class Line:
    """One number of a cell. `spread`: `± 1.9 (n=640)`; `label`: how it was measured, if the cell has several lines.

    `best`: tests separate it from all others of its column; `tied`: it is the best, or within noise of it. `entries`:
    what it is the mean of.
    """

    value: float
    text: str
    spread: str
    label: str
    chance: str
    best: bool = False
    tied: bool = False
    entries: tuple[Entry, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.spread, self.label and f"({self.label})", self.tied and TIED)))


@dataclasses.dataclass(frozen=True)
class Cell:
    """Empty if nothing was measured; `paper`: `11.3M: 52.6`, the paper's number, if it is of the same setting;
    `apart`: in what the run is not of that setting, if its argument says that it is."""

    lines: tuple[Line, ...] = ()
    paper: str = ""
    apart: str = ""


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
        made = line(values, first.metric.unit, label, held, first.metric.interval, first.metric.n)
        lines.append(dataclasses.replace(made, entries=tuple(same)))
    if len({(x.text, x.spread, x.chance) for x in lines}) == 1:
        lines = [dataclasses.replace(lines[0], label="" if len(lines) > 1 else lines[0].label)]
    of_paper = [(value, e) for e in entries if e.own_pool and not listed and (value := _paper(e)) is not None]
    if len({value for value, _ in of_paper}) != 1:
        return Cell(tuple(lines))
    scale = paper.SCALES[entries[0].model.scale]
    apart = min((_apart(e) for _, e in of_paper), key=len)
    if apart:
        return Cell(tuple(lines), apart=f"not the paper's {scale}: {shipped.said(apart)}")
    return Cell(tuple(lines), f"{scale}: {of_paper[0][0]:.1f}")


def _paper(e: Entry) -> float | None:
    """The paper's value for what a run's argument says that it is."""
    m, blind = e.model, e.settings.get("arg.blind")  # answers to questions about grey pictures are not the paper's
    return paper.number(e.column, m.objective, m.image_pool, m.scale, e.split) if m.papers and not blind else None


def _apart(e: Entry) -> list[str]:
    """In what that is not true: of the pretrained run, and of how it was evaluated."""
    if not e.model.runs:
        return ["the pretrained run is not here"]
    run = e.model.runs[0] if e.finetuned else e.run
    found = shipped.differences(run, run.step if e.finetuned else e.step, e.model.scale)
    return found if e.finetuned else [*found, *shipped.of_evaluation(e.settings, run)]


def line(
    values: Sequence[float],
    unit: str,
    label: str = "",
    held: str = "",
    interval: tuple[float, float] | None = None,
    n: int | None = None,
) -> Line:
    """Of several seeds: their mean, half of its t interval, how many, their sample standard deviation. Of one seed: its
    number with the interval of its evaluation, if that has one, over `n` items. Every unit but percent is said. Where
    not all seeds are finite, the mean is not either; how many are stands in place of the spread."""
    finite = sum(map(math.isfinite, values))
    if len(values) > 1 and finite < len(values):
        mean = sum(values) / len(values)
        counted = f"({finite} of {len(values)} seeds finite)"
        return Line(mean, amount(mean, unit).removesuffix(" %"), counted, label, held)
    mean = statistics.fmean(values)
    counted = f"(n={n:,})" if n else ""
    if len(values) > 1:
        interval, sd = of_seeds(values), statistics.stdev(values)
        shown = f"{sd:.1f}" if unit and sd >= 0.05 else f"{sd:.2g}"
        counted = f"({len(values)} seeds, sd {shown})"
    if interval is None or not all(map(math.isfinite, (mean, *interval))):
        return Line(mean, amount(mean, unit).removesuffix(" %"), "", label, held)
    text, spread = plus_minus(mean, interval, unit)
    return Line(mean, text, " ".join(filter(None, (spread, unit.removesuffix("%"), counted))), label, held)


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


def mark_best(models: Sequence[Model], cells: Sequence[Cell], metrics: Iterable[Number], shelf: Shelf) -> list[Cell]:
    """The best of a column among models of one scale and size, if several have one number each: bold if tests separate
    it from all others; if not, it and those that are within noise of it are marked so. Where no items were kept,
    nothing is tested and nothing marked."""
    groups: dict[tuple[str, str], list[int]] = {}
    for n, m in enumerate(models):
        if len(cells[n].lines) == 1 and math.isfinite(cells[n].lines[0].value):
            groups.setdefault((paper.scale_of(m.pairs) or m.scale, m.size), []).append(n)
    better = next((b for b in (m.better for m in metrics) if b != "none"), "none")
    best = {"lower": min, "higher": max}.get(better)
    out = list(cells)
    if best is None:
        return out
    for places in (g for g in groups.values() if len(g) > 1):
        first = best(places, key=lambda n: cells[n].lines[0].value)
        mine = cells[first].lines[0]
        apart = {n: separated(mine.entries, cells[n].lines[0].entries, shelf) for n in places if n != first}
        if all(apart.values()):
            out[first] = dataclasses.replace(cells[first], lines=(dataclasses.replace(mine, best=True),))
            continue
        near = [n for n, found in apart.items() if found is False]
        for n in [first, *near] if near else []:
            out[n] = dataclasses.replace(cells[n], lines=(dataclasses.replace(cells[n].lines[0], tied=True),))
    return out


def separated(first: Sequence[Entry], second: Sequence[Entry], shelf: Shelf) -> bool | None:
    """Whether tests at 95 % tell two numbers of one thing apart; None where items were not kept, or are others."""
    kept = [
        [shelf.items(e.run, e.step, f"{e.evaluator}/{e.metric.name}") for e in several] for several in (first, second)
    ]
    if not all(kept) or any(items is None for several in kept for items in several):
        return None
    try:
        found = paired_means(*kept, first[0].metric.unit, draws=DRAWS)
    except ValueError:
        return None
    p = found.p
    if min(len(first), len(second)) > 1:  # other seeds could have had other results, too
        p = max(p, welch(*([e.metric.value for e in several] for several in (first, second))))
    return p < 0.05
