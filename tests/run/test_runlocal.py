"""Every experiment file trains, saves, evaluates and is done: `runlocal` on 8 fake devices, end to end.

Its steps transfer nothing between host and devices but what they must (tests/run/transfers.py).
"""

import json

import pytest

from maeclip_jax import main
from tests import long
from tests.run.transfers import guarded  # noqa: F401

EXPERIMENTS = {
    "mae:runlocal": {"val/image", "reconstruction/masked_mse"},
    "m3ae:runlocal": {"val/image", "val/text", "reconstruction/token_accuracy"},
    "clip:runlocal": {"val/contrast", "retrieval/image_to_text_R@1"},
    "mae_clip:runlocal,pool=max": {"val/contrast", "val/image", "val/text", "reconstruction/masked_mse"},
    "slip:runlocal,pool=max": {"val/contrast", "val/simclr", "val/view_top1", "retrieval/image_to_text_R@1"},
    "silc:runlocal,pool=map": {"val/contrast", "retrieval/image_to_text_R@1"},
    "tips:runlocal,pool=cls,loss=sigmoid": {"val/contrast", "retrieval/image_to_text_R@1"},
    "flip:runlocal,pool=logsumexp(0.5)": {"val/contrast", "retrieval/text_to_image_R@10"},
    "siglip:runlocal": {"val/logit_bias", "retrieval/text_to_image_R@1"},
    "vqa:runlocal": {"vqa/accuracy", "vqa/answerable", "val/accuracy"},
    "vqa:runlocal,of=m3ae": {"vqa/accuracy"},
    "mae_clip:runlocal,decode=image,pool=topk(2)": {"val/image", "retrieval/image_to_text_R@1"},
}

LONG = ("vqa:runlocal,of=m3ae", "mae_clip:runlocal,decode=image,pool=topk(2)")  # a second run of their objectives


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("experiment", long.marked(EXPERIMENTS, LONG))
def test_two_steps_end_to_end(experiment, tmp_path):
    name, _, argument = experiment.partition(":")
    argv = [f"--config=experiments/{name}.py:{argument}", f"--workdir={tmp_path}", "--cache="]
    assert main.main([*argv, "--config.total=2 steps", "--config.mesh.fsdp=2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}
    assert set(losses) == {1, 2} and all(0 < v < 50 for v in losses.values())
    assert all(r["train/skipped"] == 0 for r in rows if "train/loss" in r)
    assert (tmp_path / "checkpoints" / "2").exists() and (tmp_path / "config.json").exists()
    result = json.loads((tmp_path / "evals" / "2.json").read_text())
    assert set(result["metrics"]) >= EXPERIMENTS[experiment]
    for picture in result["pictures"].values():
        assert (tmp_path / "evals" / picture).read_bytes().startswith(b"\x89PNG")
