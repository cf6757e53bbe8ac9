"""Two runs on the same items: the difference of every number that both have, and whether chance explains it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from maeclip_jax import workdir
from maeclip_jax.errors import UserError, differences
from maeclip_jax.evals import statistics
from maeclip_jax.evals.items import Items
from maeclip_jax.report.models import measured
from maeclip_jax.report.page import amount
from maeclip_jax.report.run import Number, Result, Run

SIGNIFICANT = 0.05
COLUMNS = ("number", "first", "second", "difference", "n", "p", "Holm", "")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A number of both runs; `found` is second minus first, `holm` its p adjusted for all pairs of its family: those of
    which more or less is better are one, those that only describe are another."""

    name: str
    first: Number
    second: Number
    found: statistics.Difference
    holm: float = 1.0

    @property
    def verdict(self) -> str:
        """Which run is better, if the difference is more than noise; "differs" where neither more nor less is."""
        if self.holm >= SIGNIFICANT:
            return "within noise"
        if self.first.better == "none":
            return "differs"
        return "second is better" if (self.found.value > 0) == (self.first.better == "higher") else "first is better"


class Shelf:
    """The items of any number of runs; a file is read once."""

    def __init__(self):
        self._kept: dict[tuple[str, int], Mapping[str, Items]] = {}

    def items(self, run: Run, step: int, metric: str) -> Items | None:
        """What a metric ("zero_shot/top1") of a run is the mean of; None where that was not kept."""
        place = str(run.workdir), step
        if place not in self._kept:
            self._kept[place] = workdir.read_items(*place)
        return self._kept[place].get(metric)


def compare(first: Run, second: Run) -> tuple[list[Pair], list[str]]:
    """The pairs, in the first run's order, and notes on what was left out or differs in how it was measured.

    A number whose items are others is left out and named. UserError where no number can be compared.
    """
    pairs, notes, without, others = [], [], [], []
    shelf = Shelf()
    for mine, theirs in _shared(first, second):
        notes += _apart(mine, theirs)
        other = {m.name: m for m in theirs.metrics}
        for number in (m for m in mine.metrics if m.name in other):
            name = f"{mine.evaluator}/{number.name}"
            kept = [shelf.items(run, result.step, name) for run, result in ((first, mine), (second, theirs))]
            if any(items is None for items in kept):
                without.append(name)
                continue
            try:
                found = statistics.paired(*kept, number.unit)
            except ValueError as e:
                others.append(f"{name}: {e}")
                continue
            pairs.append(Pair(name, number, other[number.name], found))
    if without:
        notes.append(
            f"Without kept items, so not compared: {', '.join(without)}. Evaluating such a step anew keeps them "
            "(delete its evals/STEP.json first)."
        )
    if others and not pairs:
        raise UserError(f"{'; '.join(others[:3])}; evaluate both runs on the same data")
    if others:
        notes.append(f"Not the same items in both runs, so not compared: {'; '.join(others)}.")
    if not pairs:
        names = [sorted({r.evaluator for r in run.results()}) for run in (first, second)]
        raise UserError(
            f"{first.workdir} and {second.workdir} have no number with items in common: their evaluations are "
            f"{', '.join(names[0]) or 'none'} and {', '.join(names[1]) or 'none'}; evaluate both with the same suite"
        )
    return _adjusted(pairs), notes


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in their order, with p adjusted within each family."""
    out = list(pairs)
    for describes in (False, True):
        family = [n for n, pair in enumerate(pairs) if (pair.first.better == "none") == describes]
        for n, p in zip(family, statistics.holm([pairs[n].found.p for n in family])):
            out[n] = dataclasses.replace(pairs[n], holm=p)
    return out


def _shared(first: Run, second: Run) -> Iterator[tuple[Result, Result]]:
    theirs = {r.evaluator: r for r in second.results()}
    return ((r, theirs[r.evaluator]) for r in first.results() if r.evaluator in theirs)


def _apart(mine: Result, theirs: Result) -> list[str]:
    """How two results of one name were not measured alike."""
    one, other = measured(mine.settings), measured(theirs.settings)
    out = (
        [f"{mine.evaluator} was measured in two ways: in the second run {differences(other, one)}."]
        if one != other
        else []
    )
    if mine.step != theirs.step:
        out.append(f"{mine.evaluator} is of step {mine.step} of the first run and step {theirs.step} of the second.")
    return out


def text(first: Run, second: Run) -> str:
    """The comparison as lines for a terminal."""
    pairs, notes = compare(first, second)
    rows = [COLUMNS, *(_row(pair) for pair in pairs)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(w) if n in (0, len(widths) - 1) else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    describe = sum(pair.first.better == "none" for pair in pairs)
    family = f"{len(pairs) - describe} numbers" + (f", of {describe} that only describe apart" if describe else "")
    head = [
        f"first:  {first.workdir}",
        f"second: {second.workdir}",
        f"Second minus first on the same items, with 95 % intervals of a paired bootstrap ({statistics.PAIRED_DRAWS:,} "
        "draws). p: McNemar's exact test of accuracies,",
        f"else the same bootstrap. Holm: p adjusted for {family}; {SIGNIFICANT:g} or more is within noise. "
        "Other seeds of training are not in it.",
        "",
    ]
    return "\n".join([*head, *(line.rstrip() for line in lines), *([""] if notes else []), *notes])


def _row(pair: Pair) -> Sequence[str]:
    unit, found = pair.first.unit, pair.found
    change = f"{found.value:+.3g} {unit}".strip()
    if all(map(math.isfinite, (found.value, *found.interval))):
        number, _ = statistics.plus_minus(found.value, found.interval, unit)
        places = len(number.partition(".")[2])
        low, high = (f"{x:+.{places}f}" for x in found.interval)
        change = f"{found.value:+.{places}f} [{low}, {high}] {unit}".strip()
    change = change.replace("-", "−")
    values = [amount(m.value, unit).removesuffix(f" {unit}") for m in (pair.first, pair.second)]
    return pair.name, *values, change, f"{found.n:,}", _p(found.p), _p(pair.holm), pair.verdict


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.001 else f"{value:.3f}"
