import jax
import numpy as np
import pytest

from maeclip_jax.evals.pictures import class_colours, colour_mask, heat, is_flat, square, upsample


@pytest.mark.parametrize("new", [(8, 8), (12, 9), (4, 3)])
def test_upsampling_is_the_bilinear_one(new):
    maps = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(upsample(maps, *new), jax.image.resize(maps, (2, *new), "linear"), atol=1e-6)


def test_patches_are_row_major():
    assert square(np.arange(4)).tolist() == [[0, 1], [2, 3]]
    up = upsample(square(np.eye(4)[1]), 4, 4)  # the second of four patches is top right
    assert np.unravel_index(up.argmax(), up.shape) == (0, 3)


def test_heat_is_scaled_by_the_map_itself():
    image = np.full((2, 2, 3), 100, np.uint8)
    got = heat(image, np.array([[-5.0, 0], [0, 5.0]]))
    np.testing.assert_array_equal(got, heat(image, np.array([[0.0, 1], [1, 2]])))
    assert got[0, 0].sum() < got[0, 1].sum() < got[1, 1].sum()  # dark to bright
    flat = heat(image, np.zeros((2, 2)))
    assert (flat == flat[0, 0]).all()


def test_colours_differ_and_what_has_none_is_white():
    colours = class_colours(60)
    assert len({tuple(c) for c in colours.tolist()}) == 60
    got = colour_mask(np.array([[0, 59, 255]], np.uint8), colours)
    assert got.tolist() == [[colours[0].tolist(), colours[59].tolist(), [255, 255, 255]]]


def test_rounding_is_not_stretched_to_full_contrast():
    grey = np.full((4, 4, 3), 128, np.uint8)
    noise = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    flat = heat(grey, np.full((4, 4), 0.3, np.float32))
    for size, rounding in ((0, True), (1e-7, True), (1e-3, False)):
        values = np.float32(0.3 + size * noise)
        assert is_flat(values) == is_flat(-values) == np.array_equal(heat(grey, values), flat) == rounding
    assert is_flat(np.zeros(3)) and not is_flat(np.array([0, 1e-20]))  # no value is small in itself
    assert np.array_equal(heat(grey, np.full((4, 4), np.nan)), flat)
