"""Pooling: every operator against numpy on real tokens, blind to padding, defined where there is nothing to pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.pool import POOLS, Pool, Tokens, parse

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 6, 8))
LENGTHS = (6, 4, 1)
PAD = jnp.arange(6)[None] >= jnp.asarray(LENGTHS)[:, None]
WORDS = ("gap", "max", "cls", "last", "map", "logsumexp(0.5)", "logsumexp", "topk(2)", "topk(6)", "topk")


def pool(word, x, pad, **tokens):
    """Pooled [B, D]; a pooling with parameters has the same ones every time."""
    module = Pool(word, heads=2)
    return jax.jit(module.init_with_output)(KEY, Tokens(x, pad, **tokens))[0]


ORACLES = {
    "gap": lambda real: real.mean(0),
    "max": lambda real: real.max(0),
    "cls": lambda real: real[0],
    "last": lambda real: real[-1],
    "logsumexp(0.5)": lambda real: 0.5 * np.log(np.exp(real / 0.5).mean(0)),
    "logsumexp": lambda real: np.log(np.exp(real).mean(0)),
    "topk(2)": lambda real: np.sort(real, axis=0)[::-1][:2].mean(0),
    "topk": lambda real: np.sort(real, axis=0)[::-1][:4].mean(0),
}


@pytest.mark.parametrize("word", ORACLES)
def test_a_pool_is_its_definition_on_the_real_tokens(word):
    x = np.asarray(X, np.float64)
    want = [ORACLES[word](x[i, :n]) for i, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(pool(word, X, PAD), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pool(word, X, None), [ORACLES[word](row) for row in x], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word", WORDS)
def test_padding_has_no_influence(word):
    loud = jnp.where(PAD[..., None], 1e4, X)
    np.testing.assert_array_equal(pool(word, loud, PAD), pool(word, X, PAD))
    grads = jax.jit(jax.grad(lambda x: jnp.sum(pool(word, x, PAD) ** 2)))(X)
    assert (np.asarray(grads)[np.asarray(PAD)] == 0).all()
    assert np.abs(np.asarray(grads)[:, 0]).max() > 0


@pytest.mark.parametrize("word", WORDS)
def test_a_row_of_padding_pools_to_zeros_with_finite_gradients(word):
    pad = PAD.at[1].set(True)
    value, grads = jax.jit(
        jax.value_and_grad(lambda x: (out := pool(word, x, pad), jnp.sum(jnp.sin(out)))[::-1], has_aux=True)
    )(X)
    assert (np.asarray(value[1])[1] == 0).all()
    np.testing.assert_array_equal(np.asarray(value[1])[[0, 2]], pool(word, X, PAD)[jnp.asarray([0, 2])])
    assert np.isfinite(grads).all()
    assert (np.asarray(grads)[1] == 0).all()


def test_logsumexp_and_topk_run_from_max_to_gap():
    low, high = pool("max", X, PAD), pool("gap", X, PAD)
    np.testing.assert_allclose(pool("logsumexp(1e-4)", X, PAD), low, atol=1e-3)
    np.testing.assert_allclose(pool("logsumexp(1e4)", X, PAD), high, atol=2e-3)
    np.testing.assert_array_equal(pool("topk(1)", X, PAD), low)
    np.testing.assert_allclose(pool("topk(6)", X, PAD), high, atol=1e-6)
    between = [np.asarray(pool(f"logsumexp({tau})", X, PAD)) for tau in (0.1, 1, 10)]
    for larger, smaller in zip([np.asarray(low), *between], [*between, np.asarray(high)]):
        assert (larger >= smaller - 1e-4).all()


def test_last_is_the_last_real_token_wherever_the_padding_is():
    pad = jnp.asarray([[True, False, True, False, True, True]] * 3)
    np.testing.assert_array_equal(pool("last", X, pad), X[:, 3])


def test_a_class_token_is_used_where_there_is_one():
    token = jnp.full((3, 8), 5.0)
    np.testing.assert_array_equal(pool("cls", X, PAD, cls=token), token)
    np.testing.assert_array_equal(pool("max", X, PAD, cls=token), pool("max", X, PAD))


def test_only_map_has_parameters_and_pooling_is_float32():
    for word in WORDS:
        shapes = jax.eval_shape(Pool(word, heads=2).init, KEY, Tokens(X.astype(jnp.bfloat16)))
        assert ("map" in shapes.get("params", {})) == (word == "map")
        out = jax.eval_shape(Pool(word, heads=2).init_with_output, KEY, Tokens(X.astype(jnp.bfloat16)))[0]
        assert out.dtype == jnp.float32 and out.shape == (3, 8)


def test_words_are_parsed():
    assert parse("max") == ("max", None)
    assert parse("map") == ("map", None)
    assert parse("topk(8)") == ("topk", 8.0)
    assert parse("logsumexp(0.25)") == ("logsumexp", 0.25)


@pytest.mark.parametrize(
    "word", ["mean", "max(3)", "map(2)", "topk(", "topk()", "topk(a)", "", "topk(inf)", "topk(nan)"]
)
def test_unknown_words_are_refused(word):
    with pytest.raises(ValueError) as error:
        parse(word)
    assert str(error.value) == f"unknown pool {word!r}; valid: gap, max, cls, last, map, logsumexp(tau), topk(k)"


@pytest.mark.parametrize("number", [0, -1])
def test_logsumexp_needs_a_positive_temperature(number):
    with pytest.raises(ValueError, match=rf"^logsumexp pooling needs tau > 0, got {number}$"):
        POOLS["logsumexp"](X, PAD, number)


@pytest.mark.parametrize("number", [0, 7, 1.5])
def test_topk_needs_a_whole_number_of_tokens(number):
    with pytest.raises(ValueError) as error:
        POOLS["topk"](X, PAD, number)
    assert str(error.value) == f"topk pooling needs a whole k in 1..6 (the number of tokens), got {number}"
