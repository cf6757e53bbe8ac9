"""The Makefile hands on what it is given, word by word."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARGUMENT, PLACE = "my experiments/clip.py:pool=topk(4),scale=demo", "runs/my run"


def clean(environment):
    """What a user's shell has: neither data folders nor what the `make test` that runs this tells its children."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_DATA_DIR") and not k.startswith(("MAKE", "MFLAGS"))}
    return kept | environment


def printed(*words, **environment):
    """The words of the command that `make -n` prints last."""
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env=clean(environment), capture_output=True, text=True, check=True
    )
    return shlex.split(done.stdout.replace("\\\n", " ").splitlines()[-1])[1:]


@pytest.mark.parametrize(
    "given, want",
    [
        (["train", "ARGS=--config.seed=1"], [f"--config={ARGUMENT}", f"--workdir={PLACE}", "--config.seed=1"]),
        (
            ["eval", "SUITE=my a.py:pool=topk(4)"],
            [f"--config={PLACE}/config.json", "--config.evals=my a.py:pool=topk(4)"],
        ),
        (["report"], [PLACE]),
        (["tables", "WORKDIRS=a b", "OUT=my tables"], ["--tables", "a", "b", "--out", "my tables"]),
        (["sweep", "SWEEP=paper_pooling", "ARGS=--root=gs://x"], ["paper_pooling", "--root=gs://x"]),
        (
            ["study", "SIZES=1k,4k", "SEEDS=2", "DATA=cc12m", "OUT=my study", "ARGS=--dry_run"],
            ["--data=cc12m", "--sizes=1k,4k", "--seeds=2", "--topology=cpu", "--out=my study", "--dry_run"],
        ),
        (["study-report", "OUT=my study"], ["--report", "--out=my study"]),
        (["bench", "ARGS=--steps=3"], [f"--config={ARGUMENT}", "--steps=3"]),
        (["preflight"], [f"--config={ARGUMENT}", "--topology=v5litepod-256"]),
        (["bench-input", "IMAGES=my photos"], ["--images", "my photos"]),
    ],
)
def test_brackets_and_blanks_arrive(given, want):
    words = printed(*given, f"CONFIG={ARGUMENT}", f"WORKDIR={PLACE}")
    assert [w for w in words if w in want] == want


@pytest.mark.parametrize(
    "given, environment, want",
    [
        ((), {}, "data"),
        ((), {"TFDS_DATA_DIR": "/t"}, "/t"),
        ((), {"TFDS_DATA_DIR": "/t", "MAECLIP_DATA_DIR": "/m"}, "/m"),
        (("DATA=/d",), {"MAECLIP_DATA_DIR": "/m"}, "/d"),
    ],
)
def test_data_is_where_the_package_looks_for_it(given, environment, want, tmp_path):
    assert printed("data", *given, **environment)[-1] == want
    show = tmp_path / "show.mk"
    show.write_text("include Makefile\nshow:\n\t@echo $$MAECLIP_DATA_DIR\n")
    command = ["make", "-s", "-f", str(show), "show", *given]
    said = subprocess.run(command, cwd=ROOT, env=clean(environment), capture_output=True, text=True, check=True)
    assert said.stdout.strip() == want
