"""The paper's tables from any number of runs, as plain values; nothing in them that no run measured.

Rows are models and columns what was measured, as in the paper, or the other way round where there is much to measure.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maeclip_jax.data import vtab
from maeclip_jax.report import paper
from maeclip_jax.report.cells import Cell, cell, line, mark_best, settle
from maeclip_jax.report.figures import compact
from maeclip_jax.report.models import Entry, Model
from maeclip_jax.report.paired import Shelf
from maeclip_jax.report.paper import Column
from maeclip_jax.report.run import Number, readable

TYPES = {"vqa": "VQA", "knn": "k-NN"}  # evaluator types that `readable` does not say well
GROUNDING = (
    "Percent. Pointing: the highest point of the map lies in the mask; matched iou: of the mask and as many of the "
    "highest points. Maps under another pooling than the model's own are of the same weights."
)
MAPS = {"gradcam": "Grad-CAM", "rollout": "roll-out", "center": "the centre, no map", "whole": "everything, no map"}
SCORES = ("pointing", "matched iou", "iou")
SHORT = {"image_to_text_R@1": "I→T R@1", "text_to_image_R@1": "T→I R@1", "top1": "top-1", "top5": "top-5"}


@dataclasses.dataclass(frozen=True)
class Table:
    """`heads`: names of the first columns, which say what a row is; `columns`: (data set, metric, chance)."""

    title: str
    note: str
    heads: tuple[str, ...]
    columns: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Cell, ...]], ...]


def paper_tables(
    models: Sequence[Model], entries: Sequence[Entry], shelf: Shelf | None = None
) -> tuple[list[Table], list[str]]:
    """T1 to T4 and those of segmentation, grounding and VTAB; and the titles of those that no run measured."""
    own, shelf = [e for e in entries if not e.finetuned], shelf or Shelf()
    probe = [e for e in own if e.type == "linear_probe" and e.metric.name == "top1"]
    tasks, probe = [e for e in probe if _task(e)], [e for e in probe if not _task(e)]
    zero = [e for e in own if e.type == "zero_shot" and e.metric.name == "top1" and e.data != "coco_a"]
    actions = [e for e in own if e.column in paper.ACTIONS]
    recall = [e for e in own if e.type == "retrieval" and e.metric.name.endswith("_R@1")]
    asked = [e for e in entries if e.type == "vqa" and e.metric.name == "accuracy"]
    own_pool = "Features are pooled as the model pools its own, before the projection."
    tables = [_scales(models, probe, own_pool)]
    columns = (
        ("T2. VQA finetuning", asked, "Finetuned end to end; accuracy in percent. Baseline: without the picture."),
        ("T3. Pooling: zero-shot and linear probe", [*zero, *probe], f"Top-1 accuracy in percent. {own_pool}"),
        ("T4. Zero-shot retrieval and visual actions", [*recall, *actions], "R@1 and top-k accuracy in percent."),
    )  # fmt: skip
    tables += [_columns(title, note, models, found, _of_paper(title), shelf) for title, found, note in columns]
    few = [e for e in own if e.type == "knn" and e.metric.name == "top1"]
    few += [e for e in own if e.type == "few_shot" and e.metric.name.endswith("_shot")]
    others = (
        ("Nearest neighbours and few shots", few, f"Top-1 accuracy in percent. {own_pool}"),
        ("Zero-shot segmentation", [e for e in own if e.type == "segmentation"], "Percent; patches against prompts."),
    )
    tables += [_columns(title, note, models, found, (), shelf) for title, found, note in others]
    tables.append(_grounding(models, [e for e in own if e.type == "grounding"], shelf))
    tables.append(_vtab(models, tasks))
    brought = [e for e in own if e.metric.own]
    tables.append(_columns("Evaluators of your own", "Each number in its own unit.", models, brought, (), shelf))
    return [_annotated(t) for t in tables if t.rows], [t.title for t in tables[:-1] if not t.rows]


def _annotated(table: Table) -> Table:
    """With what has to be known of the paper's numbers, if there are any beside ours."""
    about = [note for name, (_, _, note) in paper.TABLES.items() if name[:2] == table.title[:2]]
    if about and any(c.paper for _, cells in table.rows for c in cells):
        return dataclasses.replace(table, note=f"{table.note} Of the paper's numbers: {about[0]}")
    return table


def _of_paper(title: str) -> tuple[Column, ...]:
    return next(columns for name, (columns, _, _) in paper.TABLES.items() if name[:2] == title[:2])


def everything(models: Sequence[Model], entries: Sequence[Entry]) -> Table:
    """All that was measured: a row a number, a column a model."""
    keys = [(e.type, e.evaluator, e.finetuned, e.data, e.split, e.metric.name) for e in entries]
    found: dict[tuple, list[Entry]] = {}
    for key, e in zip(keys, entries):
        found.setdefault(key, []).append(e)
    heads, rows = ("evaluation", "data", "split", "number", "compared with"), []
    for (kind, name, finetuned, data, split, _), several in sorted(found.items(), key=lambda f: f[0][:5]):
        said, of = name.replace("_", " "), kind if ":" in kind else kind.replace("_", " ")
        what = (said if name == kind else f"{said} ({of})") + (", finetuned" if finetuned else "")
        chance, cells = settle([cell([e for e in several if e.model is m], listed=True) for m in models])
        row = (what, data_name(data), split, several[0].metric.label, chance)
        rows.append((row, tuple(cells)))
    columns = tuple((m.label, "", "") for m in models)
    return Table("All numbers", "The newest evaluation of every run.", heads, columns, tuple(rows))


