"""Losses as pure functions of logits or predictions and masks, in float32, on the GLOBAL batch.

Write them as for one device; under jit the compiler shards them ([B/n, B] logits, all-gathered embeddings).
Each has a scope of its name, by which a profile shows it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

DUPLICATES = ("negative", "positive")  # what a caption that equals a picture's own is to this picture


class Exchange(NamedTuple):
    """How columns of a contrast reach the devices that have its rows, and gradients come back.

    `dtype`: of embeddings in the product that makes logits; its sums are float32. `devices` share the rows of a batch.
    `apart(x)`: rows, each device its own. `whole(x)`: all of an array on every device. `over_rows(a_BxC, b_BxD)`:
    a^T b [C, D] in float32.
    """

    dtype: Any = jnp.float32
    devices: int = 1
    apart: Callable[[jax.Array], jax.Array] = lambda x: x
    whole: Callable[[jax.Array], jax.Array] = lambda x: x
    over_rows: Callable[[jax.Array, jax.Array], jax.Array] = functools.partial(
        jnp.einsum, "bc,bd->cd", preferred_element_type=jnp.float32
    )


AT_ONCE = Exchange()  # as for one device


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cosines(exchange: Exchange, image_BxD: jax.Array, text_CxD: jax.Array, sent_CxD: jax.Array) -> jax.Array:
    """[B, C] float32 of pictures and of `sent_CxD`, the texts on every device; `text_CxD`, the same, has the gradient.

    Left to itself the compiler sums the texts' gradient on every device.
    """
    return _cosines(exchange, image_BxD, text_CxD, sent_CxD)[0]


def _cosines(exchange, image_BxD, text_CxD, sent_CxD):
    image = image_BxD.astype(exchange.dtype)
    # Empty arrays, for the dtypes of the gradients.
    of = image_BxD[:0, :0], text_CxD[:0, :0]
    return jnp.dot(image, sent_CxD.T, preferred_element_type=jnp.float32), (image, sent_CxD, of)


def _cosines_back(exchange, saved, d_logits_BxC):
    image, text, (of_image, of_text) = saved
    d_logits_BxC = d_logits_BxC.astype(exchange.dtype)
    d_image = jnp.dot(d_logits_BxC, text, preferred_element_type=jnp.float32)
    d_text = exchange.over_rows(d_logits_BxC, image)
    return d_image.astype(of_image.dtype), d_text.astype(of_text.dtype), jnp.zeros_like(text)


cosines.defvjp(_cosines, _cosines_back)


@jax.named_scope("contrast_loss")
def contrastive_softmax(
    image_BxD: jax.Array,
    text_BxD: jax.Array,
    log_scale: jax.Array,
    parts: int = 1,
    captions_BxT: jax.Array | None = None,
    duplicates: str = "negative",
    smoothing: float = 0.0,
    exchange: Exchange = AT_ONCE,
) -> tuple[jax.Array, dict]:
    """CLIP's loss: mean of both cross entropies over the global batch (Radford et al. 2021, figure 3).

    Embeddings are L2-normalised; `log_scale` is the log of the inverse temperature. Returns (loss, metrics) with
    in-batch top-1 both ways in percent. `parts`: see `over_columns`. `exchange`: between devices, see there.
    `captions_BxT`: token ids of the texts, by which equal captions are found; with them, the metrics have `duplicates`,
    the percentage of captions of which the batch has another, less one a group. `duplicates`: negative (CLIP: a
    picture's own text is its only target) | positive (its target is spread evenly over the texts with an equal caption,
    as a text's is over their pictures; top-1 counts these on neither side). Raises ValueError for another word. Where
    equal captions have equal embeddings, as of a text tower without randomness, both give the same loss and the same
    gradients: in a group of n, picture i has the same logit for each text, and its target is that logit either way.
    What remains is a loss of log n at least, and top-1. `smoothing`: share of every target that is spread evenly over
    the whole batch (Jia et al. 2021 have 0.1).
    """
    scale, spread = jnp.exp(log_scale), _spread(duplicates, captions_BxT)
    prints = _prints(captions_BxT)
    of_rows = tuple(map(exchange.apart, prints))

    def part(text_CxD, sent, own_BxC):
        sent_CxD, of_columns = sent
        logits_BxC = scale * cosines(exchange, image_BxD, text_CxD, sent_CxD)
        same_BxC = _equal(of_rows, of_columns, own_BxC)
        right_BxC = same_BxC if spread else own_BxC
        sums = jax.nn.logsumexp(logits_BxC, axis=1), jax.nn.logsumexp(logits_BxC, axis=0)
        # Out of the same logits: one that is rounded otherwise would leave 1 - p of a fitted pair to that difference.
        targets_B = jnp.sum(jnp.where(right_BxC, logits_BxC, 0), axis=1)
        return sums, targets_B, jnp.sum(same_BxC, axis=1), own_and_best_other(logits_BxC, own_BxC, right_BxC)

    (rows_PxB, columns_PxC), targets_PxB, counts_PxB, compared = over_columns(
        part, text_BxD, parts, (text_BxD.astype(exchange.dtype), prints), exchange
    )
    counts_B, positive_B = jnp.sum(counts_PxB, axis=0), jnp.sum(targets_PxB, axis=0)
    if spread:  # the mean over texts of their pictures is this one again: all of a group have the same count
        positive_B = positive_B / counts_B
    i2t_B = jax.nn.logsumexp(rows_PxB, axis=0) - positive_B
    t2i_B = _in_order(columns_PxC) - positive_B
    loss = (jnp.mean(i2t_B) + jnp.mean(t2i_B)) / 2
    if smoothing:  # the mean of all logits is that of the two mean embeddings, both ways
        mean = scale * jnp.sum(jnp.mean(image_BxD, axis=0) * jnp.mean(text_BxD, axis=0))
        loss += smoothing * (jnp.mean(positive_B) - mean)
    return loss, _in_batch_top1(*compared) | _share_of_duplicates(captions_BxT, counts_B)


@jax.named_scope("contrast_loss")
def contrastive_sigmoid(
    image_BxD: jax.Array,
    text_BxD: jax.Array,
    log_scale: jax.Array,
    bias: jax.Array,
    parts: int = 1,
    captions_BxT: jax.Array | None = None,
    duplicates: str = "negative",
    exchange: Exchange = AT_ONCE,
) -> tuple[jax.Array, dict]:
    """SigLIP's loss: a binary decision per pair, summed over pairs, divided by the batch (Zhai et al. 2023).

    Arguments and metrics are those of `contrastive_softmax`; `bias` is added to every logit. With duplicates positive,
    the right decision on a picture and a text that equals its own is "yes", which changes what is learnt.
    """
    spread = _spread(duplicates, captions_BxT)
    prints = _prints(captions_BxT)
    of_rows = tuple(map(exchange.apart, prints))

    def part(text_CxD, sent, own_BxC):
        sent_CxD, of_columns = sent
        logits_BxC = jnp.exp(log_scale) * cosines(exchange, image_BxD, text_CxD, sent_CxD) + bias
        same_BxC = _equal(of_rows, of_columns, own_BxC)
        right_BxC = same_BxC if spread else own_BxC
        sign_BxC = 2 * right_BxC.astype(jnp.float32) - 1
        loss = jnp.sum(jax.nn.log_sigmoid(sign_BxC * logits_BxC))
        return loss, jnp.sum(same_BxC, axis=1), own_and_best_other(logits_BxC, own_BxC, right_BxC)

    sums_P, counts_PxB, compared = over_columns(
        part, text_BxD, parts, (text_BxD.astype(exchange.dtype), prints), exchange
    )
    metrics = _in_batch_top1(*compared) | _share_of_duplicates(captions_BxT, jnp.sum(counts_PxB, axis=0))
    return -jnp.sum(sums_P) / image_BxD.shape[0], metrics


def _spread(duplicates: str, captions_BxT: jax.Array | None) -> bool:
    """Whether equal captions share the target."""
    if duplicates not in DUPLICATES:
        raise ValueError(f"unknown duplicates {duplicates!r}; valid: {', '.join(DUPLICATES)}")
    if duplicates == "positive" and captions_BxT is None:
        raise ValueError("duplicates='positive' needs captions_BxT, the token ids by which equal captions are found")
    return duplicates == "positive"


def _equal(of_rows: tuple[jax.Array, ...], of_columns: tuple[jax.Array, ...], own_BxC: jax.Array) -> jax.Array:
    """bool [B, C]: captions with the same ids in all places, padding (id 0) included; without captions, the own."""
    if not of_rows:
        return own_BxC
    return functools.reduce(operator.and_, (b_B[:, None] == c_C[None] for b_B, c_C in zip(of_rows, of_columns)))


def _prints(captions_BxT: jax.Array | None) -> tuple[jax.Array, ...]:
    """Fingerprints of captions; none without captions."""
    return () if captions_BxT is None else fingerprints(captions_BxT)


def fingerprints(captions_BxT: jax.Array) -> tuple[jax.Array, ...]:
    """Three uint32 [B]: 96 bits that equal captions share, and two others with a chance of 2^-96.

    Comparing these takes three operations a pair instead of one for each token, and what other devices need of a batch
    is 12 bytes a caption. Each token is mixed with its place (the finaliser of MurmurHash3, A. Appleby, public domain).
    """
    places_T = jnp.arange(captions_BxT.shape[1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)

    def mixed(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ (x >> shift)) * jnp.uint32(factor)
        return x ^ (x >> 16)

    tokens_BxT = mixed(captions_BxT.astype(jnp.uint32) + places_T[None])
    seeds = (0x2545F491, 0x6A09E667, 0xBB67AE85)
    return tuple(jnp.sum(mixed(tokens_BxT ^ jnp.uint32(seed)), axis=1, dtype=jnp.uint32) for seed in seeds)


def _share_of_duplicates(captions_BxT: jax.Array | None, counts_B: jax.Array) -> dict:
    """The percentage of captions that would be left out if each were in the batch once."""
    return {} if captions_BxT is None else {"duplicates": 100 * (1 - jnp.mean(1 / counts_B))}


def over_columns(
    function: Callable[[Any, Any, jax.Array], Any],
    columns: Any,
    parts: int,
    sent: Any = (),
    exchange: Exchange = AT_ONCE,
) -> Any:
    """`function(columns, sent, own [B, C])` of each of `parts` parts of C = B / parts columns, stacked as [P, ...].

    `columns`: arrays [B, ...]; `own` True where a column is that of the row. With more than one part, logits exist for
    one part at a time, forward and backward: the backward pass computes them again, so gradients are exact. Part p
    holds columns p, p + P, p + 2 P, ...: as many of each device's columns, so that a batch that is split over devices
    stays where it is. `sent`: arrays [B, ...] without gradient, which go to every device once for all parts and both
    passes. What is needed of `columns` elsewhere is gathered where it is used. Raises ValueError if the parts do not
    divide the batch.

    Left alone, the compiler makes the columns' share of a comparison of captions and sends it to the rows: a table
    [B / devices, B] for every number, in place of the number of each caption.
    """
    batch = jax.tree.leaves(columns)[0].shape[0]
    if batch % parts:
        raise ValueError(f"a batch of {batch} does not divide into {parts} parts")
    devices = exchange.devices if batch // parts % exchange.devices == 0 else 1

    def everywhere(x):  # [devices, P, c, ...]: what is gathered lies as it comes, and a part is few long pieces of it
        x = jax.lax.stop_gradient(x).reshape(devices, -1, parts, *x.shape[1:])
        return exchange.whole(x.swapaxes(1, 2))

    sent = jax.tree.map(everywhere, sent)

    def one(numbered):
        number, columns_C = numbered
        here = jax.tree.map(lambda x: x[:, number].reshape(-1, *x.shape[3:]), sent)
        own_BxC = jnp.arange(batch)[:, None] == (number + parts * jnp.arange(batch // parts))[None]
        return function(columns_C, here, own_BxC)

    if parts == 1:
        return jax.tree.map(lambda x: x[None], one((0, columns)))
    split = jax.tree.map(lambda x: x.reshape(batch // parts, parts, *x.shape[1:]).swapaxes(0, 1), columns)
    return jax.lax.map(jax.checkpoint(one, prevent_cse=False), (jnp.arange(parts), split))


def parts_within(mib: float, batch: int, devices: int = 1) -> int:
    """The least number of parts with which a device's [batch / devices, batch / parts] float32 logits take `mib` MiB.

    Every part has as many columns of each device's; where even single ones take more, single ones.
    """
    rows = batch // devices if batch % devices == 0 else batch
    counts = (n for n in range(1, rows + 1) if rows % n == 0)
    return next((n for n in counts if 4 * rows * batch / n <= mib * 2**20), rows)


def own_and_best_other(
    logits_BxC: jax.Array, own_BxC: jax.Array, right_BxC: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(own logit [B] or 0 where these columns lack it, best other of each row [B], of each column [C]); no gradient.

    `right_BxC`: which belong to it (None: the own).
    """
    # The diagonal as a masked sum, not a gather: it partitions over rows without communication.
    logits_BxC = jax.lax.stop_gradient(logits_BxC)
    rest_BxC = jnp.where(own_BxC if right_BxC is None else right_BxC, -jnp.inf, logits_BxC)
    return jnp.sum(jnp.where(own_BxC, logits_BxC, 0), axis=1), jnp.max(rest_BxC, axis=1), jnp.max(rest_BxC, axis=0)


def _in_order(x_PxC: jax.Array) -> jax.Array:
    """Values of the columns that `over_columns` took apart -> [B]."""
    return x_PxC.T.reshape(-1)


def _in_batch_top1(own_PxB: jax.Array, other_text_PxB: jax.Array, other_image_PxC: jax.Array) -> dict:
    own_B = jnp.sum(own_PxB, axis=0)
    return {  # strictly greater: a collapsed model, where all logits are equal, scores 0 and not 100
        "image_to_text_top1": 100 * jnp.mean(own_B > jnp.max(other_text_PxB, axis=0)),
        "text_to_image_top1": 100 * jnp.mean(own_B > _in_order(other_image_PxC)),
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
    return of_image_errors(*image_errors(predicted_BxNxP, target_BxNxP, mask_BxN))


def of_image_errors(error_B: jax.Array, masked_B: jax.Array) -> jax.Array:
    """`reconstruction_image` of what `image_errors` says of each sample."""
    return jnp.sum(error_B) / jnp.maximum(jnp.sum(masked_B), 1)


@jax.named_scope("image_reconstruction_loss")
def image_errors(
    predicted_BxNxP: jax.Array, target_BxNxP: jax.Array, mask_BxN: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What `reconstruction_image` needs of each sample: (sum of its masked patches' errors, how many these are)."""
    error_BxN = jnp.mean(jnp.square(predicted_BxNxP.astype(jnp.float32) - target_BxNxP), axis=-1)
    return jnp.sum(error_BxN * mask_BxN, axis=1), jnp.sum(mask_BxN, axis=1)


def reconstruction_text(
    logits_BxTxV: jax.Array, text_BxT: jax.Array, mask_BxT: jax.Array, pad_BxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(cross entropy, accuracy in percent) on tokens that are masked and no padding.

    Averaged over the tokens of a sample, then over all samples (M3AE); a sample with none counts as 0. A token whose
    logit is the largest is right; of n largest ones, which bfloat16 makes, 1/n is. That takes a maximum and a count,
    which the cross entropy reads the logits for anyway, in place of an argmax.
    """
    return of_text_errors(*text_errors(logits_BxTxV, text_BxT, mask_BxT, pad_BxT))


def of_text_errors(entropy_B: jax.Array, right_B: jax.Array, masked_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`reconstruction_text` of what `text_errors` says of each sample."""
    return jnp.mean(entropy_B), 100 * jnp.sum(right_B) / jnp.maximum(jnp.sum(masked_B), 1)


@jax.named_scope("text_reconstruction_loss")
def text_errors(
    logits_BxTxV: jax.Array, text_BxT: jax.Array, mask_BxT: jax.Array, pad_BxT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `reconstruction_text` needs of each sample: (mean cross entropy of its masked words, how many of them were
    right, how many they are)."""
    logits_BxTxV = logits_BxTxV.astype(jnp.float32)
    true_BxT = jnp.take_along_axis(logits_BxTxV, text_BxT[..., None], axis=-1)[..., 0]
    entropy_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1) - true_BxT
    still_BxTxV = jax.lax.stop_gradient(logits_BxTxV)
    best_BxT = jnp.max(still_BxTxV, axis=-1)
    ties_BxT = jnp.sum(still_BxTxV == best_BxT[..., None], axis=-1)
    counts_BxT = mask_BxT & ~pad_BxT
    per_sample_B = jnp.sum(entropy_BxT * counts_BxT, axis=1) / jnp.maximum(jnp.sum(counts_BxT, axis=1), 1)
    right_BxT = jnp.where(counts_BxT & (jax.lax.stop_gradient(true_BxT) == best_BxT), 1 / ties_BxT, 0)
    return per_sample_B, jnp.sum(right_BxT, axis=1), jnp.sum(counts_BxT, axis=1)
