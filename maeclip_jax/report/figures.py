"""Curves of a run as SVG (for light and dark pages) or PNG. matplotlib is imported when something is drawn."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maeclip_jax.report.run import Run, readable

COLOURS = ("#3f6fd8", "#e0662f", "#2e9e6b", "#a25ddc", "#9a7b4f")
INK = {"light": "#3a3f47", "dark": "#c3c8d0"}
LOSSES = {
    "loss": "total loss",
    "contrast": "contrastive loss (nats)",
    "image": "image reconstruction (MSE of targets)",
    "text": "text reconstruction (nats per word)",
}
MOST_POINTS = 600  # of a curve; more are thinned out
Series = list[tuple[float, float]]
Bounds = tuple[float, float] | None  # of a point's interval
Draw = Callable[[Any], None]  # puts lines on a matplotlib axes


def losses(run: Run) -> list[tuple[str, Draw]]:
    """(title, drawing) of training and validation losses against examples seen, one for each part of the loss."""
    out: list[tuple[str, Draw]] = []
    drawn: list[Series] = []
    for name, title in LOSSES.items():
        train = run.series(f"train/{name}")
        if not train or train in drawn:
            continue  # an objective's only part is its total
        drawn.append(train)
        validation: dict[str, Series] = {}
        for step, m in run.history():
            if m.name == name and math.isfinite(m.value):
                validation.setdefault(m.evaluator, []).append((run.examples(step), m.value))
        batch = run.costs.get("batch_size") or run.find("batch_size")
        contrast = name == "contrast" and run.find("model.loss") in (None, "softmax")
        out.append((title, functools.partial(_loss, train, validation, batch if contrast else None)))
    return out


def _loss(train: Series, validation: dict[str, Series], batch: int | None, ax) -> None:
    x, y = thin(train)
    if len(train) > 40:
        ax.plot(x, y, color=COLOURS[0], linewidth=0.8, alpha=0.35)
        ax.plot(*thin(smooth(train)), color=COLOURS[0], linewidth=1.8, label="training (smoothed)")
    else:
        ax.plot(x, y, color=COLOURS[0], linewidth=1.8, marker="." if len(train) < 12 else None, label="training")
    for i, (evaluator, points) in enumerate(validation.items(), 1):
        style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.4, "marker": "o", "markersize": 4}
        ax.plot(*zip(*points), label=f"validation ({evaluator})", **style)
    if batch:
        ax.axhline(
            math.log(batch), color="#888888", linestyle="--", linewidth=1.2, label=f"chance in training, ln {batch}"
        )


def accuracies(run: Run) -> list[tuple[str, Draw]]:
    """(title, drawing) against examples seen, of what has something to compare with, and of a person's own.

    What was measured once only is left to the tables, and so are grounding scores other than pointing.
    """
    panels: dict[tuple[str, str, str], dict[str, tuple[str, Series, Series, list[Bounds]]]] = {}
    for step, m in run.history():
        if m.shown and math.isfinite(m.value):
            if not m.own and re.search("_(matched_)?iou$", m.name):
                continue
            way = re.sub(r"_?R@\d+$|top\d$|mean_per_class$|\d+_shot$|.*_(?=pointing$)", "", m.name)
            way = way if m.unit == "%" else m.label
            group = panels.setdefault((m.evaluator, way, m.unit), {})
            label = m.name.rsplit("_", 1)[1] if "_R@" in m.name else m.label
            _, values, chance, bounds = group.setdefault(label, (m.kind, [], [], []))
            values.append((run.examples(step), m.value))
            bounds.append(m.interval)
            if m.reference is not None:
                chance.append((run.examples(step), m.reference))
    panels = {k: lines for k, lines in panels.items() if any(len(values) > 1 for _, values, *_ in lines.values())}
    out = []
    for (evaluator, way, unit), lines in sorted(panels.items(), key=lambda p: next(iter(p[1].values()))[0] != "chance"):
        title = readable(evaluator) + (f": {way.replace('_to_', ' → ').replace('_', ' ')}" if way else "")
        out.append((title, functools.partial(_accuracy, lines, unit)))
    return out


def band(ax, series: Series, bounds: Sequence[Bounds], colour: str) -> None:
    """Shades the intervals of a curve's points, those that have one."""
    known = [(x, *two) for (x, _), two in zip(series, bounds) if two is not None and all(map(math.isfinite, two))]
    if known:
        x, low, high = zip(*known)
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _accuracy(lines: dict[str, tuple[str, Series, Series, list[Bounds]]], unit: str, ax) -> None:
    for i, (label, (kind, values, chance, bounds)) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        band(ax, values, bounds, colour)
        ax.plot(*zip(*values), color=colour, linewidth=1.8, marker="o", markersize=4, label=label)
        # One point draws no line, so it gets a dash of its own.
        style = {"color": colour, "linestyle": "--", "linewidth": 1.2, "marker": "_" if len(chance) == 1 else None}
        if chance:
            ax.plot(*zip(*chance), alpha=0.8, label=kind if i == len(lines) - 1 else None, **style)
    if unit == "%" or all(chance and min(y for _, y in values) >= 0 for _, values, chance, _ in lines.values()):
        ax.set_ylim(0, None)
    ax.set_ylabel(unit)


def _figure(plt, title: str, draw: Draw):
    figure, ax = plt.subplots(figsize=(5.2, 3.3), layout="constrained")
    ax.set_title(title)
    ax.set_xlabel("examples seen")
    ax.xaxis.set_major_formatter(lambda x, _: compact(x))
    draw(ax)  # may have another x axis
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25, linewidth=0.7)
    ax.margins(x=0.03)
    _legend(figure, *ax.get_legend_handles_labels())
    return figure


def _legend(figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the axes, where it hides no curve and no band, in as many columns as fit."""
    if handles:
        longest = max(map(len, labels))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), 78 // (longest + 6))),
            frameon=False, fontsize=8.5, labelcolor="linecolor", handlelength=1.6,
        )  # fmt: skip


def render(title: str, draw: Draw, kind: str, theme: str = "light") -> bytes:
    """The bytes of a figure; `kind` svg (transparent) or png (on white)."""
    import logging

    import matplotlib

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it names every font that is not there
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    ink = INK[theme]
    style = {
        "font.family": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
        "font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold",
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "axes.titlecolor": ink,
        "xtick.color": ink, "ytick.color": ink, "axes.linewidth": 0.7, "axes.facecolor": "none",
        "svg.hashsalt": "maeclip", "svg.fonttype": "path",
    }  # fmt: skip
    with plt.rc_context(style):
        figure = _figure(plt, title, draw)
        out = io.BytesIO()
        if kind == "svg":
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(out, format="png", dpi=160, facecolor="white")
        plt.close(figure)
    return out.getvalue()


def thin(series: Series) -> tuple[Sequence[float], Sequence[float]]:
    """(x, y) of at most MOST_POINTS points, first and last among them."""
    if len(series) > MOST_POINTS:
        keep = np.unique(np.linspace(0, len(series) - 1, MOST_POINTS).astype(int))
        series = [series[i] for i in keep]
    x, y = zip(*series)
    return x, y


def smooth(series: Series) -> Series:
    """A running mean over a fortieth of the curve, centred; narrower towards the ends, so that it does not lag."""
    y = np.array([v for _, v in series])
    half = max(1, len(y) // 80)
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    width = np.minimum(np.minimum(at, len(y) - 1 - at), half)
    mean = (total[at + width + 1] - total[at - width]) / (2 * width + 1)
    return [(x, float(m)) for (x, _), m in zip(series, mean)]


def compact(value: float) -> str:
    """`153600` -> `154k`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
