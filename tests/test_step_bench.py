"""The benchmark runs the experiment's own step and prints figures that fit together."""

import json
import subprocess
import sys

import pytest


def test_bench_of_an_experiment(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "maeclip_jax.bench", "--config=experiments/clip.py:runlocal", "--platform=cpu"]
    done = subprocess.run([*command, "--steps=3", f"--json={out}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(out.read_text())
    step = figures["step seconds (median)"]
    assert figures["images/s"] == pytest.approx(figures["batch size"] / step)
    devices = int(figures["device"].split()[0])
    mfu = 100 * figures["model FLOPs/step"] / step / devices / figures["peak FLOP/s per device"]
    assert figures["MFU (%)"] == pytest.approx(mfu)
    assert figures["input images/s"] > 0 and figures["parameters"] > 10_000
    assert "MFU (%)" in done.stdout and "input images/s/core" in done.stdout


def test_mistakes_are_one_line():
    command = [sys.executable, "-m", "maeclip_jax.bench", "--config=experiments/clip.py:pol=max"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown experiment argument 'pol'")
