"""A worker of the tests that ends takes no test with it, and the others go on."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.golden import ROOT

PASSING = "def test_passes():\n    pass\n"
# Ends its worker once, after the words that XLA says before it does so, or without them.
ENDING = """
import os, pathlib

def test_ends_its_worker():
    once = pathlib.Path(__file__).with_suffix(".once")
    if not once.exists():
        once.touch()
        {said}
        os.abort()
"""
FILES = 12


def run(folder, said):
    """`make test` of a tree of small files with our conftest.py."""
    folder = folder / "tests"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    for i in range(FILES):
        (folder / f"test_{i:02}.py").write_text(ENDING.format(said=said) if i == FILES - 3 else PASSING)
    command = [sys.executable, "-m", "pytest", ".", "-q", "-n", "2", "--dist", "loadfile", "--max-worker-restart", "2"]
    left_out = ("MAECLIP_TESTS_SHARED", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    return subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip


def test_the_others_finish_after_a_worker_that_xla_ended(tmp_path):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    shared = 'pathlib.Path(os.environ["MAECLIP_TESTS_SHARED"])'
    said = f'({shared} / f"{{os.environ[\'PYTEST_XDIST_WORKER\']}}.stderr").write_text("rendezvous.cc")'
    done = run(tmp_path, said)
    assert done.returncode == 0 and f"{FILES} passed" in done.stdout and "1 rerun" in done.stdout, done.stdout


def test_a_worker_that_ended_otherwise_fails_its_test(tmp_path):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    done = run(tmp_path, "pass")
    assert done.returncode == 1 and "test_ends_its_worker" in done.stdout, done.stdout
    assert "1 failed" in done.stdout and f"{FILES} passed" in done.stdout
