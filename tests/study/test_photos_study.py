"""What the page on studies says of photographs is what the kept results say, analysed anew."""

import pytest

from maeclip_jax.evals.statistics import of_seeds
from maeclip_jax.study import analysis, page
from tests.study import kept
from tests.study.kept import span


@pytest.fixture(scope="module")
def study():
    return kept.study("study-photos-1")


@pytest.fixture(scope="module")
def numbers(study):
    return analysis.analyse(study)


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


def rows(study, numbers):
    """The rows of the page's table: image-to-text R@5 of each size, means over seeds, and the gains there."""

    def level(arm, match, size):
        values = [r.value for key, r in study.runs(arm, match, "max").items() if key[0] == size]
        return page.level({"mean": sum(values) / len(values), "interval": of_seeds(values)})

    gain = {(line["match"], p["size"]): span(p) for line in numbers["lines"] for p in line["points"]}
    return [
        f"| {size:,} | {level('clip', 'examples', size)} | {level('clip', 'flops', size)} | "
        f"{level('mae_clip', 'flops', size)} | {gain['examples', size]} | {gain['flops', size]} |"
        for size in study.axes["sizes"]
    ]


def test_the_page_says_what_the_results_say(study, numbers):
    shown = kept.PAGE.read_text()
    assert not numbers["runs"]["missing"]
    for row in rows(study, numbers):
        assert row in shown, row
    for text in sentences(numbers):
        assert text in " ".join(shown.split()), text
