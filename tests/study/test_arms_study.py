"""What the page on studies says of SILC and TIPS is what the kept results say, analysed anew."""

import pytest

from maeclip_jax.study import analysis, page
from tests.study import kept
from tests.study.kept import span

NAMES = {"clip": "CLIP", "mae_clip": "MAE-CLIP", "silc": "SILC", "tips": "TIPS"}


@pytest.fixture(scope="module")
def study():
    return kept.study("study-arms-1")


def rows(study):
    """The rows of the page's table: means over seeds, and gains over two arms."""
    numbers = analysis.analyse(study)
    levels = {
        cell["arm"]: page.level(cell)
        for row in numbers["measures"]["rows"]
        for cell in row["cells"]
        if row["metric"] == numbers["outcome"]
    }
    over = {"clip": {row["arm"]: span(row) for row in numbers["declared"]}}
    over["mae_clip"] = {
        row["what"].split()[0]: span(row) for row in numbers["others"] if row["what"].endswith("minus mae_clip: mean")
    }
    found = []
    for arm, name in NAMES.items():
        (steps,) = {r.run.steps for r in study.results if r.run.arm == arm}
        cells = [name, f"{steps:,}", levels[arm], *(over[base].get(arm, "-") for base in ("clip", "mae_clip"))]
        found.append(f"| {' | '.join(cells)} |")
    return found


def test_every_run_is_there(study):
    assert not study.missing and len(study.results) == len(study.plan["runs"]) == 12


def test_the_page_says_what_the_results_say(study):
    shown = kept.PAGE.read_text()
    for row in rows(study):
        assert row in shown, row
