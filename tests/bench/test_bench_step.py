"""The benchmark runs the experiment's own step and prints figures that fit together."""

import json
import subprocess
import sys

import pytest


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
