"""What the page on studies says of photographs is what the kept results say, analysed anew."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from maeclip_jax.study import analysis, plan, results

HERE = Path(__file__).parents[2]
FOLDER = HERE / "results" / "study-photos-1"


@pytest.fixture(scope="module")
def numbers():
    made = plan.read(FOLDER)
    return analysis.analyse(analysis.Study(made, *results.read(FOLDER, made)))


def span(row):
    return f"{row['value']:.1f} ({row['interval'][0]:.1f} to {row['interval'][1]:.1f})"


def level(row):
    """Mean and half of Student's interval over seeds."""
    half = stats.t.ppf(0.975, row["n"] - 1) * row["sd"] / np.sqrt(row["n"])
    return f"{row['mean']:.1f} ± {half:.1f}"


def sentences(numbers):
    """What the page says in numbers."""
    mean, slope = numbers["declared"]
    (examples,) = (r for r in numbers["others"] if (r["what"], r["match"]) == ("mae_clip minus clip: mean", "examples"))
    return [
        f"{numbers['runs']['there']} of {numbers['runs']['planned']} runs",
        f"a mean gain of {span(mean)} points and a slope of {span(slope)} points a decade",
        f"with as many examples a mean gain of {span(examples)}",
        f"differ by chance by {numbers['spread']['measured']:.1f} points",
    ]


def rows(numbers):
    """The rows of the page's table: image-to-text R@5 of each size, and the gains there."""
    at = {(row["arm"], row["matched"], row["size"]): level(row) for row in numbers["levels"]}
    gain = {(line["match"], p["size"]): span(p) for line in numbers["lines"] for p in line["points"]}
    return [
        f"| {size:,} | {at['clip', 'examples', size]} | {at['clip', 'flops', size]} | "
        f"{at['mae_clip', 'examples+flops', size]} | {gain['examples', size]} | {gain['flops', size]} |"
        for size in sorted({row["size"] for row in numbers["levels"]})
    ]


def test_the_page_says_what_the_results_say(numbers):
    shown = (HERE / "docs" / "study.md").read_text()
    assert not numbers["runs"]["missing"]
    for row in rows(numbers):
        assert row in shown, row
    for text in sentences(numbers):
        assert text in " ".join(shown.split()), text
