"""The two plans at B/16 that the page on studies shows follow from the kept rows of the pre-flight."""

import pytest

from maeclip_jax.preflight import shipped
from maeclip_jax.study import power
from tests.golden import ROOT
from tests.study import kept

SLICE, CHIPS, BATCH, RUNS = "v6e-256", 256, 16384, 18  # three sizes, two pools, three seeds
PRICE = 2.7
EXAMPLES = {"CC12M": 340e6, "DataComp": 2.8e9}
SIZES = {"CC12M": ("1M", "3.5M", "11M"), "DataComp": ("12.8M", "128M", "1.28B")}


def test_the_effects_that_would_be_found_are_those_of_the_sizes_in_the_commands():
    shown, found = " ".join(kept.PAGE.read_text().split()), []
    for sizes in SIZES.values():
        assert f"--sizes={','.join(sizes)} --arms=clip,mae_clip --pool=gap,max --seeds=3" in shown
        counts = [float(size[:-1]) * {"M": 1e6, "B": 1e9}[size[-1]] for size in sizes]
        found.append(power.table(counts, (1.0,), 3, 0.5, 2))
    assert {f"{row['mean']:.2f}" for row in found} == {"0.63"} and "a mean gain of 0.63 points" in shown
    slopes = [row["slope"] for row in found]
    assert f"a slope of {slopes[0]:.1f} points a decade in the first and of {slopes[1]:.2f} in the second" in shown


@pytest.fixture(scope="module")
def of_arm():
    """{arm: its row}."""
    rows = {arm: shipped.Row(f"experiments/{arm}.py:scale=low,size=B/16", SLICE, 1) for arm in ("clip", "mae_clip")}
    return {arm: shipped.read(ROOT / "results" / "preflight" / row.file) for arm, row in rows.items()}


def plan(of_arm, examples: float) -> list[tuple[str, str, int, dict]]:
    """(arm, matched by, steps, its row)."""
    steps = round(examples / BATCH)
    longer = round(steps * of_arm["mae_clip"]["model FLOPs"] / of_arm["clip"]["model FLOPs"])
    cells = [("CLIP", "examples", steps, of_arm["clip"]), ("CLIP", "FLOPs", longer, of_arm["clip"])]
    return [*cells, ("MAE-CLIP", "both", steps, of_arm["mae_clip"])]


@pytest.mark.parametrize("data", EXAMPLES)
def test_the_page_has_the_plan(data, of_arm):
    shown, cells = " ".join(kept.PAGE.read_text().split()), plan(of_arm, EXAMPLES[data])

    def hours(which: str = "") -> list[float]:
        return [RUNS * steps * row[f"step seconds{which}"] / 3600 for *_, steps, row in cells]

    for (name, by, steps, row), of_all in zip(cells, hours()):
        mantissa, power = f"{row['model FLOPs'] * steps:.2e}".split("e+")
        line = f"| {data} | {name} | {by} | {RUNS} | {steps:,} | {mantissa}e{int(power)} | {of_all:.2f} |"
        assert line in shown, line
    whole = sum(hours())
    said = f"{data} {whole:.1f} hours, {whole * CHIPS:,.0f} chip-hours and {whole * CHIPS * PRICE:,.0f} dollars"
    assert said in shown, said
    low, high = (round(sum(hours(which)) * CHIPS * PRICE, -3) for which in (" low", " high"))
    assert f"{low:,.0f} to {high:,.0f}" in shown, (low, high)
