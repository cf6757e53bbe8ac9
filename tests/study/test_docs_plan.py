"""The two plans at B/16 that the page on studies shows follow from the kept rows of the pre-flight."""

import math

import pytest

from maeclip_jax.preflight import shipped
from tests.golden import ROOT
from tests.study import kept

SLICE, CHIPS, BATCH, RUNS = "v6e-256", 256, 16384, 18  # three sizes, two pools, three seeds
PRICE, BAND = 2.7, (1.2, 1.7)
EXAMPLES = {"CC12M": 340e6, "DataComp": 2.8e9}


@pytest.fixture(scope="module")
def of_arm():
    """{arm: (FLOPs of a step, seconds of a step)} by the compiler's estimate."""
    rows = {arm: shipped.Row(f"experiments/{arm}.py:scale=low,size=B/16", SLICE, 1) for arm in ("clip", "mae_clip")}
    read = {arm: shipped.read(ROOT / "results" / "preflight" / row.file) for arm, row in rows.items()}
    return {arm: (row["model FLOPs"], row["step seconds"]) for arm, row in read.items()}


def plan(of_arm, examples: float) -> list[tuple[str, str, int, float, float]]:
    """(arm, matched by, steps, FLOPs of a run, hours of all runs)."""
    steps = round(examples / BATCH)
    longer = round(steps * of_arm["mae_clip"][0] / of_arm["clip"][0])
    cells = [("CLIP", "examples", "clip", steps), ("CLIP", "FLOPs", "clip", longer)]
    cells.append(("MAE-CLIP", "both", "mae_clip", steps))
    return [(name, by, n, of_arm[arm][0] * n, RUNS * n * of_arm[arm][1] / 3600) for name, by, arm, n in cells]


@pytest.mark.parametrize("data", EXAMPLES)
def test_the_page_has_the_plan(data, of_arm):
    shown, cells = " ".join(kept.PAGE.read_text().split()), plan(of_arm, EXAMPLES[data])
    for name, by, steps, flops, hours in cells:
        mantissa, power = f"{flops:.2e}".split("e+")
        row = f"| {data} | {name} | {by} | {RUNS} | {steps:,} | {mantissa}e{int(power)} | {hours:.2f} |"
        assert row in shown, row
    hours = sum(cell[-1] for cell in cells)
    dollars = hours * CHIPS * PRICE
    said = f"{data} {hours:.1f} hours, {hours * CHIPS:,.0f} chip-hours and {dollars:,.0f} dollars"
    assert said in shown, said
    low, high = (round(times * dollars, -3) for times in BAND)
    assert f"{low:,.0f} to {high:,.0f}" in shown and math.isfinite(high)
