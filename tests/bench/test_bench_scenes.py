import json
import subprocess
import sys

import numpy as np

from maeclip_jax.scenes import SceneSpec, sample
from maeclip_jax.scenes.sheet import sheet


def run(*arguments):
    command = [sys.executable, "-m", "maeclip_jax.bench", "scenes", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_rates_are_printed_as_json():
    done = run("--resolutions", "32", "--seconds", "0.05", "--json=-")
    (row,) = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert row["resolution"] == 32 and row["sample_per_second"] > 200 and row["scene_per_second"] > 100


def test_sheet_shows_the_pictures(tmp_path):
    spec = SceneSpec(resolution=32)
    drawn = sheet(spec, rows=2, columns=3)
    assert drawn.shape == (72, 108, 3)
    np.testing.assert_array_equal(drawn[38:70, 74:106], sample(spec, 0, 5)["image"])
    assert run("--sheet", str(tmp_path / "a.png"), "--resolutions", "32").returncode == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_wrong_resolution_is_one_line():
    done = run("--resolutions", "7")
    assert done.returncode == 2 and done.stderr == "error: scenes: resolution=7; valid: 24 to 1024\n"
