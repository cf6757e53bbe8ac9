"""The benchmark runs the experiment's own step and prints figures that fit together."""

import importlib.util
import json
import subprocess
import sys

import pytest

from maeclip_jax.bench import peer
from maeclip_jax.errors import UserError


def bench(folder, *settings):
    """(figures, stdout) of a small experiment."""
    out = folder / "bench.json"
    command = [
        sys.executable,
        "-m",
        "maeclip_jax.bench",
        "step",
        "--config=experiments/clip.py:runlocal",
        "--platform=cpu",
    ]
    command += ["--steps=3", f"--json={out}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())["figures"], done.stdout


def test_bench_of_an_experiment(tmp_path):
    figures, printed = bench(tmp_path)
    assert figures["config"].startswith("--config=experiments/clip.py:runlocal --platform=cpu")
    step = figures["step seconds (median)"]
    assert figures["images/s"] == pytest.approx(figures["batch size"] / step)
    devices = int(figures["device"].split()[0])
    mfu = 100 * figures["model FLOPs/step"] / step / devices / figures["peak FLOP/s per device"]
    assert figures["MFU (%)"] == pytest.approx(mfu)
    assert figures["input images/s"] > 0 and figures["parameters"] > 10_000
    assert "MFU (%)" in printed and "input images/s/core" in printed


def test_without_data_and_words_it_reads_noise_and_bytes(tmp_path):
    figures, _ = bench(tmp_path, "--config.data.source.kind=tfds", "--config.tokenizer.path=bert_vocab.txt")
    assert figures["input of"].startswith("noise pictures (unknown argument of source 'tfds': 'resolution'")
    assert ", bytes as words (tokenizer file 'bert_vocab.txt' is not there" in figures["input of"]
    assert figures["input images/s"] > 0


def test_what_the_step_costs_is_told_whatever_becomes_of_the_input(tmp_path):
    figures, printed = bench(tmp_path, "--config.data.ops=flip")
    assert figures["images/s"] > 0 and "images/s/device" in printed
    assert figures["input of"].startswith("nothing: ops: flip: unknown op 'flip'") and "input images/s" not in figures


def test_mistakes_are_one_line():
    command = [sys.executable, "-m", "maeclip_jax.bench", "step", "--config=experiments/clip.py:pol=max"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown experiment argument 'pol'")


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="needs open_clip_torch")
def test_open_clip_beside_it(tmp_path):
    figures, printed = bench(tmp_path, "--peer=open_clip", "--config.model.compute.dtype=bfloat16")
    assert figures["open_clip"].startswith("open_clip ") and figures["open_clip"].endswith("bfloat16")
    # The same towers but for the class token, norms' and attention's biases.
    assert figures["open_clip parameters"] == pytest.approx(figures["parameters"], rel=0.02)
    ratio = figures["open_clip step seconds (best)"] / figures["step seconds (best)"]
    assert figures["times open_clip's speed, by step seconds (best)"] == pytest.approx(ratio)
    assert "times open_clip's speed" in printed


FAKE = """
import json, sys
task = json.loads(sys.argv[1])
if "wrong" in task:
    print(json.dumps({"error": task["wrong"]}), flush=True)
else:
    print(json.dumps({"peer": "fake 1.0", "parameters": 7}), flush=True)
    for i, _ in enumerate(sys.stdin):
        if i == task["lives"]:
            sys.exit(3)
        print(json.dumps({"seconds": 10.0 / (i + 1), "processor seconds": 1.0 + i}), flush=True)
"""


def test_a_peer_takes_turns_and_its_first_steps_do_not_count(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setitem(peer.PEERS, "fake", script)
    kinds = ("step seconds (median)", "step seconds (best)", "step processor seconds (best)")
    with peer.Peer("fake", sys.executable, {"lives": 5}) as made:
        for _ in range(5):
            made.step()
        found = made.figures({"step seconds (median)": 1.25, "step seconds (best)": 1.0, kinds[2]: 6.0})
        with pytest.raises(UserError, match="the peer fake ended with code 3; what it said is above"):
            made.step()
    assert found["fake"] == "fake 1.0" and found["fake parameters"] == 7
    assert [found[f"fake {kind}"] for kind in kinds] == [2.5, 2.0, 3.0]  # of the third step and on
    assert [found[f"times fake's speed, by {kind}"] for kind in kinds] == [2.0, 2.0, 0.5]
    with (
        pytest.raises(UserError, match=r"--peer=fake: no torch"),
        peer.Peer("fake", sys.executable, {"wrong": "no torch"}),
    ):
        pass
    with pytest.raises(UserError, match="--peer_python=/nowhere/python cannot be started: No such file"):
        peer.Peer("fake", "/nowhere/python", {})


def test_a_peer_is_asked_only_for_what_it_has():
    for arg, said in {
        "clip.py:runlocal,loss=sigmoid": "clip with loss=sigmoid",
        "mae.py:runlocal": "mae with loss=",
    }.items():
        command = [sys.executable, "-m", "maeclip_jax.bench", "step", "--platform=cpu", "--peer=open_clip"]
        done = subprocess.run([*command, f"--config=experiments/{arg}"], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.startswith(f"error: --peer=open_clip: it has no {said}")
