"""MAE and M3AE: the loss recomputed in float64 from what was predicted, and what may reach a prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn import pixels
from maeclip_jax.objectives.reconstruction import draw_masks, reconstruction_losses
from maeclip_jax.params import flatten
from tests.objectives import models

BATCH = models.BATCH


def targets(stats, norm_pix):
    """Patches as MAE predicts them, in float64."""
    mean, std = (np.asarray(v, np.float64) for v in pixels.STATS[stats])
    x = (BATCH["image"] / 255.0 - mean) / std
    patches = x.reshape(4, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 16, 48)
    if norm_pix:
        deviation = np.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)
        patches = (patches - patches.mean(-1, keepdims=True)) / deviation
    return patches


def image_loss(out, stats, norm_pix):
    error = ((out["predicted"]["image"].astype(np.float64) - targets(stats, norm_pix)) ** 2).mean(-1)
    return error[out["reconstruct"]["image_mask"]].mean()


def text_loss(out):
    logits, text = out["predicted"]["text"].astype(np.float64), BATCH["text"]
    entropy = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, text[..., None], -1)[..., 0]
    counted = out["reconstruct"]["text_mask"] & (text != 0)
    return np.mean([e[c].mean() if c.any() else 0.0 for e, c in zip(entropy, counted)])


@pytest.mark.parametrize("norm_pix, stats", [(True, "imagenet"), (False, "clip")])
def test_mae_s_loss_in_float64(norm_pix, stats):
    module = models.build("mae", norm_pix=norm_pix, stats=stats)
    out = models.outputs(module, models.parameters(module))
    assert float(out["loss"]) == pytest.approx(image_loss(out, stats, norm_pix), rel=1e-4)
    assert set(out["metrics"]) == {"image"}
    assert out["reconstruct"]["image_mask"].sum(1).tolist() == [12] * 4
    assert set(out["reconstruct"]) == {"image", "image_mask"}


def test_m3ae_s_loss_in_float64():
    module = models.build("m3ae")
    out = models.outputs(module, models.parameters(module))
    image, text = image_loss(out, "imagenet", False), text_loss(out)
    assert float(out["metrics"]["image"]) == pytest.approx(image, rel=1e-4)
    assert float(out["metrics"]["text"]) == pytest.approx(text, rel=1e-4)
    assert float(out["loss"]) == pytest.approx(image + 0.5 * text, rel=1e-4)
    shown = out["reconstruct"]
    assert shown["text_mask"].sum(1).tolist() == [4] * 4
    np.testing.assert_array_equal(shown["text"], out["predicted"]["text"].argmax(-1))
    right = (shown["text"] == BATCH["text"])[shown["text_mask"] & (BATCH["text"] != 0)]
    assert float(out["metrics"]["text_accuracy"]) == pytest.approx(100 * right.mean())


def blank(picture, mask):
    """Pictures with the patches of `mask` [B, 16] painted over."""
    big = mask.reshape(4, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]
    return np.where(big, 255 - picture, picture)


@pytest.mark.parametrize("name", ["m3ae", "mae_clip"])
def test_nothing_masked_reaches_a_prediction(name):
    module = models.build(name)
    params = models.parameters(module)
    out = models.outputs(module, params)
    image_mask, text_mask = out["reconstruct"]["image_mask"], out["reconstruct"]["text_mask"]
    words = np.where(text_mask & (BATCH["text"] != 0), 1 + BATCH["text"] % 12, BATCH["text"])
    hidden = models.outputs(module, params, dict(image=blank(BATCH["image"], image_mask), text=words))
    jax.tree.map(np.testing.assert_array_equal, hidden["predicted"], out["predicted"])
    assert hidden["loss"] != out["loss"]  # but they are what is predicted
    for changed in (
        dict(BATCH, image=blank(BATCH["image"], ~image_mask)),
        dict(BATCH, text=np.where(~text_mask & (BATCH["text"] != 0), 1 + BATCH["text"] % 12, BATCH["text"])),
    ):
        seen = models.outputs(module, params, changed)
        for stream in ("image", "text"):  # either modality helps to fill in both
            assert (np.abs(seen["predicted"][stream] - out["predicted"][stream]).max((1, 2)) > 1e-5).all()


def test_pads_that_are_kept_help_nobody():
    module = models.build("m3ae")
    params = models.parameters(module)
    grads = jax.jit(jax.grad(lambda p: models.apply(module, p, BATCH, train=True, seed=0)[0]))(params)
    table = np.abs(grads["image_text"]["embed_text"]["token"]["embedding"]).max(-1)
    assert table[0] == 0 and (table > 0).sum() > 3


def test_reconstructions_undo_the_normalisation():
    for norm_pix in (True, False):
        module = models.build("mae", norm_pix=norm_pix)
        shown = models.outputs(module, models.parameters(module))
        patches = shown["predicted"]["image"].astype(np.float64)
        if norm_pix:
            own = targets("imagenet", False)
            patches = patches * np.sqrt(own.var(-1, keepdims=True, ddof=1) + 1e-6) + own.mean(-1, keepdims=True)
        picture = patches.reshape(4, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 16, 16, 3)
        mean, std = (np.asarray(v) for v in pixels.STATS["imagenet"])
        want = np.clip((picture * std + mean) * 255, 0, 255)
        np.testing.assert_allclose(shown["reconstruct"]["image"], want, atol=0.01)


def test_a_mask_is_a_function_of_its_seed():
    module = models.build("mae")
    params = models.parameters(module)
    one, again, other = (models.outputs(module, params, seed=s)["reconstruct"]["image_mask"] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_streams_draw_their_masks_independently():
    inputs = {"image": np.zeros((8, 12, 3)), "text": np.zeros((8, 12), np.int32)}  # one length: equal noise would show
    kept = draw_masks(jax.random.key(0), inputs, dict(image=0.5, text=0.5), "sample")
    assert (np.asarray(kept["image"].mask_BxN) != np.asarray(kept["text"].mask_BxN)).any(1).all()
    alone = draw_masks(jax.random.key(0), {"image": inputs["image"]}, dict(image=0.5), "sample")
    np.testing.assert_array_equal(alone["image"].mask_BxN, kept["image"].mask_BxN)
    shared = draw_masks(jax.random.key(0), inputs, dict(image=0.75, text=0.5), "batch")
    assert np.asarray(shared["image"].mask_BxN).sum(1).tolist() == [9] * 8
    assert len({row.tobytes() for row in np.asarray(shared["text"].mask_BxN)}) == 1


@pytest.mark.parametrize("name", ["m3ae", "mae_clip"])
def test_a_caption_may_be_made_to_show_a_word(name):
    """Captions of 8, 5, 3 and 1 words, of which 3 in 4 are hidden: by default some show none."""
    hidden = {}
    for words in ("any", "one"):
        module = models.build(name, mask_words=words, mask=dict(image=0.75, text=0.75))
        params = models.parameters(module)
        masks = [models.outputs(module, params, seed=seed)["reconstruct"]["text_mask"] for seed in range(20)]
        real = models.BATCH["text"] != 0
        hidden[words] = [bool((mask | ~real).all(1).any()) for mask in masks]
    assert any(hidden["any"]) and not any(hidden["one"])


def test_patches_may_count_by_their_variance():
    """The loss then is the error of the pixels that a prediction stands for, in units of `stats`."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 4, 12)) * np.array([0.01, 1, 2, 3])[:, None] + rng.normal(size=(2, 4, 1))
    inputs, guess = {"image": jnp.asarray(image)}, {"image": jnp.asarray(rng.normal(size=(2, 4, 12)))}
    kept = draw_masks(jax.random.key(1), inputs, dict(image=0.5), "sample")
    loss = {w: float(reconstruction_losses(guess, inputs, kept, True, w)["image"]) for w in ("one", "variance")}
    mean, std = image.mean(-1, keepdims=True), np.sqrt(image.var(-1, keepdims=True, ddof=1) + 1e-6)
    mask = np.asarray(kept["image"].mask_BxN)
    pixels = (np.asarray(guess["image"]) * std + mean - image)[mask]
    assert loss["variance"] == pytest.approx(np.mean(pixels**2), rel=1e-5)
    assert loss["one"] == pytest.approx(np.mean((pixels / std[mask]) ** 2), rel=1e-5) != loss["variance"]


