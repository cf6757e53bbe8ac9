"""Workers that run the tests side by side collect them on their own: they must find the same ones by the same names."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests.golden import ROOT


def collecting(seed: str) -> subprocess.Popen:
    """A fresh process that collects all tests."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONHASHSEED": seed}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.long
def test_two_collections_seconds_apart_are_the_same():
    first = collecting("1")
    time.sleep(2.1)  # what holds the time in seconds differs
    second = collecting("2")
    said = [process.communicate(timeout=600)[0] for process in (first, second)]
    one, other = (re.findall(r"^tests/.*::.*$", text, re.M) for text in said)
    assert len(one) > 1000 and one == other
    assert not [name for name in one if re.search(r" at 0x[0-9a-f]+|/tmp/", name)]
