"""Shares of one machine: which cores and chips, and what is said where there are too few."""

import os
import subprocess
import sys

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import shares


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight cores, of which this process may use six, and no accelerator."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 6, 7}, raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_WORKER_HOSTNAMES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shares.machine, "accelerator", lambda: None)


def test_cores_are_divided_and_one_run_has_all():
    assert shares.shares(1) == [shares.Share()] and str(shares.Share()) == "whatever is free"
    assert [s.cores for s in shares.shares(2)] == [(0, 1, 2), (3, 6, 7)]
    assert [s.cores for s in shares.shares(4)] == [(0,), (1, 2), (3,), (6, 7)]
    assert not any(s.environment for s in shares.shares(4)) and str(shares.shares(4)[1]) == "cores 1,2"


def test_a_chip_each_by_the_variables_that_its_library_reads(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    given = shares.shares(3, "gpu")
    assert [s.environment for s in given] == [{"CUDA_VISIBLE_DEVICES": n} for n in "457"]
    assert str(given[2]) == "chip 7, cores 6,7"
    monkeypatch.setattr(shares.glob, "glob", lambda p: ["/dev/vfio/0", "/dev/vfio/1"] if "vfio" in p else [])
    a, b = (s.environment for s in shares.shares(2, "tpu"))
    assert (a["TPU_VISIBLE_CHIPS"], b["TPU_VISIBLE_CHIPS"]) == ("0", "1")
    assert a["TPU_PROCESS_PORT"] != b["TPU_PROCESS_PORT"] and a["TPU_PROCESS_BOUNDS"] == "1,1,1"


def test_the_variables_are_those_of_jax_s_own_tests(monkeypatch):
    """jax starts one process a chip in its tests of several processes."""
    import inspect

    from jax._src import test_multiprocess

    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "0,1")
    assert all(f'"{name}"' in inspect.getsource(test_multiprocess) for name in shares.shares(2, "tpu")[0].environment)


def test_too_many_are_refused_with_what_there_is(monkeypatch):
    with pytest.raises(UserError, match=r"--jobs=7 .* has 6 cores; valid: 1 to 6"):
        shares.shares(7)
    with pytest.raises(UserError, match=r"--jobs=0; valid: 1 or more"):
        shares.shares(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"a chip each, and this machine has 1; valid: 1 to 1"):
        shares.shares(2, "gpu")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(UserError, match="one of 2 of a slice"):
        shares.shares(2, "tpu")


def test_memory_of_a_process_counts_its_children():
    eat = "import subprocess, sys; x = bytearray({} << 20); {}; print(1, flush=True); sys.stdin.readline()"
    child = eat.format(60, "pass")
    code = eat.format(40, f"subprocess.Popen([sys.executable, '-c', {child!r}])")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert [process.stdout.readline() for _ in range(2)]
        now, most = shares.memory(process.pid)
        assert 100 << 20 <= now <= most < 400 << 20
    finally:
        process.kill()
    assert 0 < shares.free_memory() < float("inf") and shares.memory(2**22 + 1) == (0, 0)


def test_a_container_s_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "CGROUP", tmp_path)
    machine = shares.free_memory()
    for name, text in (("max", "max"), ("current", "3000"), ("stat", "anon 1\ninactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert shares.free_memory() == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("10000")
    assert shares.free_memory() == 7500


def test_where_nobody_says_there_is_a_run_a_chip_or_two_on_cpus(monkeypatch):
    assert shares.usual() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert (shares.usual("gpu"), shares.usual("cpu")) == (3, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert len(shares.shares(shares.usual("gpu"), "gpu")) == 1
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert shares.usual("tpu") == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert shares.usual("cpu") == 1