def _scales(models: Sequence[Model], entries: Sequence[Entry], note: str) -> Table:
    """T1: rows are data set, objective, pooling, size; columns are how many different pairs were read."""
    counts = {e.model.pairs: read(e.model.pairs) for e in entries}
    scales = list(dict.fromkeys(counts[n] for n in sorted(counts, key=lambda n: n or 0)))
    if any(e.data == paper.PROBE.data for e in entries):
        ours = [s for s in scales if s not in paper.SCALES.values()]
        scales = ours + list(paper.SCALES.values())
    rows = []
    for data in _ordered({e.data for e in entries}, [paper.PROBE.data]):
        measured = [e for e in entries if e.data == data]
        groups: dict[tuple, list[Model]] = {}
        for m in _of(models, measured):
            groups.setdefault((m.objective, m.pool, m.size, m.note), []).append(m)
        for (objective, pool, size, more), same in groups.items():
            for scale, alike in _rows_of(same).items():
                mine = [e for e in measured if e.model in _Same(alike)]
                chance, cells = settle([cell([e for e in mine if read(e.model.pairs) == s]) for s in scales])
                said = ", ".join(filter(None, (more, scale)))
                rows.append(((data_name(data), objective, pool.upper(), size, said, chance), tuple(cells)))
    columns = tuple((f"{s} pairs", "", "") for s in scales)
    heads = ("data", "objective", "pooling", "size", "", "compared with")
    note = f"Top-1 accuracy in percent; columns: different pairs that were read in pretraining. {note}"
    return _trim(Table("T1. Linear probe", note, heads, columns, tuple(rows)))


def _rows_of(same: Sequence[Model]) -> dict[str, list[Model]]:
    """{"": all of them}; where two of them would be in one cell, a row for each scale by its name."""
    counts = [read(m.pairs) for m in same]
    if len(set(counts)) == len(counts):
        return {"": list(same)}
    found: dict[str, list[Model]] = {}
    for n, m in enumerate(same):
        name = m.scale or "no scale"
        found.setdefault(f"{name} ({n + 1})" if name in found else name, []).append(m)
    return found


class _Same:
    """`in` by identity: models hold whole runs, which are slow to compare."""

    def __init__(self, items: Iterable[Any]):
        self.ids = {id(i) for i in items}

    def __contains__(self, item: Any) -> bool:
        return id(item) in self.ids


def _of(models: Sequence[Model], entries: Sequence[Entry]) -> list[Model]:
    """The models that entries are of, in the order of `models`."""
    held = _Same(e.model for e in entries)
    return [m for m in models if m in held]


def _columns(
    title: str, note: str, models: Sequence[Model], entries: Sequence[Entry], first: Sequence[Column], shelf: Shelf
) -> Table:
    """Rows are models, columns what was measured; all of the paper's columns if any of them was."""
    found = list(dict.fromkeys(e.column for e in entries))
    wanted = list(first) if set(first) & set(found) else []
    columns = wanted + sorted((c for c in found if c not in wanted), key=lambda c: c.data)
    several = _of(models, entries)
    settled = []  # column by column
    for c in columns:
        made = [cell([e for e in entries if e.model is m and e.column == c]) for m in several]
        settled.append(settle(mark_best(several, made, [e.metric for e in entries if e.column == c], shelf)))
    heads = tuple((data_name(c.data), _head(c), chance) for c, (chance, _) in zip(columns, settled))
    rows = tuple((_who(m), tuple(cells[n] for _, cells in settled)) for n, m in enumerate(several))
    return _trim(Table(title, note, ("objective", "pooling", "pairs read", "size", "", "examples seen"), heads, rows))


def _who(m: Model) -> tuple[str, ...]:
    """What the first columns say of a model."""
    seen = " to ".join(dict.fromkeys(compact(n) for n in (m.examples[:1] + m.examples[-1:]) if n))
    pairs = read(m.pairs) if m.pairs or m.scale in paper.SCALES else m.scale
    return m.objective, m.pool.upper(), pairs, m.size, m.note, seen


def read(pairs: float | None) -> str:
    """How many different pairs were read: the paper's name for a number near one of its own, else the number."""
    return paper.SCALES.get(paper.scale_of(pairs)) or (compact(pairs) if pairs else "unknown")


def _head(column: Column) -> str:
    """What stands at the head of a column."""
    kinds = {"zero_shot": "zero-shot", "linear_probe": "linear probe", "knn": "k-NN"}
    return " ".join(filter(None, (kinds.get(column.type), metric_name(column.metric))))


def metric_name(name: str) -> str:
    """`image_to_text_R@1` -> `I→T R@1`."""
    return SHORT.get(name, Number("", name, 0).label)


