"""Draws study.png from the first study's results: `python docs/pictures/study.py`."""

import io
from pathlib import Path

from PIL import Image

from maeclip_jax.study import analysis, figure, plan, results

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / "results" / "study-scenes-1"
WIDE = 1400

if __name__ == "__main__":
    made = plan.read(FOLDER)
    panels = figure.panels(analysis.analyse(analysis.Study(made, *results.read(FOLDER, made))))
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in panels.values()]
    beside = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    for n, picture in enumerate(pictures):
        beside.paste(picture, (sum(p.width for p in pictures[:n]), 0))
    beside.resize((WIDE, round(beside.height * WIDE / beside.width)), Image.LANCZOS).save(HERE / "study.png")
