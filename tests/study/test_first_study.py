"""README's answer is what the kept results of the first study say, analysed anew."""

import re
import shutil
from pathlib import Path

import pytest

from maeclip_jax.study import analysis, page, plan, results

HERE = Path(__file__).parents[2]
FOLDER = HERE / "results" / "study-scenes-1"
ROWS = {
    "zero_shot_seen/top1": "zero-shot top-1, combinations that training shows",
    "zero_shot_unseen/top1": "zero-shot top-1, combinations that it never shows",
    "linear_probe/top1": "linear probe",
    "retrieval/image_to_text_R@1": "retrieval R@1, image to text",
    "retrieval/text_to_image_R@1": "retrieval R@1, text to image",
    "grounding/similarity_pointing": "pointing game, similarity map",
    "grounding/gradcam_pointing": "pointing game, Grad-CAM",
    "segmentation/miou": "zero-shot segmentation, mIoU",
}


@pytest.fixture(scope="module")
def numbers():
    made = plan.read(FOLDER)
    return analysis.analyse(analysis.Study(made, *results.read(FOLDER, made)))


@pytest.fixture(scope="module")
def readme():
    return " ".join((HERE / "README.md").read_text().split())


def span(row, sign=1):
    """`11.5 points (95 % interval 7.5 to 15.4)`."""
    low, high = sorted(sign * x for x in row["interval"])
    return f"{sign * row['value']:.1f} points (95 % interval {low:.1f} to {high:.1f})"


def besides(numbers, what, pool, match):
    (row,) = (r for r in numbers["others"] if (r["what"], r["pool"], r["match"]) == (what, pool, match))
    return row


def sentences(numbers):
    """What README says in numbers."""
    mean, slope = numbers["declared"]
    examples = [besides(numbers, "mae_clip minus clip: mean", pool, "examples") for pool in ("max", "gap")]
    pools = [besides(numbers, f"max minus gap of {arm}: mean", "both", "examples") for arm in ("clip", "mae_clip")]
    pointing = "grounding/gradcam_pointing: mean"
    shift = besides(numbers, f"max minus gap of clip, {pointing}", "both", "examples")
    mae = [besides(numbers, f"mae_clip minus clip, {pointing}", pool, "flops") for pool in ("gap", "max")]
    return [
        f"{numbers['runs']['there']} of {numbers['runs']['planned']} runs",
        f"zero-shot top-1 of MAE-CLIP lies {span(mean, -1)} below that of CLIP",
        f"falls by {span(slope, -1)} with every tenfold of pairs",
        f"under MAX {span(examples[0])} and under GAP {span(examples[1])}",
        f"for CLIP by {span(pools[0])} and for MAE-CLIP by {span(pools[1])}",
        f"by {span(shift)}, where MAE changes it by {span(mae[0])} under GAP and by {span(mae[1])} under MAX",
    ]


def rows(numbers):
    """The rows of README's table: means over seeds with Student's interval."""
    found = {row["metric"]: row["cells"] for row in numbers["measures"]["rows"]}
    return [f"| {name} | {' | '.join(page.level(cell) for cell in found[metric])} |" for metric, name in ROWS.items()]


def test_readme_says_what_the_results_say(numbers, readme):
    for text in [*sentences(numbers), *rows(numbers)]:
        assert text in readme, text


def test_the_results_alone_give_the_page(numbers, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "study")
    shown = page.write(tmp_path / "study").read_text()
    assert f"{numbers['runs']['there']} of {numbers['runs']['planned']} runs are there" in shown
    assert re.search(r"mae_clip minus clip: mean.*?-\d+\.\d\d \(", shown)
