"""A model as an object: what it says is what its objective computes, whatever number of things it is asked about."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from maeclip_jax import api
from maeclip_jax.api import load
from maeclip_jax.errors import UserError
from maeclip_jax.evals import saliency

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
TEXTS = ["a red square", "two blue discs", "a cross", "a large ring", "a star", "a green square and a red disc"]


@functools.cache
def model(objective: str = "mae_clip", **settings) -> api.Model:
    """Fresh weights of the smallest size, on two devices."""
    source = f"experiments/{objective}.py:runlocal"
    return load(source, dict(settings), devices=jax.devices()[:2], batch_size=4)


def direct(made, method: str, batch: dict, *args):
    """What the objective gives on all rows at once, without a model around it."""
    with jax.set_mesh(made.mesh):
        return jax.device_get(
            jax.jit(lambda p, b: made.objective.apply({"params": p}, b, *args, method=method))(made.params, batch)
        )


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_embeddings_are_the_objective_s_in_batches_and_alone():
    made = model()
    ids = made.preprocess.texts(TEXTS)
    expected = direct(made, "embed", {"image": PICTURES, "text": ids})
    found = made.embed(PICTURES, TEXTS)
    assert found["image"].shape == found["text"].shape == (6, 32)
    jax.tree.map(close, found, expected)
    for i in (0, 5):
        alone = made.embed(Image.fromarray(PICTURES[i]), TEXTS[i])
        close(alone["image"], expected["image"][i])
        close(alone["text"], expected["text"][i])
    assert set(made.embed(texts=TEXTS[:1])) == {"text"} and made.embed(texts=TEXTS[:1])["text"].shape == (1, 32)
    close(made.similarity(PICTURES[:3], TEXTS), expected["image"][:3] @ expected["text"].T)
    assert refused(made.embed) == "nothing was given; valid: images=..., texts=..., or both"


def test_few_programs_serve_any_number_of_rows(monkeypatch):
    made, traced, similarity = model(), [], saliency.similarity
    monkeypatch.setattr(saliency, "similarity", lambda *args: traced.append(args[2].shape) or similarity(*args))
    maps = [made.similarity_map(PICTURES[:n], "a red square") for n in (1, 2, 3, 4, 5, 6)]
    assert sorted({s[0] for s in traced}) == [2, 4] and len(traced) == 2  # 1 row on two devices is 2
    for found in maps:
        close(found, maps[-1][: len(found)])


def test_tokens_are_the_unmasked_ones():
    made = model()
    ids = made.preprocess.texts(TEXTS)
    expected = direct(made, "encode", {"image": PICTURES, "text": ids})
    found = made.tokens(PICTURES, TEXTS)
    close(found["image"].x, expected["image"].x)
    close(found["text"].x, expected["text"].x)
    np.testing.assert_array_equal(found["text"].pad, ids == 0)
    assert made.tokens(PICTURES[0])["image"].x.shape == (16, 32)
    text = "5 pictures and 6 texts do not pair up: give as many of one as of the other"
    assert refused(made.tokens, PICTURES[:5], TEXTS) == text


def test_a_joint_encoder_reads_pairs_together():
    made = model("m3ae")
    together = made.tokens(PICTURES[:2], TEXTS[:2])["image"].x
    assert np.abs(together - made.tokens(PICTURES[:2])["image"].x).max() > 1e-3
    assert set(made.embed(PICTURES[:1], TEXTS[:3])) == {"image", "text"}  # each on its own: counts may differ


def test_features_and_zero_shot():
    made = model()
    expected = direct(made, "features", {"image": PICTURES}, ("max",))
    close(made.features(PICTURES, "max"), expected["max"])
    assert refused(made.features, PICTURES, "maxx").startswith("unknown pool 'maxx'; valid: gap, max, cls, ")
    names = ["red square", "orange disc", "star"]
    share = made.classify(PICTURES, names, ["{a} {}"])
    z = made.embed(PICTURES, ["a red square", "an orange disc", "a star"])
    logits = np.exp(np.asarray(made.params["log_logit_scale"])) * z["image"] @ z["text"].T
    close(share, jax.nn.softmax(logits, axis=-1))
    assert made.classify(PICTURES[0], names).shape == (3,)
    assert refused(made.classify, PICTURES, "red square") == "classes are a list of two names or more"
    assert refused(made.classify, PICTURES, names, "pohtos").startswith("unknown prompt templates 'pohtos'")


def test_maps_stand_where_the_patches_are():
    made = model()
    z_QxE = made.embed(texts=TEXTS)["text"]
    dense = direct(made, "dense", {"image": PICTURES})["image"]
    expected = np.einsum("bne,qe->bqn", dense, z_QxE).reshape(6, 6, 4, 4)
    close(made.similarity_map(PICTURES, TEXTS), expected)
    close(made.similarity_map(PICTURES[1], TEXTS[2]), expected[1, 2])
    close(made.similarity_map(list(PICTURES), TEXTS[2]), expected[:, 2])
    assert made.rollout(PICTURES).shape == (6, 4, 4)
    np.testing.assert_allclose(made.rollout(PICTURES[0]).sum(), 1, rtol=1e-4)


def test_gradcam_weighs_what_the_pooling_reads(caplog):
    made = model()
    z_QxE = made.embed(texts=TEXTS[:2])["text"]
    with jax.set_mesh(made.mesh):
        text = np.broadcast_to(z_QxE, (6, *z_QxE.shape))
        expected = saliency.gradcam(made.objective, made.params, PICTURES, text, block=2).reshape(6, 2, 4, 4)
    close(made.gradcam(PICTURES, TEXTS[:2]), expected)
    assert np.abs(made.gradcam(PICTURES, TEXTS[:2], block=-1) - expected).max() > 1e-5
    token = load("experiments/clip.py:runlocal,pool=cls", devices=jax.devices()[:1])
    assert token.gradcam(PICTURES[0], TEXTS[0]).max() > 0  # leaving the final norm, no patch has a say in a class token
    caplog.clear()
    assert token.gradcam(PICTURES[0], TEXTS[0], block=2).max() == 0
    assert caplog.messages == [
        "gradcam: 1 of 1 maps are 0 everywhere: with pool=own and block=2 no patch raises the cosine of picture and "
        "text by more than rounding"
    ]
    assert refused(made.gradcam, PICTURES, TEXTS[0], block=7).startswith("no block 7 in the image tower; valid: 0 to 1")


def test_an_overlay_is_a_picture(caplog):
    made = model()
    shown = made.overlay(PICTURES[0], np.eye(4), side=64)
    assert shown.size == (64, 64) and np.asarray(shown)[4, 4].sum() > np.asarray(shown)[4, 60].sum()
    assert not caplog.messages
    rounding = 0.3 + 1e-8 * RNG.standard_normal((4, 4))
    dark = made.overlay(PICTURES[0], np.zeros((4, 4)), side=64)
    np.testing.assert_array_equal(made.overlay(PICTURES[0], rounding, side=64), dark)
    assert caplog.messages == ["overlay: the map is flat; its values differ by rounding only"] * 2
    assert refused(made.overlay, PICTURES[0], np.eye(4)[None]).startswith("a map to lay over a picture is [h, w], not")


def test_reconstruction_hides_what_it_is_told_to():
    made = model()
    found = made.reconstruct(PICTURES[:2], TEXTS[:2], keep={"image": 0.25, "text": 1.0}, seed=1)
    for one, true in zip(found, PICTURES):
        assert one.image_mask.sum() == 12
        hidden = one.image_mask.reshape(4, 4).repeat(8, 0).repeat(8, 1)
        np.testing.assert_array_equal(one.original, true)
        np.testing.assert_array_equal(one.image[~hidden], true[~hidden])
        assert (one.masked[hidden] == 128).all() and (one.image[hidden] != true[hidden]).any()
    assert [w["true"] for w in found[0].tokens] == ["a", "red", "square"] and found[0].caption == "a red square"
    again = made.reconstruct(PICTURES[0], TEXTS[0], keep=1.0)
    np.testing.assert_array_equal(again.image, PICTURES[0])
    assert (
        made.reconstruct(PICTURES[0], TEXTS[0]).image_mask.sum() == 16 * made.config.model.mask.image
    )  # as in training
    assert "[" in made.reconstruct(PICTURES[0], TEXTS[5], keep=0.2).caption
    assert found[0].show(3).size == (3 * 96 + 8, 96)
    assert not np.array_equal(made.reconstruct(PICTURES[0], TEXTS[0], seed=5).image_mask, found[0].image_mask)
    assert refused(made.reconstruct, PICTURES[0]) == "mae_clip reconstructs image and text: give texts, too"
    assert refused(made.reconstruct, PICTURES[0], TEXTS[0], keep=0).startswith(
        "keep image=0: valid are shares in (0, 1]"
    )


def test_a_table_larger_than_the_vocabulary_fills_in_words_of_the_vocabulary():
    """As of a run that was made before the table followed the tokenizer's file."""
    made = model(**{"model.text_tower.vocab": 4000})
    known = set(made.preprocess.tokenizer._vocab)
    filled = [w["filled"] for one in made.reconstruct(PICTURES, TEXTS, keep=0.2) for w in one.tokens if "filled" in w]
    assert filled and set(filled) <= known
    context, ids = made._context, made.preprocess.texts(TEXTS)
    with jax.set_mesh(made.mesh):
        evaluated = context.reconstruct(made.params, {"image": PICTURES, "text": ids}, 0)["text"]
    assert evaluated.max() < len(known)


