"""The benchmark of restarts: what it starts, in which order, and what it prints; the starts themselves are made up."""

import json

import pytest

from maeclip_jax.bench import startup
from maeclip_jax.errors import UserError
from tests.golden import ROOT

CONFIG = "--config=experiments/clip.py:runlocal"


def test_cold_and_warm_in_turn_and_the_ratio(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    caches = []

    def start(argv, workdir, cache):
        assert argv == [CONFIG]
        caches.append(cache.exists())
        cache.mkdir(exist_ok=True)
        compiling = 1.0 if caches[-1] else 7.0
        return {"import": 2.0, "compile": compiling, "to first step": 2.0 + compiling}

    monkeypatch.setattr(startup, "start", start)
    startup.run([CONFIG, "--repeats=2", f"--json={tmp_path / 'out.json'}"])
    assert caches == [False, False, True, False, True]  # the run that makes the checkpoint, then cold and warm in turn
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "seconds            cold      warm",
        "import             2.00      2.00",
        "compile            7.00      1.00",
        "to first step      9.00      3.00",
    ]
    assert lines[-1] == "restart to first step: cold / warm = 3.00 (measured here, medians of 2 restarts each)"
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["warm"] == {"import": 2.0, "compile": 1.0, "to first step": 3.0}


def test_mistakes_are_found_before_anything_starts(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(startup, "start", None)
    with pytest.raises(UserError, match="argument --repeats: invalid int value: 'many'; see --help"):
        startup.run([CONFIG, "--repeats=many"])
    with pytest.raises(UserError, match=r"unknown setting config.optim: name 'lrr'"):
        startup.run([CONFIG, "--config.optim.lrr=1"])


def test_a_run_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="training ended with code 2: unknown setting config: name 'seeed'"):
        startup.start([CONFIG, "--config.seeed=1"], tmp_path / "run", tmp_path / "xla")
