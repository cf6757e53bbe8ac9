"""Masked reconstruction as functions: which tokens are hidden, what is lost, and what was filled in to look at."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from maeclip_jax.nn import pixels
from maeclip_jax.nn.mask import Kept, draw_noise, hidden_ids, keep_by, keep_count, take
from maeclip_jax.objectives import losses

WORDS = ("any", "one")  # what a caption shows of its words in a masked pass
WEIGHTS = ("one", "variance")  # what a masked patch counts
# Metric of a reconstruction -> (unit, which direction is better).
UNITS = {
    "loss": ("", "lower"), "image": ("MSE of targets", "lower"), "text": ("nats per word", "lower"),
    "text_accuracy": ("%", "higher"),
}  # fmt: skip


def mask_noise(rng: jax.Array, tokens: Mapping[str, int], batch: int, share: str) -> dict[str, jax.Array]:
    """Per stream, what `masks` decides by: [batch or 1, tokens]; streams draw independently."""
    return {
        stream: draw_noise(jax.random.fold_in(rng, i), batch, length, share)
        for i, (stream, length) in enumerate(sorted(tokens.items()))
    }


def masks(
    noise: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array], ratio: Mapping, words: str = "any"
) -> dict[str, Kept]:
    """Per stream, which tokens are kept. `noise`: of `mask_noise`. `ratio`: stream -> share masked out.

    `words`: any (a short caption may show none of its words, since padding is kept and dropped like them: M3AE) | one
    (a caption shows one at least). ValueError for another.
    """
    if words not in WORDS:
        raise ValueError(f"unknown mask_words {words!r}; valid: {', '.join(WORDS)}")
    kept = {}
    for stream, x in inputs.items():
        batch, length = x.shape[:2]
        keep, one_of = keep_count(length, ratio[stream]), x != 0 if stream == "text" and words == "one" else None
        kept[stream] = keep_by(noise[stream], batch, keep, one_of)
    return kept


def reconstruction_errors(
    predicted: Mapping[str, jax.Array],
    inputs: Mapping[str, jax.Array],
    kept: Mapping[str, Kept],
    norm_pix: bool,
    patch_weight: str = "one",
) -> dict[str, tuple[jax.Array, ...]]:
    """What `reconstruction_losses` needs of each sample: {"image": (error, masked), "text": (entropy, right, masked)},
    each [B].

    `predicted`: every patch [B, N, P], and the masked words alone [B, M, V].
    `patch_weight`, with `norm_pix`: one (each masked patch counts the same: MAE) | variance (as much as its variance:
    the error of the pixels that the prediction stands for, so that a patch of nothing but grain counts for little).
    ValueError for another word, or for weights of targets that are not normalised.
    """
    if patch_weight not in WEIGHTS:
        raise ValueError(f"unknown patch_weight {patch_weight!r}; valid: {', '.join(WEIGHTS)}")
    if patch_weight == "variance" and not norm_pix:
        raise ValueError("patch_weight=variance is of targets that norm_pix normalises; valid without it: one")
    out = {}
    if "image" in predicted:
        target, guess = inputs["image"], predicted["image"]
        if norm_pix:
            target, _, std_BxNx1 = losses.patch_normalise(target)
            if patch_weight == "variance":
                target, guess = target * std_BxNx1, guess * std_BxNx1
        out["image"] = losses.image_errors(guess, target, kept["image"].mask_BxN)
    if "text" in predicted:
        words_BxM = take(inputs["text"], hidden_ids(kept["text"]))
        out["text"] = losses.text_errors(predicted["text"], words_BxM, jnp.ones(words_BxM.shape, bool), words_BxM == 0)
    return out


def reconstruction_losses(errors: Mapping[str, tuple[jax.Array, ...]]) -> dict[str, jax.Array]:
    """{"image": MSE on masked patches, "text": CE on masked words, "text_accuracy": percent} of the whole batch."""
    out = {}
    if "image" in errors:
        out["image"] = losses.of_image_errors(*errors["image"])
    if "text" in errors:
        out["text"], out["text_accuracy"] = losses.of_text_errors(*errors["text"])
    return out


def filled_in(
    predicted, inputs, kept, *, norm_pix: bool, stats: str, patch: int, size: int, words: int | None = None
) -> dict[str, jax.Array]:
    """Predictions as things to look at: `image` [B, H, W, 3] float in 0..255 as predicted everywhere (per-patch
    normalisation undone with the target's own mean and deviation, as MAE's pictures are made), `image_mask` [B, N],
    `text` [B, T] most likely words, among the first `words` ids (None: all of the table, which may have more entries
    than the tokenizer has words), `text_mask` [B, T]."""
    out = {}
    if "image" in predicted:
        x_BxNxP = predicted["image"]
        if norm_pix:
            _, mean, std = losses.patch_normalise(inputs["image"])
            x_BxNxP = x_BxNxP * std + mean
        out["image"] = pixels.denormalise(pixels.unpatchify(x_BxNxP, patch, size, size), stats)
        out["image_mask"] = kept["image"].mask_BxN
    if "text" in predicted:
        out["text"] = jnp.argmax(predicted["text"][..., :words], axis=-1).astype(jnp.int32)
        out["text_mask"] = kept["text"].mask_BxN
    return out
