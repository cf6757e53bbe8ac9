"""The kept results of a study, and how the page on studies writes an effect."""

from maeclip_jax.study import analysis, plan, results
from tests.golden import ROOT

PAGE = ROOT / "docs" / "study.md"


def study(name):
    folder = ROOT / "results" / name
    made = plan.read(folder)
    return analysis.Study(made, *results.read(folder, made))


def span(row):
    """`-29.9 (-33.5 to -26.3)`."""
    return f"{row['value']:.1f} ({row['interval'][0]:.1f} to {row['interval'][1]:.1f})"
