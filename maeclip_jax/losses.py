"""Losses as pure functions of logits or predictions and masks, in float32, on the GLOBAL batch.

Write them as for one device; under jit the compiler shards them ([B/n, B] logits, all-gathered embeddings).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def contrastive_softmax(image_BxD: jax.Array, text_BxD: jax.Array, log_scale: jax.Array) -> tuple[jax.Array, dict]:
    """CLIP's loss: mean of both cross entropies over the global batch (Radford et al. 2021, figure 3).

    Embeddings are L2-normalised; `log_scale` is the log of the inverse temperature. Returns (loss, metrics) with
    in-batch top-1 both ways in percent.
    """
    scale = jnp.exp(log_scale)
    logits_BxB = scale * jnp.dot(image_BxD, text_BxD.T, preferred_element_type=jnp.float32)
    positive_B = scale * jnp.sum(image_BxD * text_BxD, axis=-1)
    i2t_B = jax.nn.logsumexp(logits_BxB, axis=1) - positive_B
    t2i_B = jax.nn.logsumexp(logits_BxB, axis=0) - positive_B
    loss = (jnp.mean(i2t_B) + jnp.mean(t2i_B)) / 2
    return loss, _in_batch_top1(logits_BxB)


def contrastive_sigmoid(
    image_BxD: jax.Array, text_BxD: jax.Array, log_scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, dict]:
    """SigLIP's loss: a binary decision per pair, summed over pairs, divided by the batch (Zhai et al. 2023)."""
    logits_BxB = jnp.exp(log_scale) * jnp.dot(image_BxD, text_BxD.T, preferred_element_type=jnp.float32) + bias
    sign_BxB = 2 * jnp.eye(logits_BxB.shape[0], dtype=jnp.float32) - 1
    loss = -jnp.sum(jax.nn.log_sigmoid(sign_BxB * logits_BxB)) / logits_BxB.shape[0]
    return loss, _in_batch_top1(logits_BxB)


def _in_batch_top1(logits_BxB: jax.Array) -> dict:
    # The diagonal as a masked sum, not a gather: it partitions over rows without communication.
    logits_BxB = jax.lax.stop_gradient(logits_BxB)
    own_BxB = jnp.eye(logits_BxB.shape[0], dtype=bool)
    positive_B = jnp.sum(jnp.where(own_BxB, logits_BxB, 0), axis=1)
    rest_BxB = jnp.where(own_BxB, -jnp.inf, logits_BxB)
    return {  # strictly greater: a collapsed model, where all logits are equal, scores 0 and not 100
        "image_to_text_top1": 100 * jnp.mean(positive_B > jnp.max(rest_BxB, axis=1)),
        "text_to_image_top1": 100 * jnp.mean(positive_B > jnp.max(rest_BxB, axis=0)),
    }


def patch_normalise(patches_BxNxP: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(var + 1e-6) per patch, with the UNBIASED variance, and that mean and standard deviation.

    Source: facebookresearch/mae `norm_pix_loss` (torch's var, ddof 1).
    """
    mean = jnp.mean(patches_BxNxP, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.var(patches_BxNxP, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return (patches_BxNxP - mean) / std, mean, std


def reconstruction_image(predicted_BxNxP: jax.Array, target_BxNxP: jax.Array, mask_BxN: jax.Array) -> jax.Array:
    """Mean squared error per patch, averaged over masked patches only (MAE)."""
    error_BxN = jnp.mean(jnp.square(predicted_BxNxP.astype(jnp.float32) - target_BxNxP), axis=-1)
    return jnp.sum(error_BxN * mask_BxN) / jnp.maximum(jnp.sum(mask_BxN), 1)


def reconstruction_text(
    logits_BxTxV: jax.Array, text_BxT: jax.Array, mask_BxT: jax.Array, pad_BxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(cross entropy, accuracy in percent) on tokens that are masked and no padding.

    Averaged over the tokens of a sample, then over all samples (M3AE); a sample with none counts as 0.
    """
    logits_BxTxV = logits_BxTxV.astype(jnp.float32)
    true_BxT = jnp.take_along_axis(logits_BxTxV, text_BxT[..., None], axis=-1)[..., 0]
    entropy_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1) - true_BxT
    counts_BxT = mask_BxT & ~pad_BxT
    per_sample_B = jnp.sum(entropy_BxT * counts_BxT, axis=1) / jnp.maximum(jnp.sum(counts_BxT, axis=1), 1)
    right_BxT = counts_BxT & (jnp.argmax(logits_BxTxV, axis=-1) == text_BxT)
    accuracy = 100 * jnp.sum(right_BxT) / jnp.maximum(jnp.sum(counts_BxT), 1)
    return jnp.mean(per_sample_B), accuracy
