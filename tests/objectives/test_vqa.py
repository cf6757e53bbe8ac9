"""Answering: targets, both fusions, weights of any pretrained objective by path, what the loss counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.objectives import vqa
from maeclip_jax.params import flatten, unflatten
from tests.objectives import models

BATCH = models.BATCH


def build(**changes):
    return models.build("vqa", **changes)


JOINT = dict(
    fusion="joint", fusion_tower=None, image_tower=models.MODELS["m3ae"]["image_tower"],
    text_tower=models.MODELS["m3ae"]["text_tower"],
)  # fmt: skip


@pytest.mark.parametrize("pretrained, changes", [("clip", {}), ("mae_clip", {}), ("m3ae", JOINT)])
def test_towers_of_pretraining_load_by_path(pretrained, changes):
    mine = flatten(models.parameters(build(**changes)))
    theirs = flatten(models.parameters(models.build(pretrained)))
    towers = [p for p in theirs if p.split("/")[0] in ("image", "text", "image_text")]
    assert towers and all(mine[p].shape == theirs[p].shape for p in towers)
    assert {p.split("/")[0] for p in mine if p not in theirs} == ({"head"} if changes else {"head", "fuse"})


def test_targets_are_scores_at_their_ids():
    target = vqa.targets(jnp.asarray(BATCH["answer"]), jnp.asarray(BATCH["score"]), 5)
    want = [[0, 1, 0, 1 / 3, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 2 / 3]]
    np.testing.assert_allclose(target, want, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_loss_is_what_numpy_says(kind):
    module = build(loss=kind)
    params = models.parameters(module)
    loss, metrics = module.apply({"params": params}, BATCH, train=True)
    z = np.asarray(module.apply({"params": params}, BATCH, method="answer"), np.float64)
    t = np.asarray(vqa.targets(jnp.asarray(BATCH["answer"]), jnp.asarray(BATCH["score"]), 5), np.float64)
    if kind == "softmax":
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        rows = [0, 1, 3]  # the third has no answer in the vocabulary
        want = np.mean([-(t[i] / t[i].sum() * log_p[i]).sum() for i in rows])
    else:
        p = 1 / (1 + np.exp(-z))
        want = np.mean(-(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], 100 * np.mean(t[np.arange(4), z.argmax(1)]), rtol=1e-5)
    assert metrics["answerable"] == 75


@pytest.mark.parametrize("changes", [{}, JOINT], ids=["towers", "joint"])
def test_the_answer_hears_both_picture_and_question(changes):
    module = build(**changes)
    params = models.parameters(module)

    def answer(batch):
        return np.asarray(module.apply({"params": params}, batch, method="answer"))

    first = answer(BATCH)
    for stream in ("image", "text"):
        assert np.abs(answer(BATCH | {stream: BATCH[stream][::-1].copy()}) - first).max() > 1e-4
    # Fusion: what the picture says of a question depends on the question.
    tokens = {k: module.apply({"params": params}, b, method="encode")["image"].x for k, b in
              {"a": BATCH, "b": BATCH | {"text": BATCH["text"][::-1].copy()}}.items()}  # fmt: skip
    assert np.abs(tokens["a"] - tokens["b"]).max() > 1e-5


def test_padding_of_a_question_changes_nothing():
    module = build()
    params = models.parameters(module)
    text = np.array(BATCH["text"])
    assert (text == 0).any()
    flat = flatten(params)
    table = next(p for p in flat if p.endswith("token/embedding"))
    first, second = (
        models.apply(
            module, unflatten(flat | {table: jnp.asarray(flat[table]).at[0].set(value)}), BATCH, method="answer"
        )
        for value in (0.0, 7.0)  # of the embedding of padding, which must not be heard
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("changes, words", [
    (dict(fusion="late"), "unknown fusion 'late'; valid: joint, towers"),
    (dict(loss="l2"), "unknown loss 'l2'; valid: softmax, sigmoid"),
    (dict(answers=0), "model.answers is 0"),
    (dict(pool="map"), "pool 'map' has parameters"),
])  # fmt: skip
def test_mistakes_are_named(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        jax.eval_shape(lambda: build(**changes).init(jax.random.key(0), BATCH, train=True))
