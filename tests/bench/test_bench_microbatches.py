"""The benchmark of micro-batches: three ways whose ratios follow from their figures, and one line for mistakes."""

import json

import pytest

from maeclip_jax.bench import __main__ as bench

TINY = "--config=experiments/clip.py:runlocal"


def test_ratios_are_those_of_the_figures(tmp_path, capfd):
    out = tmp_path / "figures.json"
    assert bench.main(
        ["microbatches", TINY, "--parts=4", "--batch=16", "--steps=1", "--platform=cpu", "--cpu_devices=1",
         f"--json={out}"]
    ) == 0, capfd.readouterr().err  # fmt: skip
    figures = json.loads(out.read_text())["figures"]
    (parts,), (whole,), (one,) = figures["runs"].values()
    assert [f["batch size"] for f in (parts, whole, one)] == [16, 16, 4]
    memory = "peak resident GiB (process)"
    assert (
        parts[memory] > 0.1 and parts["temporaries GiB/device (compiler)"] < whole["temporaries GiB/device (compiler)"]
    )
    want = {"memory": parts[memory] / whole[memory], "speed": parts["images/s"] / one["images/s"]}
    assert figures["ratios"] == pytest.approx(want) and "input images/s" not in parts
    said = capfd.readouterr().out
    assert f"memory, 16 in 4 parts / 16 whole: {want['memory']:.2f}" in said


@pytest.mark.parametrize("words, text", [
    ([TINY, "--parts=3", "--batch=16"], "--parts=3 --batch=16 --steps=2 --rounds=1; valid: 2 or more parts, which"),
    (["--parts=2"], "name an experiment; valid: --config="),
])  # fmt: skip
def test_mistakes_are_one_line(words, text, capfd):
    assert bench.main(["microbatches", *words]) == 2
    assert capfd.readouterr().err.startswith(f"error: {text}")
