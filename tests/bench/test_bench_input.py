import json

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.bench import input
from maeclip_jax.bench.__main__ import main


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (240, 300, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    Image.new("RGB", (30, 30)).save(tmp_path / "small.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:5000])
    return tmp_path


def test_json_has_the_figures_and_the_ratios(folder, capsys):
    input.run(["--images", str(folder), "--json=-", "--repeats", "1"])
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = made["figures"]
    assert result["pictures"] == 3 and made["machine"]  # neither the small nor the broken one
    speed = result["images_per_second_per_core"]
    assert set(speed) == {"ours fast", "ours area", "ours exact", "pillow", "tf.data"}
    assert result["ratios"]["pillow"] == pytest.approx(speed["ours fast"] / speed["pillow"])
    assert speed["tf.data"] == "tensorflow is not installed: skipped" or speed["tf.data"] > 0


def test_a_folder_without_pictures_is_one_line(tmp_path, capsys):
    for directory, message in (
        (tmp_path / "no", "is not a folder; give one with JPEG files in it"),
        (tmp_path, "no sound JPEG with a shorter side of 224 or more"),
    ):
        assert main(["input", "--images", str(directory)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
