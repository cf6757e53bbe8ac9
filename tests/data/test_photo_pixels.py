"""Evaluation's resize, crop and normalisation on real photographs, against Pillow and float64."""

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import ops
from maeclip_jax.nn import pixels
from tests.data.photos import photos

STEP = 1 / 255


def made(words: str, path) -> np.ndarray:
    record = {"image": path.read_bytes()}
    return ops.parse(f'{words}|keep("image")')(record, np.random.default_rng(0))["image"]


@pytest.mark.parametrize("side", [64, 224])
def test_photographs_are_pillow_s(side):
    for path in photos():
        image = Image.open(path).convert("RGB")
        width, height = image.size
        short = min(width, height)
        small = image.resize((int(side * width / short), int(side * height / short)), Image.Resampling.BICUBIC)
        left, top = (round((n - side) / 2) for n in small.size)
        want = np.asarray(small.crop((left, top, left + side, top + side)), int)
        got = made(f"decode|resize_small({side})|center_crop({side})", path)
        assert np.abs(got - want).max() <= 1, path
        squashed = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), int)
        assert np.abs(made(f"decode|resize({side})", path) - squashed).max() <= 1, path


@pytest.mark.parametrize("stats", pixels.STATS)
def test_photographs_are_normalised_as_in_float64(stats):
    mean, std = (np.array(x) for x in pixels.STATS[stats])
    batch = np.stack([made("decode|resize(32)", path) for path in photos(6)])
    np.testing.assert_allclose(pixels.normalise(batch, stats), (batch / 255 - mean) / std, atol=2e-6)