def test_what_an_objective_cannot_is_one_line_that_names_who_can():
    mae, clip = model("mae"), model("clip")
    refusals = {
        "similarity_map is not to be had of 'mae': this objective has no space that pictures and texts share; "
        "objectives that can: clip, mae_clip": lambda: mae.similarity_map(PICTURES, "a"),
        "gradcam is not to be had of 'mae'": lambda: mae.gradcam(PICTURES, "a"),
        "classify is not to be had of 'mae'": lambda: mae.classify(PICTURES, ["a", "b"]),
        "similarity is not to be had of 'mae'": lambda: mae.similarity(PICTURES, "a"),
        "reconstruct is not to be had of 'clip': this objective has no decoder; objectives that can: mae, m3ae, "
        "mae_clip": lambda: clip.reconstruct(PICTURES, TEXTS),
        "answer is not to be had of 'clip': this objective answers no questions; objectives that can: vqa": (
            lambda: clip.answer(PICTURES, TEXTS)
        ),
        "this model reads no text": lambda: mae.embed(texts="a"),
    }
    for start, call in refusals.items():
        assert refused(call).startswith(start)
    assert mae.reconstruct(PICTURES[0]).caption == "" and mae.rollout(PICTURES).shape == (6, 4, 4)
    assert set(mae.embed(PICTURES)) == {"image"}


def test_answers_are_words_of_the_vocabulary():
    made = model("vqa", **{"model.answers": 3})
    assert made.answer(PICTURES[0], "what is it?") in ("answer 0", "answer 1", "answer 2")
    made.names["answer"] = ["yes", "no", "red"]
    logits = direct(made, "answer", {"image": PICTURES, "text": made.preprocess.texts(TEXTS)})
    assert made.answer(PICTURES, TEXTS) == [["yes", "no", "red"][i] for i in logits.argmax(-1)]
