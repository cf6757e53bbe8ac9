"""What other code bases' towers have and ours leave out: each option adds what it says, and nothing where it is off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.pool import AttentionPool, pooled
from maeclip_jax.nn.tower import Encoder
from maeclip_jax.objectives.clip import EmbedHead
from maeclip_jax.params import flatten
from tests.parameters import random_parameters

IMAGE, TEXT = dict(size=8, patch=2), dict(vocab=11, length=6)
PATCHES = jax.random.normal(jax.random.key(0), (2, 16, 12))
WORDS = jnp.asarray([[3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 1, 2]], jnp.int32)


def encoder(**kwargs):
    return Encoder(**(dict(width=8, depth=1, heads=2) | kwargs))


def parameters(module, inputs):
    return random_parameters(module.init, inputs)


def names(module, inputs):
    return set(flatten(parameters(module, inputs)))


@pytest.mark.parametrize(
    "option,added,removed",
    [
        (dict(norm_pre=True), {"norm_pre/scale", "norm_pre/bias"}, set()),
        (dict(cls_position=True), {"cls_position"}, set()),
        (dict(image=IMAGE | dict(patch_bias=False)), set(), {"embed_image/patch/bias"}),
        (dict(eps=1e-3), set(), set()),
    ],
)
def test_an_option_adds_its_parameters_and_changes_what_is_encoded(option, added, removed):
    plain, other = (encoder(**(dict(image=IMAGE, cls=True) | x)) for x in ({}, option))
    inputs = {"image": PATCHES}
    assert names(other, inputs) - names(plain, inputs) == added
    assert names(plain, inputs) - names(other, inputs) == removed
    a, b = (np.asarray(m.apply({"params": parameters(m, inputs)}, inputs)["image"].x) for m in (plain, other))
    assert np.abs(a - b).max() > 1e-4


def test_the_norm_before_the_trunk_sees_the_class_token_with_its_position():
    """With a trunk of no blocks, a tower is both norms of [cls + its position | patches]."""
    module = encoder(image=IMAGE | dict(position="none"), cls=True, cls_position=True, norm_pre=True, depth=0)
    module = module.clone(compute=dict(layers="unroll"))
    inputs = {"image": PATCHES}
    p = parameters(module, inputs)
    tokens = module.apply({"params": p}, inputs)["image"]

    def norm(x, name):
        x = np.asarray(x, np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[name]["scale"] + p[name]["bias"]

    patch = p["embed_image"]["patch"]
    x = np.asarray(PATCHES) @ patch["kernel"] + patch["bias"]
    np.testing.assert_allclose(tokens.x, norm(norm(x, "norm_pre"), "norm"), rtol=1e-4, atol=1e-5)
    cls = norm(norm(p["cls"] + p["cls_position"], "norm_pre"), "norm")
    np.testing.assert_allclose(tokens.cls, np.broadcast_to(cls, (2, 8)), rtol=1e-4, atol=1e-5)


def test_attended_padding_is_a_word_like_any_other():
    masked, attended = (encoder(text=TEXT | x) for x in ({}, dict(padding="attended")))
    params = parameters(masked, {"text": WORDS})
    assert names(attended, {"text": WORDS}) == names(masked, {"text": WORDS})
    a, b = (m.apply({"params": params}, {"text": WORDS})["text"] for m in (masked, attended))
    assert np.asarray(a.pad).any() and not np.asarray(b.pad).any()
    assert np.abs(np.asarray(a.x - b.x)[0, :4]).max() > 1e-4  # words see the padding
    np.testing.assert_allclose(a.x[1], b.x[1], atol=1e-6)  # a text without padding is the same
    np.testing.assert_array_equal(pooled(b, "last"), b.x[:, -1])
    with pytest.raises(ValueError, match="unknown padding 'seen'; valid: masked, attended"):
        parameters(encoder(text=TEXT | dict(padding="seen")), {"text": WORDS})


def test_a_head_projects_plainly_with_a_bias_or_not_at_all():
    tokens = encoder(text=TEXT).apply(
        {"params": parameters(encoder(text=TEXT), {"text": WORDS})}, {"text": WORDS}
    )["text"]  # fmt: skip
    for word, added in (
        ("linear", {"project/kernel"}),
        ("affine", {"project/kernel", "project/bias"}),
        ("none", set()),
    ):
        head = EmbedHead("gap", 8, 2, projection=word)
        params = random_parameters(head.init, tokens)
        assert set(flatten(params)) == added
        z = np.asarray(head.apply({"params": params}, tokens))
        x = np.asarray(pooled(tokens, "gap"))
        x = x @ params["project"]["kernel"] if added else x
        x = x + params["project"]["bias"] if word == "affine" else x
        np.testing.assert_allclose(z, x / np.linalg.norm(x, axis=-1, keepdims=True), atol=1e-5)
    with pytest.raises(ValueError, match="unknown projection 'half'; valid: linear, affine, none"):
        EmbedHead("gap", 8, 2, projection="half").init(jax.random.key(0), tokens)
    with pytest.raises(ValueError, match="projection is none, but the tower is 8 wide and embed_width 6"):
        EmbedHead("gap", 6, 2, projection="none").init(jax.random.key(0), tokens)


def test_the_attention_head_s_mlp_has_its_own_width_and_activation():
    x, pad = PATCHES[:, :, :8], jnp.zeros((2, 16), bool)
    plain, other = AttentionPool(2), AttentionPool(2, activation="gelu_tanh", mlp_ratio=4304 / 1152, eps=1e-5)
    assert random_parameters(other.init, x, pad)["up"]["kernel"].shape == (8, 30)  # round(8 * 3.736), not cut off
    params = random_parameters(plain.init, x, pad)
    a, b = (np.asarray(m.apply({"params": params}, x, pad)) for m in (plain, AttentionPool(2, "gelu_tanh")))
    assert 1e-6 < np.abs(a - b).max() < 1e-2
    with pytest.raises(ValueError, match="unknown activation 'relu'; valid: gelu, gelu_tanh, quick_gelu"):
        AttentionPool(2, "relu").init(jax.random.key(0), x, pad)
