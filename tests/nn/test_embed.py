"""Positions against their closed form in float64; kept tokens are embedded as they are in the whole."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn import embed
from maeclip_jax.nn.mask import random_keep, take

KEY = jax.random.key(0)


def closed_form(at, width):
    """sin(at / 10000^(i / half)) for i < half, then the cosines: python floats, written out."""
    half = width // 2
    angles = [at / 10000 ** (i / half) for i in range(half)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def test_sincos_1d_is_its_closed_form():
    table = embed.sincos_1d(50, 12)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, [closed_form(t, 12) for t in range(50)], atol=1e-6)


def test_sincos_2d_has_the_column_first():
    table = embed.sincos_2d(3, 5, 16)
    assert table.shape == (15, 16)
    for row in range(3):
        for column in range(5):
            want = closed_form(column, 8) + closed_form(row, 8)
            np.testing.assert_allclose(table[row * 5 + column], want, atol=1e-6)
    with pytest.raises(ValueError, match=r"^2-D sine-cosine positions need a width divisible by 4, got 6$"):
        embed.sincos_2d(2, 2, 6)


def test_an_odd_width_has_no_sincos_positions():
    with pytest.raises(ValueError, match=r"^sine-cosine positions need an even width, got 7$"):
        embed.sincos_1d(4, 7)


@pytest.mark.parametrize("position", embed.POSITIONS)
def test_positions_follow_kept_patches(position):
    patches = jax.random.normal(KEY, (3, 8, 12))
    module = embed.PatchEmbed(width=8, grid=(2, 4), position=position)
    params = module.init(KEY, patches)
    whole = module.apply(params, patches)
    kept = random_keep(KEY, 3, 8, 3)
    part = module.apply(params, take(patches, kept.keep_BxK), kept.keep_BxK)
    np.testing.assert_allclose(part, take(whole, kept.keep_BxK), atol=1e-6)
    assert ("position" in params["params"]) == (position == "learned")
    # Equal patches at two places differ by their positions, and only by them.
    same = module.apply(params, jnp.ones((1, 8, 12)))
    assert np.allclose(same[0, 0], same[0, 5]) == (position == "none")


@pytest.mark.parametrize("position", embed.POSITIONS)
def test_positions_follow_kept_words(position):
    text = jax.random.randint(KEY, (3, 6), 0, 11)
    module = embed.TextEmbed(width=8, vocab=11, length=6, position=position)
    params = module.init(KEY, text)
    whole = module.apply(params, text)
    kept = random_keep(KEY, 3, 6, 2)
    part = module.apply(params, take(text, kept.keep_BxK), kept.keep_BxK)
    np.testing.assert_allclose(part, take(whole, kept.keep_BxK), atol=1e-6)
    shorter = module.apply(params, text[:, :4])
    np.testing.assert_allclose(shorter, whole[:, :4], atol=1e-6)


def test_the_table_of_words_has_the_asked_for_scale():
    for std in (0.02, 1.0):
        module = embed.TextEmbed(width=64, vocab=500, length=4, std=std)
        table = module.init(KEY, jnp.zeros((1, 4), jnp.int32))["params"]["token"]["embedding"]
        assert np.std(table) == pytest.approx(std, rel=0.05)


def test_too_long_a_text_and_unknown_positions_are_refused():
    with pytest.raises(ValueError, match=r"^text of 5 tokens, but the text tower has 4 positions$"):
        embed.TextEmbed(width=8, vocab=9, length=4).init(KEY, jnp.zeros((1, 5), jnp.int32))
    with pytest.raises(ValueError, match=r"^unknown positions 'rope'; valid: sincos, learned, none$"):
        embed.PatchEmbed(width=8, grid=(2, 2), position="rope").init(KEY, jnp.zeros((1, 4, 3)))
