"""The figure of a study: the gain of an arm over the baseline against log N, a panel for each arm and diversity."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from maeclip_jax.report.figures import compact

COLOURS = ("#3f6fd8", "#e0662f", "#a25ddc", "#2e9e9e")  # of pools
STYLES = ("-", "--")  # of matchings


def panels(numbers: Mapping[str, Any]) -> dict[str, bytes]:
    """{name: PNG}, all panels with one y axis. A line without a band has no interval."""
    import logging

    import matplotlib

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    rows = numbers["lines"]
    pools, matches = (list(dict.fromkeys(row[k] for row in rows)) for k in ("pool", "match"))
    sizes = sorted({point["size"] for row in rows for point in row["points"]})
    ends = [v for row in rows for point in row["points"] for v in (point["value"], *(point["interval"] or ()))]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin, made = 0.06 * (high - low or 1), {}
    style = {"font.family": ["DejaVu Sans"], "font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left",
             "axes.linewidth": 0.7}  # fmt: skip
    for arm, share in dict.fromkeys((row["arm"], row["diversity"]) for row in rows):
        with plt.rc_context(style):
            drawn, ax = plt.subplots(figsize=(4.6, 4.0), layout="constrained")
            for row in [r for r in rows if (r["arm"], r["diversity"]) == (arm, share)]:
                _line(ax, row, COLOURS[pools.index(row["pool"]) % 4], STYLES[matches.index(row["match"]) % 2],
                      0.03 * (pools.index(row["pool"]) - 0.5 * (len(pools) - 1)))  # fmt: skip
            ax.axhline(0, color="#888888", linewidth=0.9)
            ax.set(title=f"{arm} minus {numbers['baseline']}, diversity {share:g}", xlabel="unique pairs", xscale="log",
                   ylabel=f"gain in {numbers['outcome']}, points", ylim=(low - margin, high + margin))  # fmt: skip
            ax.set_xticks(sizes, [compact(size) for size in sizes])
            ax.set_xticks([], minor=True)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", alpha=0.25, linewidth=0.7)
            drawn.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, labelcolor="linecolor")
            out = io.BytesIO()
            drawn.savefig(out, format="png", dpi=160, facecolor="white", metadata={"Software": None})
            plt.close(drawn)
        made[f"{arm}-d{share:g}"] = out.getvalue()
    return made


def _line(ax, row: Mapping, colour: str, style: str, shift: float) -> None:
    x, y, low, high = zip(*row["line"])
    if len(x) > 1:
        ax.plot(x, y, color=colour, linestyle=style, linewidth=1.6)
        if low[0] is not None:
            ax.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    at = [point["size"] * 10**shift for point in row["points"]]
    value = [point["value"] for point in row["points"]]
    label = f"{row['pool'].upper()}, matched by {row['match']}"
    if all(point["interval"] for point in row["points"]):
        error = [[abs(point["interval"][i] - point["value"]) for point in row["points"]] for i in (0, 1)]
        ax.errorbar(at, value, error, color=colour, fmt="o" if style == "-" else "s", markersize=4.5, linewidth=1,
                    linestyle="none", label=label)  # fmt: skip
    else:
        ax.plot(at, value, color=colour, marker="o" if style == "-" else "s", linestyle="none", label=label)
