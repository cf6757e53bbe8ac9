"""Pixels become patches in a written order and come back; normalisation has an exact inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn import pixels


def test_patches_are_row_major_and_pixels_are_row_column_channel():
    # 4 x 6 picture, 2 channels; the value spells its place: 100 * row + 10 * column + channel.
    row, column, channel = np.meshgrid(range(4), range(6), range(2), indexing="ij")
    picture = (100 * row + 10 * column + channel)[None]
    patches = np.asarray(pixels.patchify(jnp.asarray(picture), 2))
    assert patches.shape == (1, 6, 8)
    assert patches[0, 0].tolist() == [0, 1, 10, 11, 100, 101, 110, 111]
    assert patches[0, 1].tolist() == [20, 21, 30, 31, 120, 121, 130, 131]  # the neighbour to the right comes second
    assert patches[0, 3].tolist() == [200, 201, 210, 211, 300, 301, 310, 311]


@pytest.mark.parametrize("patch, height, width", [(2, 4, 6), (4, 8, 4), (1, 3, 2)])
def test_unpatchify_is_the_inverse(patch, height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    np.testing.assert_array_equal(pixels.unpatchify(pixels.patchify(x, patch), patch, height, width), x)


def test_a_picture_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^a 9x8 picture does not divide into 4x4 patches$"):
        pixels.patchify(jnp.zeros((1, 9, 8, 3)), 4)


@pytest.mark.parametrize("stats", sorted(pixels.STATS))
def test_denormalise_is_the_inverse_of_normalise(stats):
    x = np.arange(2 * 4 * 8 * 3, dtype=np.uint8).reshape(2, 4, 8, 3)  # 0..191 and the rest below
    x = np.concatenate([x, 255 - x])
    mean, std = (np.asarray(v, np.float64) for v in pixels.STATS[stats])
    normal = np.asarray(pixels.normalise(jnp.asarray(x), stats))
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, (x / 255.0 - mean) / std, atol=2e-6)
    np.testing.assert_allclose(pixels.denormalise(jnp.asarray(normal), stats), x, atol=1e-4)


def test_denormalise_clips_to_what_a_picture_can_hold():
    far = jnp.asarray([-9.0, 0.0, 9.0]).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(np.ravel(pixels.denormalise(far, "half")), [0, 127.5, 255])


def test_pictures_must_be_uint8_and_statistics_known():
    with pytest.raises(ValueError, match=r"^pictures travel as uint8 and are normalised here, got float32$"):
        pixels.normalise(jnp.zeros((1, 2, 2, 3)), "clip")
    with pytest.raises(ValueError, match=r"^unknown pixel statistics 'coco'; valid: cc12m, clip, half, imagenet$"):
        pixels.normalise(jnp.zeros((1, 2, 2, 3), jnp.uint8), "coco")
