"""Answering: targets, both fusions, weights of any pretrained objective by path, what the loss counts."""

import re

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


ONE_ENCODER = {k: v for k, v in JOINT.items() if k.endswith("_tower") and v} | dict(pool="gap")
DECODER = dict(fusion="decoder", fusion_tower=None, decoder_tower=models.DECODER)


@pytest.mark.parametrize("pretrained, changes, fresh", [
    ("clip", {}, "fuse"), ("mae_clip", {}, "fuse"), ("m3ae", ONE_ENCODER, "fuse"), ("m3ae", JOINT, ""),
    ("mae_clip", DECODER, ""), ("m3ae", ONE_ENCODER | DECODER, ""),
])  # fmt: skip
def test_towers_of_pretraining_load_by_path(pretrained, changes, fresh):
    mine = flatten(models.parameters(build(**changes)))
    theirs = flatten(models.parameters(models.build(pretrained)))
    towers = [p for p in theirs if p.split("/")[0] in ("image", "text", "image_text")]
    assert towers and all(mine[p].shape == theirs[p].shape for p in towers)
    assert {p.split("/")[0] for p in mine if p not in theirs} == {"head", fresh} - {""}
    if changes.get("fusion") == "decoder":
        taken = {p for p in mine if p.startswith("decoder/")}
        assert taken == {p for p in theirs if p.startswith("decoder/") and not re.search("/(predict|mask)_", p)}
        assert all(mine[p].shape == theirs[p].shape for p in taken)


def test_the_decoder_makes_of_visible_tokens_what_it_made_in_pretraining():
    """The same weights on the same tokens: its heads on ours give the predictions of a pass that hides nothing."""
    pretrained = models.build("mae_clip", mask=dict(image=0.0, text=0.0))
    theirs = models.parameters(pretrained)
    module = build(**DECODER)
    mine = flatten(models.parameters(module))
    params = unflatten({p: flatten(theirs).get(p, x) for p, x in mine.items()})
    out = module.apply({"params": params}, BATCH, method="encode")

    def predicted(self, batch):
        return self._predict(self._inputs(batch), self.draw(batch, train=False))[0]

    want = pretrained.apply({"params": theirs}, BATCH, rngs={"mask": jax.random.key(0)}, method=predicted)
    for stream, tokens in out.items():
        head = theirs["decoder"][f"predict_{stream}"]
        got = tokens.x @ head["kernel"] + head["bias"][None, None]
        real = np.ones(got.shape[:2], bool) if tokens.pad is None else ~np.asarray(tokens.pad)
        np.testing.assert_allclose(np.asarray(got)[real], np.asarray(want[stream])[real], atol=2e-5)


def test_targets_are_scores_at_their_ids():
    target = vqa.targets(jnp.asarray(BATCH["answer"]), jnp.asarray(BATCH["score"]), 5)
    want = [[0, 1, 0, 1 / 3, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 2 / 3]]
    np.testing.assert_allclose(target, want, atol=1e-6)


@pytest.mark.parametrize("kind, smoothing, train", [
    ("softmax", 0.0, True), ("softmax", 0.2, True), ("softmax", 0.2, False), ("sigmoid", 0.0, True),
])  # fmt: skip
def test_loss_is_what_numpy_says(kind, smoothing, train):
    module = build(loss=kind, label_smoothing=smoothing)
    params = models.parameters(module)
    loss, metrics = module.apply({"params": params}, BATCH, train=train)
    z = np.asarray(module.apply({"params": params}, BATCH, method="answer"), np.float64)
    t = np.asarray(vqa.targets(jnp.asarray(BATCH["answer"]), jnp.asarray(BATCH["score"]), 5), np.float64)
    if kind == "softmax":
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        rows = [0, 1, 3]  # the third has no answer in the vocabulary
        spread = smoothing if train else 0.0
        target = [(1 - spread) * t[i] / t[i].sum() + spread / 5 for i in rows]
        want = np.mean([-(target[n] * log_p[i]).sum() for n, i in enumerate(rows)])
    else:
        p = 1 / (1 + np.exp(-z))
        want = np.mean(-(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], 100 * np.mean(t[np.arange(4), z.argmax(1)]), rtol=1e-5)
    assert metrics["answerable"] == 75


@pytest.mark.parametrize(
    "changes", [{}, ONE_ENCODER, JOINT, DECODER], ids=["fresh", "fresh over one encoder", "joint", "decoder"]
)
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


@pytest.mark.parametrize("changes", [{}, DECODER], ids=["fresh", "decoder"])
def test_padding_of_a_question_changes_nothing(changes):
    module = build(**changes)
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
    (dict(fusion="late"), "unknown fusion 'late'; valid: fresh, decoder, joint"),
    (dict(fusion="joint"), "fusion 'joint' needs one encoder of pictures and words, as M3AE's; valid: fresh, decoder"),
    (dict(fusion="decoder"), "fusion 'decoder' needs the decoder_tower of pretraining; without one, valid: fresh"),
    (dict(loss="l2"), "unknown loss 'l2'; valid: softmax, sigmoid"),
    (dict(answers=0), "model.answers is 0"),
    (dict(loss="sigmoid", label_smoothing=0.1), "label_smoothing is of loss='softmax', not of 'sigmoid'; valid with "),
    (dict(pool="map"), "pool 'map' has parameters"),
])  # fmt: skip
def test_mistakes_are_named(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        jax.eval_shape(lambda: build(**changes).init(jax.random.key(0), BATCH, train=True))
