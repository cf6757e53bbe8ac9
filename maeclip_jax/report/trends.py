"""What several models have in common as curves: accuracy against examples seen, and against different pairs read."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from maeclip_jax.evals.statistics import of_seeds
from maeclip_jax.report.figures import COLOURS, Bounds, Draw, Series, band, compact
from maeclip_jax.report.models import Entry, Model, of_result
from maeclip_jax.report.run import Number, Run, evaluators_of
from maeclip_jax.report.tables import data_name, metric_name, type_name

# What is worth a figure; everything is in the tables.
DRAWN = ("top1", "image_to_text_R@1", "text_to_image_R@1", "accuracy", "miou", "gradcam_pointing")
STYLES = ("-", "--", ":", "-.")
What = tuple[str, str, str, str, str, str]  # evaluator type, data, split, metric, the evaluator's name, unit


def against_examples(models: Sequence[Model]) -> list[tuple[str, Draw]]:
    """(title, drawing) of every metric that some run has at more than one step."""
    found: dict[What, dict[str, list[Series]]] = {}
    bounds: dict[What, dict[str, list[list[Bounds]]]] = {}
    held: dict[What, dict[str, float]] = {}
    for model in models:
        for run in (*model.runs, *model.finetuned):
            mine: dict[What, Series] = {}
            between: dict[What, list[Bounds]] = {}
            for e in (e for one in run.evals for e in _entries(model, run, one)):
                if _drawn(e):
                    mine.setdefault(_what(e), []).append((run.examples(e.step), e.metric.value))
                    between.setdefault(_what(e), []).append(e.metric.interval)
                    held.setdefault(_what(e), {}).update(e.metric.against)
            for what, series in mine.items():
                found.setdefault(what, {}).setdefault(model.label, []).append(series)
                bounds.setdefault(what, {}).setdefault(model.label, []).append(between[what])
    several = {w: lines for w, lines in found.items() if any(len(s) > 1 for ss in lines.values() for s in ss)}
    labels = list(dict.fromkeys(label for lines in several.values() for label in lines))
    return [
        (title, functools.partial(_curves, lines, bounds[w], held.get(w, {}), labels, w[-1]))
        for title, (w, lines) in zip(_titles(several), several.items())
    ]


def against_pairs(entries: Sequence[Entry]) -> list[tuple[str, Draw]]:
    """(title, drawing) of every metric that an objective with one pooling and size has after several numbers of pairs.

    Seeds of a model are one point; two models with as many pairs are two lines, told apart by their scales.
    """
    found: dict[What, dict[str, dict[float, list[Number]]]] = {}
    there = [e for e in entries if _drawn(e) and e.model.pairs and not e.model.note]
    alike: dict[tuple, set[str]] = {}
    for m in (e.model for e in there):
        alike.setdefault((m.objective, m.pool, m.size, m.pairs), set()).add(m.scale)
    by_scale = {key[:3] for key, scales in alike.items() if len(scales) > 1}
    sizes = {e.model.size for e in there}
    for e in there:
        m = e.model
        more = (m.size if len(sizes) > 1 else "", m.scale if (m.objective, m.pool, m.size) in by_scale else "")
        line = " ".join(filter(None, (m.objective, m.pool.upper(), *more)))
        found.setdefault(_what(e), {}).setdefault(line, {}).setdefault(m.pairs, []).append(e.metric)
    several = {w: lines for w, lines in found.items() if any(len(at) > 1 for at in lines.values())}
    return [(title, functools.partial(_by_pairs, lines, w[-1])) for title, (w, lines) in
            zip(_titles(several), several.items())]  # fmt: skip


def _entries(model: Model, run: Run, one: Mapping) -> list[Entry]:
    """The numbers of one evals/<step>.json."""
    return [e for name in evaluators_of(one) for e in of_result(model, run, run.result(one, name))]


def _drawn(e: Entry) -> bool:
    wanted = e.metric.own or (e.metric.name in DRAWN and e.metric.reference is not None)
    return wanted and math.isfinite(e.metric.value) and e.own_pool


def _what(e: Entry) -> What:
    return (e.type, e.data, e.split, e.metric.name, e.evaluator, e.metric.unit)


def _titles(several: Sequence[What]) -> list[str]:
    """What each is, with the evaluator's name where only that tells it from another."""
    plain = [
        f"{type_name(kind)}, {data_name(data)}{' ' + split if split else ''}: {metric_name(metric)}"
        for kind, data, split, metric, *_ in several
    ]
    return [f"{title} ({what[4]})" if plain.count(title) > 1 else title for title, what in zip(plain, several)]


def _lines(ax, draw: Callable[[str, dict], None], labels: Sequence[str], unit: str) -> None:
    for n, label in enumerate(labels):
        draw(label, {"color": COLOURS[n % len(COLOURS)], "linestyle": STYLES[n // len(COLOURS) % len(STYLES)]})
    if unit == "%":
        ax.set_ylim(0, 1.06 * ax.dataLim.y1 or 1)
    ax.set_ylabel(unit)


def _curves(
    lines: Mapping[str, list[Series]],
    bounds: Mapping[str, list[list[Bounds]]],
    held: Mapping[str, float],
    labels: Sequence[str],
    unit: str,
    ax,
) -> None:
    """A colour is the same model in every figure; seeds share it."""

    def draw(label: str, style: dict) -> None:
        for n, series in enumerate(lines.get(label, ())):
            band(ax, series, bounds[label][n], style["color"])
            ax.plot(*zip(*series), marker="o", markersize=3.5, linewidth=1.6, label=None if n else label, **style)

    _lines(ax, draw, labels, unit)
    for kind, value in held.items():
        ax.axhline(value, color="#888888", linestyle=(0, (4, 3)), linewidth=1.1, label=kind)


def _by_pairs(lines: Mapping[str, Mapping[float, list[Number]]], unit: str, ax) -> None:
    def draw(label: str, style: dict) -> None:
        at = sorted(lines[label].items())
        mean = [statistics.fmean(m.value for m in several) for _, several in at]
        ax.plot([n for n, _ in at], mean, marker="o", markersize=4, linewidth=1.6, label=label, **style)
        for n, several in at:
            between = of_seeds([m.value for m in several]) or several[0].interval
            if between and all(map(math.isfinite, between)):
                ax.plot([n, n], between, linewidth=1.2, color=style["color"])

    _lines(ax, draw, list(lines), unit)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda x, _: compact(x))
    ax.set_xlabel("different pairs read")
