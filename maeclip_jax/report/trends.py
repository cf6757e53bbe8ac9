"""What several models have in common as curves: accuracy against examples seen, and against the scale of the data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

from maeclip_jax.report import paper
from maeclip_jax.report.figures import COLOURS, Draw, Series
from maeclip_jax.report.models import Entry, Model, of_result
from maeclip_jax.report.run import Run, evaluators_of
from maeclip_jax.report.tables import data_name, metric_name, type_name

# What is worth a figure; everything is in the tables.
DRAWN = ("top1", "image_to_text_R@1", "text_to_image_R@1", "accuracy", "miou", "gradcam_pointing")
STYLES = ("-", "--", ":", "-.")
What = tuple[str, str, str, str, str]  # evaluator type, data, split, metric, unit


def against_examples(models: Sequence[Model]) -> list[tuple[str, Draw]]:
    """(title, drawing) of every metric that some run has at more than one step."""
    found: dict[What, dict[str, list[Series]]] = {}
    held: dict[What, dict[str, float]] = {}
    for model in models:
        for run in (*model.runs, *model.finetuned):
            mine: dict[What, Series] = {}
            for e in (e for one in run.evals for e in _entries(model, run, one)):
                if _drawn(e):
                    mine.setdefault(_what(e), []).append((run.examples(e.step), e.metric.value))
                    held.setdefault(_what(e), {}).update(e.metric.against)
            for what, series in mine.items():
                found.setdefault(what, {}).setdefault(model.label, []).append(series)
    several = {w: lines for w, lines in found.items() if any(len(s) > 1 for ss in lines.values() for s in ss)}
    labels = list(dict.fromkeys(label for lines in several.values() for label in lines))
    return [
        (_title(w), functools.partial(_curves, lines, held.get(w, {}), labels, w[-1])) for w, lines in several.items()
    ]


def against_scale(entries: Sequence[Entry]) -> list[tuple[str, Draw]]:
    """(title, drawing) of every metric that an objective with one pooling has at more than one scale."""
    found: dict[What, dict[str, dict[str, list[float]]]] = {}
    for e in entries:
        if _drawn(e) and e.model.scale and not e.model.note:
            line = " ".join(filter(None, (e.model.objective, e.model.pool.upper())))
            at = found.setdefault(_what(e), {}).setdefault(line, {})
            at.setdefault(e.model.scale, []).append(e.metric.value)
    several = {w: lines for w, lines in found.items() if any(len(at) > 1 for at in lines.values())}
    scales = {w: _scales({s for at in lines.values() for s in at}) for w, lines in several.items()}
    return [(_title(w), functools.partial(_by_scale, found[w], s, w[-1])) for w, s in scales.items()]


def _entries(model: Model, run: Run, one: Mapping) -> list[Entry]:
    """The numbers of one evals/<step>.json."""
    return [e for name in evaluators_of(one) for e in of_result(model, run, run.result(one, name))]


def _drawn(e: Entry) -> bool:
    wanted = e.metric.own or (e.metric.name in DRAWN and e.metric.reference is not None)
    return wanted and math.isfinite(e.metric.value) and e.own_pool


def _what(e: Entry) -> What:
    return (e.type, e.data, e.split, e.metric.name, e.metric.unit)


def _title(what: What) -> str:
    kind, data, split, metric, _ = what
    return f"{type_name(kind)}, {data_name(data)}{' ' + split if split else ''}: {metric_name(metric)}"


def _scales(names: set[str]) -> list[str]:
    """Small to large: ours in the order of their names, then those of the paper."""
    return sorted(names - set(paper.SCALES)) + [s for s in paper.SCALES if s in names]


def _lines(ax, draw: Callable[[str, dict], None], labels: Sequence[str], unit: str) -> None:
    for n, label in enumerate(labels):
        draw(label, {"color": COLOURS[n % len(COLOURS)], "linestyle": STYLES[n // len(COLOURS) % len(STYLES)]})
    if unit == "%":
        ax.set_ylim(0, 1.06 * ax.dataLim.y1 or 1)
    ax.set_ylabel(unit)


def _curves(lines: Mapping[str, list[Series]], held: Mapping[str, float], labels: Sequence[str], unit: str, ax) -> None:
    """A colour is the same model in every figure; seeds share it."""

    def draw(label: str, style: dict) -> None:
        for n, series in enumerate(lines.get(label, ())):
            ax.plot(*zip(*series), marker="o", markersize=3.5, linewidth=1.6, label=None if n else label, **style)

    _lines(ax, draw, labels, unit)
    for kind, value in held.items():
        ax.axhline(value, color="#888888", linestyle=(0, (4, 3)), linewidth=1.1, label=kind)


def _by_scale(lines: Mapping[str, Mapping[str, list[float]]], scales: Sequence[str], unit: str, ax) -> None:
    def draw(label: str, style: dict) -> None:
        at = [(n, lines[label][s]) for n, s in enumerate(scales) if s in lines[label]]
        mean = [sum(values) / len(values) for _, values in at]
        ax.plot([n for n, _ in at], mean, marker="o", markersize=4, linewidth=1.6, label=label, **style)

    _lines(ax, draw, list(lines), unit)
    ax.set_xticks(range(len(scales)), [f"{s}\n{paper.SCALES[s]}" if s in paper.SCALES else s for s in scales])
    ax.set_xlim(-0.3, len(scales) - 0.7)
    ax.set_xlabel("scale of pretraining")