def test_inputs_and_parameters():
    mae, m3ae = models.build("mae"), models.build("m3ae")
    assert {k: (v.shape, v.dtype) for k, v in mae.inputs().items()} == {"image": ((16, 16, 3), np.uint8)}
    assert {k: v.shape for k, v in m3ae.inputs().items()} == {"image": (16, 16, 3), "text": (8,)}
    assert {p.split("/")[0] for p in flatten(models.parameters(mae))} == {"image", "decoder"}
    assert {p.split("/")[0] for p in flatten(models.parameters(m3ae))} == {"image_text", "decoder"}
    assert (mae.streams, mae.contrastive, mae.generative) == (("image",), False, True)


def test_an_attention_pool_exists_before_a_probe_wants_it():
    tower = models.MODELS["mae"]["image_tower"] | dict(pool="map")
    found = flatten(models.parameters(models.build("mae", image_tower=tower)))
    assert "image_pool/map/probe" in found
    text = models.MODELS["m3ae"]["text_tower"] | dict(pool="map")
    assert "text_pool/map/probe" in flatten(models.parameters(models.build("m3ae", text_tower=text)))


def refused(name, text, batch=BATCH, **changes):
    module = models.build(name, **changes)
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(lambda rng: module.init({"params": rng, "mask": rng}, batch, train=True), jax.random.key(0))


def test_what_does_not_fit_is_refused():
    tower = models.MODELS["mae"]["image_tower"]
    refused(
        "mae",
        r"^image_tower.pool is cls but image_tower.cls is False: there is no class token to take$",
        image_tower=tower | dict(cls=False),
    )
    refused("mae", r"^unknown pool 'mean'; valid: gap, max, ", image_tower=tower | dict(pool="mean"))
    refused("mae", r"^mask ratio must lie in \[0, 1\), got 1.0$", mask=dict(image=1.0))
    refused("mae", r"^unknown share 'all'; valid: sample, batch$", mask_share="all")
    refused("m3ae", r"^unknown mask_words 'all'; valid: any, one$", mask_words="all")
    refused("mae", r"^unknown patch_weight 'all'; valid: one, variance$", patch_weight="all")
    refused("mae", r"^patch_weight=variance is of targets that norm", patch_weight="variance", norm_pix=False)
    refused("mae", r"^unknown pixel statistics 'coco'; valid: cc12m, ", stats="coco")
    small = {"image": np.zeros((4, 12, 16, 3), np.uint8)}
    refused("mae", r"^pictures are 12x16, the image tower takes 16x16$", batch=small)