def _grounding(models: Sequence[Model], entries: Sequence[Entry], shelf: Shelf) -> Table:
    """Rows are scores of maps, columns are models."""
    several = _of(models, entries)
    rows = []
    for c in dict.fromkeys(e.column for e in entries):
        made = [cell([e for e in entries if e.model is m and e.column == c]) for m in several]
        chance, cells = settle(mark_best(several, made, [e.metric for e in entries if e.column == c], shelf))
        score, shown = score_of_map(c.metric)
        rows.append(((data_name(c.data), score, shown, chance), tuple(cells)))
    rows.sort(key=lambda row: (row[0][0], SCORES.index(row[0][1]) if row[0][1] in SCORES else len(SCORES)))
    columns = tuple((m.label, "", "") for m in several)
    return Table("Grounding", GROUNDING, ("data", "score", "map", "compared with"), columns, tuple(rows))


def score_of_map(metric: str) -> tuple[str, str]:
    """`gradcam_gap_pointing` -> ("pointing", "Grad-CAM, GAP")."""
    found = re.fullmatch(r"(?:baseline_)?([a-z]+)(?:_(?!matched_)(\w+?))?_(pointing|matched_iou|iou)", metric)
    if not found:
        return metric_name(metric), ""
    name, pool, score = found.groups()
    return score.replace("_", " "), MAPS.get(name, name) + (f", {pool.upper()}" if pool else "")


def _vtab(models: Sequence[Model], entries: Sequence[Entry]) -> Table:
    """Rows are the 19 tasks, and means of what was measured in full; columns are models."""
    several = _of(models, entries)
    groups = {group: [name for name, t in vtab.TASKS.items() if t.group == group] for group in vtab.GROUPS}
    rows = []
    for group, tasks in [*groups.items(), ("all", list(vtab.TASKS))] if several else ():
        for task in tasks if group != "all" else ():
            same = [e for e in entries if _task(e) == task]
            chance, cells = settle([cell([e for e in same if e.model is m]) for m in several])
            rows.append(((group, task.replace("_", " "), chance), tuple(cells)))
        means = [_mean(tasks, [e for e in entries if e.model is m]) for m in several]
        rows += [((group, f"mean of {len(tasks)}", ""), tuple(means))] if any(c.lines for c in means) else []
    note = "Linear probe, top-1 accuracy in percent. A mean stands only where every task of it was measured."
    columns = tuple((m.label, "", "") for m in several)
    return Table("VTAB", note, ("group", "task", "compared with"), columns, tuple(rows))


def _task(e: Entry) -> str:
    """The task of VTAB that a number is of, or nothing."""
    task = e.settings.get("task", "")
    return task if task in vtab.TASKS else ""


def _mean(tasks: Sequence[str], entries: Sequence[Entry]) -> Cell:
    """Over tasks, run by run; empty unless a run has exactly one number for each of them, all in one unit.

    Every way of measuring them has its own, told by the evaluators' names; of poolings, as in cells, the model's own.
    """
    own = [e for e in entries if e.own_pool] or entries
    ways: dict[str, list[Entry]] = {}
    for e in own:
        ways.setdefault(e.evaluator.replace(_task(e), "", 1), []).append(e)
    means = {}
    for way, same in ways.items():
        for run in {id(e.run): e.run for e in same}.values():
            of_task = [[e.metric.value for e in same if _task(e) == task and e.run is run] for task in tasks]
            units = {e.metric.unit for e in same if _task(e) in tasks}
            if all(len(v) == 1 for v in of_task) and len(units) == 1:
                key = (" ".join(filter(None, way.split("_"))), *units)
                means.setdefault(key, []).append(statistics.mean(v[0] for v in of_task))
    return Cell(tuple(line(values, unit, way if len(means) > 1 else "") for (way, unit), values in means.items()))


def data_name(data: str) -> str:
    """`imagenet2012` -> `ImageNet`."""
    return paper.NAMES.get(data, data or "data unknown")


def type_name(kind: str) -> str:
    """`linear_probe` -> `Linear probe`."""
    return TYPES.get(kind, readable(kind))


def _ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    names = set(names)
    return [n for n in first if n in names] + sorted(names - set(first))


def _trim(table: Table) -> Table:
    """Without head columns that are empty in every row."""
    keep = [n for n in range(len(table.heads)) if any(row[n] for row, _ in table.rows)]
    rows = tuple((tuple(row[n] for n in keep), cells) for row, cells in table.rows)
    return dataclasses.replace(table, heads=tuple(table.heads[n] for n in keep), rows=rows)


def of_paper() -> list[Mapping[str, Any]]:
    """The paper's own tables: `title`, `note`, `columns`, `rows` of (objective, pooling, scale, values)."""
    out = []
    for title, (columns, values, note) in paper.TABLES.items():
        rows = [(o, p.upper(), paper.SCALES[s], [f"{v:.1f}" for v in v_]) for (o, p, s), v_ in values.items()]
        heads = [f"{data_name(c.data)} {_head(c)}" for c in columns]
        out.append({"title": title, "note": note, "columns": heads, "rows": rows})
    return out
