"""Encoder and decoder: what is masked or padding reaches nobody, what is kept keeps its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.mask import Kept, random_keep
from maeclip_jax.nn.pool import Tokens
from maeclip_jax.nn.tower import Decoder, Encoder, grid_side
from maeclip_jax.params import flatten
from tests.parameters import random_parameters

KEY = jax.random.key(0)
IMAGE, TEXT = dict(size=8, patch=2), dict(vocab=11, length=6)  # 16 patches of 12 numbers, 6 words
PATCHES = jax.random.normal(KEY, (2, 16, 12))
WORDS = jnp.asarray([[3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 1, 2]], jnp.int32)
KEPT = {
    "image": random_keep(jax.random.key(1), 2, 16, 4),
    # the first sample keeps words 1 and 2 and a pad, the second 0, 3 and 5
    "text": jax.tree.map(
        jnp.asarray,
        Kept(
            np.array([[1, 2, 4], [0, 3, 5]]),
            np.array([[3, 0, 1, 4, 2, 5], [0, 3, 4, 1, 5, 2]]),
            np.array([[1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]], bool),
        ),
    ),
}


def encoder(**kwargs):
    return Encoder(**(dict(width=8, depth=2, heads=2) | kwargs))


def encoded(module, inputs, kept=None):
    params = random_parameters(module.init, inputs)
    return jax.jit(lambda inputs: module.apply({"params": params}, inputs, kept))(inputs)


@pytest.mark.parametrize("cls", [False, True])
def test_masked_patches_influence_nothing_that_was_kept(cls):
    module = encoder(image=IMAGE, cls=cls)
    params = random_parameters(module.init, {"image": PATCHES})

    def total(patches):
        tokens = module.apply({"params": params}, {"image": patches}, KEPT)["image"]
        return sum(jnp.sum(jnp.sin(x)) for x in (tokens.x, tokens.cls) if x is not None)

    gradient = np.abs(np.asarray(jax.jit(jax.grad(total))(PATCHES))).max(-1)
    mask = np.asarray(KEPT["image"].mask_BxN)
    assert (gradient[mask] == 0).all()
    assert (gradient[~mask] > 1e-6).all()


def test_masked_words_and_pads_influence_nothing_that_was_kept():
    module = encoder(image=IMAGE, text=TEXT, cls=True)
    inputs = {"image": PATCHES, "text": WORDS}
    params = random_parameters(module.init, inputs)
    run = jax.jit(lambda inputs: module.apply({"params": params}, inputs, KEPT))
    out = run(inputs)
    assert out["image"].x.shape == (2, 4, 8) and out["text"].x.shape == (2, 3, 8)
    assert out["image"].pad is None
    assert out["text"].pad.tolist() == [[False, False, True], [False, False, False]]
    np.testing.assert_array_equal(out["image"].cls, out["text"].cls)

    mask = np.asarray(KEPT["text"].mask_BxN)
    other = run({"image": PATCHES, "text": jnp.where(mask, 2, WORDS)})
    jax.tree.map(np.testing.assert_array_equal, out, other)
    changed = run({"image": PATCHES, "text": jnp.where(mask, WORDS, jnp.where(WORDS == 0, 0, 2))})
    assert not np.allclose(out["image"].x, changed["image"].x)  # kept words do reach the patches

    # The table row of id 0 is read by pads only: nothing but the pad's own encoding may depend on it.
    def real(params):
        tokens = module.apply({"params": params}, inputs, KEPT)
        return jnp.sum(jnp.sin(tokens["image"].x)) + jnp.sum(jnp.sin(tokens["text"].x[:, :2]))

    table = jax.jit(jax.grad(real))(params)["embed_text"]["token"]["embedding"]
    assert (table[0] == 0).all() and np.abs(table[4]).max() > 1e-6


def test_encodings_follow_the_order_of_the_kept_ids():
    kept = KEPT["image"]
    backwards = kept._replace(keep_BxK=kept.keep_BxK[:, ::-1])
    module = encoder(image=IMAGE)
    one = encoded(module, {"image": PATCHES}, {"image": kept})["image"].x
    two = encoded(module, {"image": PATCHES}, {"image": backwards})["image"].x
    np.testing.assert_allclose(one, two[:, ::-1], atol=1e-5)
    everything = encoded(module, {"image": PATCHES}, {"image": random_keep(KEY, 2, 16, 16)})["image"].x
    np.testing.assert_allclose(everything, encoded(module, {"image": PATCHES})["image"].x, atol=1e-5)


@pytest.mark.parametrize("kept", [None, {"text": KEPT["text"]}])
def test_a_causal_tower_looks_back_only_masked_or_not(kept):
    module = encoder(text=TEXT, causal=True)
    out = encoded(module, {"text": WORDS}, kept)["text"].x[1]
    place = 3 if kept is None else 1  # where word 3 of the second sample went
    changed = encoded(module, {"text": WORDS.at[1, 3].set(5)}, kept)["text"].x[1]
    np.testing.assert_array_equal(out[:place], changed[:place])
    assert (np.abs(out[place:] - changed[place:]).max(-1) > 1e-4).all()


def test_a_joint_encoder_also_takes_either_stream_alone():
    module = encoder(image=IMAGE, text=TEXT, cls=True)
    params = random_parameters(module.init, {"image": PATCHES, "text": WORDS})
    assert params["modality_image"].shape == params["modality_text"].shape == (1, 1, 8)
    for stream, value in (("image", PATCHES), ("text", WORDS)):
        out = jax.eval_shape(lambda v, s=stream: module.apply({"params": params}, {s: v}), value)
        assert set(out) == {stream} and out[stream].x.shape == (2, value.shape[1], 8)
    assert "modality_image" not in random_parameters(encoder(image=IMAGE).init, {"image": PATCHES})


def test_a_tower_refuses_streams_it_does_not_have():
    with pytest.raises(ValueError, match=r"^this encoder takes \['image'\], got \['text'\]$"):
        jax.eval_shape(encoder(image=IMAGE).init, KEY, {"text": WORDS})
    with pytest.raises(ValueError, match=r"^this encoder takes \['image', 'text'\], got \[\]$"):
        jax.eval_shape(encoder(image=IMAGE, text=TEXT).init, KEY, {})
    with pytest.raises(ValueError, match=r"^picture size 9 does not divide by patch size 2$"):
        grid_side(dict(size=9, patch=2))
    with pytest.raises(ValueError, match=r"^unknown dtype 'bf16'; valid: float32, bfloat16$"):
        jax.eval_shape(encoder(image=IMAGE, compute=dict(dtype="bf16")).init, KEY, {"image": PATCHES})


TOKENS = {
    "image": Tokens(jax.random.normal(KEY, (2, 4, 8)), None, jax.random.normal(KEY, (2, 8))),
    "text": Tokens(jax.random.normal(KEY, (2, 3, 8)), None, None),
}


def decoder(**kwargs):
    return Decoder(**(dict(width=8, depth=1, heads=2, image=IMAGE, text=TEXT) | kwargs))


def test_a_decoder_predicts_every_token_in_its_place():
    module = decoder()
    params = random_parameters(module.init, TOKENS, KEPT, WORDS == 0)
    run = jax.jit(lambda tokens: module.apply({"params": params}, tokens, KEPT, WORDS == 0))
    out = run(TOKENS)
    assert out["image"].shape == (2, 16, 12) and out["text"].shape == (2, 6, 11)
    # Two masked patches get the same fill; only their places tell them apart.
    a, b = np.flatnonzero(np.asarray(KEPT["image"].mask_BxN)[0])[:2]
    assert not np.allclose(out["image"][0, a], out["image"][0, b])


def test_masked_words_alone_are_predicted_as_among_all():
    module = decoder()
    params = random_parameters(module.init, TOKENS, KEPT, WORDS == 0)
    run = jax.jit(lambda few: module.apply({"params": params}, TOKENS, KEPT, WORDS == 0, few), static_argnums=0)
    every, few = run(False), run(True)
    masked = np.asarray(KEPT["text"].mask_BxN)
    assert masked.sum(1).tolist() == [few["text"].shape[1]] * 2
    np.testing.assert_allclose(few["text"].reshape(-1, 11), np.asarray(every["text"])[masked], atol=1e-6)
    np.testing.assert_array_equal(few["image"], every["image"])


def test_every_prediction_depends_on_both_streams_and_on_no_pad():
    module = decoder(projection="per_stream")
    params = random_parameters(module.init, TOKENS, KEPT, WORDS == 0)

    def predicted(x, stream):
        tokens = {s: t.replace(x=x[s], cls=x["cls"] if s == "image" else None) for s, t in TOKENS.items()}
        out = module.apply({"params": params}, tokens, KEPT, WORDS == 0)[stream]
        # a pad's own prediction may be anything; it is never counted
        return jnp.sum(jnp.sin(out if stream == "image" else jnp.where((WORDS == 0)[..., None], 0, out)))

    x = {"image": TOKENS["image"].x, "text": TOKENS["text"].x, "cls": TOKENS["image"].cls}
    for stream in ("image", "text"):
        reach = jax.tree.map(lambda g: np.abs(g).max(-1), jax.jit(jax.grad(predicted), static_argnums=1)(x, stream))
        assert (reach["image"] > 1e-6).all() and (reach["cls"] > 1e-6).all()
        assert reach["text"][0, 2] == 0  # word 4 of the first sample is a pad
        assert (reach["text"][0, :2] > 1e-6).all() and (reach["text"][1] > 1e-6).all()


def test_projections_are_shared_or_one_per_stream():
    def names(**kwargs):
        return {p.split("/")[0] for p in flatten(random_parameters(decoder(**kwargs).init, TOKENS, KEPT, WORDS == 0))}

    shared = {"project", "trunk", "norm"}
    streams = {f"{part}_{stream}" for part in ("mask", "modality", "predict") for stream in ("image", "text")}
    assert names() == shared | streams
    assert names(projection="per_stream") == shared - {"project"} | {"project_image", "project_text"} | streams
    assert names(text=None) == shared | {"mask_image", "predict_image"}
    with pytest.raises(ValueError, match=r"^unknown projection 'none'; valid: shared, per_stream$"):
        names(projection="none")
