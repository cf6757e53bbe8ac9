"""Draws pooling.png from the table of the drawn scenes in LOG.md: `python docs/pictures/pooling.py`."""

from __future__ import annotations

from pathlib import Path

from maeclip_jax.report import figures

HERE = Path(__file__).parent
MODELS = ("CLIP GAP", "CLIP MAX", "MAE-CLIP GAP", "MAE-CLIP MAX")
ROWS = {
    "zero-shot top-1": "zero-shot top-1, 640 pictures",
    "pointing game": "pointing game, similarity map, 500 pictures",
}


def row(start: str) -> list[float]:
    """The four models' percentages and the chance level, from the row of LOG.md that starts so."""
    lines = (HERE.parent.parent / "LOG.md").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"| {start}")]
    return [float(cell.split(";")[0]) for cell in found.strip("|").split("|")[1:]]


def draw(ax) -> None:
    """Bars of the four models in two groups, with the chance level as a dashed line."""
    for group, start in enumerate(ROWS.values()):
        *values, chance = row(start)
        for i, value in enumerate(values):
            bar = ax.bar(
                group + 0.2 * (i - 1.5), value, 0.18, color=figures.COLOURS[i], label=MODELS[i] if not group else None
            )
            ax.bar_label(bar, fmt="%.1f", fontsize=7)
        ax.plot(
            [group - 0.45, group + 0.45], [chance, chance], "k--", linewidth=0.9, label="chance" if not group else None
        )
    ax.set_xticks(range(len(ROWS)), list(ROWS))
    ax.set_xlabel("")
    ax.set_ylim(0, 100)
    ax.set_ylabel("percent")
    ax.legend(fontsize=7)


if __name__ == "__main__":
    picture = figures.render("Pooling on drawn scenes (one seed each)", draw, "png")
    (HERE / "pooling.png").write_bytes(picture)
