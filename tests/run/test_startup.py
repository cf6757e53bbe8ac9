"""Start-up times: phases add up to the time from the start of the process to the first step; what the cache keeps."""

import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from maeclip_jax import main
from maeclip_jax.parallel import sleep
from maeclip_jax.parallel.machine import cache_folder
from maeclip_jax.run import startup
from maeclip_jax.run.clock import Clock
from tests import runs
from tests.golden import ROOT


def test_phases_and_the_rest_add_up(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(sleep, "awake", lambda: now[0])
    start = startup.Startup(2.0)
    start.add("import", start.so_far())
    clock = Clock(start=start)
    for name, seconds in (("restore", 1.0), ("input_wait", 0.5), ("compile", 4.0)):
        with clock.phase(name):
            now[0] += seconds
    clock.start_loop()
    with clock.phase("input_wait"):
        now[0] += 0.25  # of the second batch
    assert not start.done
    assert start.finish() == (
        "start-up (measured): import 2.0s | restore 1.0s | first batch 0.5s | compile 4.0s | other 0.2s | "
        "to first step 7.8s"
    )
    assert start.done
    start.add("compile", 100.0)
    seconds = dict(start.seconds)
    assert seconds.pop("to first step") == pytest.approx(sum(seconds.values())) == 7.75


def test_the_age_counts_from_the_start_of_the_process():
    code = "import time; time.sleep(1); from maeclip_jax.run import startup; print(startup.age())"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # The system tells the start of a process in hundredths of a second.
    assert 1 <= float(done.stdout) <= time.monotonic() - begun + 0.01


def test_a_run_says_and_keeps_how_it_started(tmp_path, capfd):
    runs.run(tmp_path / "run", "objective=clip,steps=2,save=2,evals=false")
    (line,) = [x for x in capfd.readouterr().out.splitlines() if x.startswith("start-up")]
    assert "first batch" in line and "compile" in line
    kept = json.loads((tmp_path / "run" / "costs.json").read_text())["start_seconds"]
    assert kept["compile"] > 0 and kept["to first step"] >= kept["compile"]


# The compilation cache.


def folder(*flags: str) -> str:
    argv = ["--config=tests/tiny.py:objective=clip", *flags]
    args = main.parse(argv)
    return cache_folder(args.cache, args.workdir)


def test_where_compiled_programs_are_kept(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert folder("--workdir=runs/a") == "/home/me/.cache/maeclip_jax/xla"
    assert folder("--workdir=gs://b/run/") == "gs://b/run/xla"  # new machines find it
    assert folder("--workdir=gs://b/run", "--cache=") == ""
    assert folder("--workdir=runs/a", "--cache=gs://b/xla") == "gs://b/xla"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache")
    assert folder("--workdir=gs://b/run") == "/cache"
    assert folder("--workdir=runs/a", "--cache=~/x") == "/home/me/x"


def test_jax_keeps_programs_in_a_remote_folder(tmp_path, monkeypatch):
    """Through the same paths (etils) that a workdir uses; the bucket is a folder here."""
    from etils.epath import backend, gpath
    from jax.experimental.compilation_cache import compilation_cache

    class Bucket(backend._OsPathBackend):
        def _local(self, path):
            return str(path).replace("gs://bucket", str(tmp_path))

        def open(self, path, mode):
            return super().open(self._local(path), mode)

        def exists(self, path):
            return super().exists(self._local(path))

        def makedirs(self, path, *, exist_ok=False, mode=None):
            super().makedirs(self._local(path), exist_ok=True, mode=mode)

        mkdir = makedirs

    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Bucket())
    before = {
        k: getattr(jax.config, k) for k in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    try:
        jax.config.update("jax_compilation_cache_dir", "gs://bucket/xla")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        compilation_cache.reset_cache()
        jax.jit(lambda x: x * 3 + 1)(np.ones(7)).block_until_ready()
        assert list((tmp_path / "xla").iterdir())
    finally:
        for key, value in before.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()
