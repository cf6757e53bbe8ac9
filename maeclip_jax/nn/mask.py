"""Random masking as pure functions of (rng, shape): which tokens are kept, and how to undo the shuffle.

Sign convention, everywhere: `mask` True = masked out (to be reconstructed), `pad` True = padding.
Source: per-sample uniform noise and argsort as MAE describes it (He et al. 2021, section 3 and figure 1); one
permutation shared by a batch is what the M3AE code does (`share="batch"`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maeclip_jax.nn.broadcast import broadcast

SHARE = ("sample", "batch")


class Kept(NamedTuple):
    """`keep_BxK` ids of kept tokens, `restore_BxN` where each token went (kept ones first), `mask_BxN`."""

    keep_BxK: jax.Array
    restore_BxN: jax.Array
    mask_BxN: jax.Array


def keep_count(length: int, ratio: float) -> int:
    """Number of tokens kept of `length` when `ratio` in [0, 1) is masked out (MAE rounds down: 196, .75 -> 49)."""
    if not 0 <= ratio < 1:
        raise ValueError(f"mask ratio must lie in [0, 1), got {ratio}")
    return max(1, int(length * (1 - ratio) + 1e-9))  # 1e-9: 0.9 is not exact, 100 * (1 - .9) must give 10


def random_keep(
    rng: jax.Array, batch: int, length: int, keep: int, share: str = "sample", one_of_BxN: jax.Array | None = None
) -> Kept:
    """Keeps `keep` of `length` tokens of each of `batch` samples, uniformly at random.

    `one_of_BxN`: at least one of these is kept, where a sample has any: one that would keep none keeps a random one of
    them in place of another token, and nothing changes in the other samples.

    Kept tokens come in ascending order, so that a causal tower may be masked too. `share="batch"` uses one permutation
    for the whole batch: faster, less diverse (M3AE code). The result depends on (rng, shape) only, not on devices.
    """
    return keep_by(draw_noise(rng, batch, length, share), batch, keep, one_of_BxN)


def draw_noise(rng: jax.Array, batch: int, length: int, share: str = "sample") -> jax.Array:
    """What `keep_by` decides by: uniform [batch, length], or [1, length] that all samples share."""
    if share not in SHARE:
        raise ValueError(f"unknown share {share!r}; valid: {', '.join(SHARE)}")
    return jax.random.uniform(rng, (batch if share == "sample" else 1, length))


def keep_by(noise_BxN: jax.Array, batch: int, keep: int, one_of_BxN: jax.Array | None = None) -> Kept:
    """`random_keep` of noise that was drawn before: any part of a batch keeps what the whole batch would."""
    length = noise_BxN.shape[1]
    if not 1 <= keep <= length:
        raise ValueError(f"cannot keep {keep} of {length} tokens")
    if one_of_BxN is not None:  # the lowest of them is kept already where any of them is
        lowest_Bx1 = jnp.argmin(jnp.where(one_of_BxN, noise_BxN, jnp.inf), axis=1)[:, None]
        noise_BxN = jnp.where(one_of_BxN & (jnp.arange(length)[None] == lowest_Bx1), -1, noise_BxN)
    kept = keep_lowest(noise_BxN, keep)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, x.shape[1])), kept)


def keep_lowest(noise_BxN: jax.Array, keep: int) -> Kept:
    """Keeps the `keep` tokens of each row whose noise is lowest, in ascending order of place (in MAE: of noise)."""
    shuffle_BxN = jnp.argsort(noise_BxN, axis=1)
    mask_BxN = jnp.argsort(shuffle_BxN, axis=1) >= keep
    restore_BxN = jnp.where(mask_BxN, keep + jnp.cumsum(mask_BxN, axis=1), jnp.cumsum(~mask_BxN, axis=1)) - 1
    return Kept(jnp.sort(shuffle_BxN[:, :keep], axis=1), restore_BxN, mask_BxN)


def hidden_ids(kept: Kept) -> jax.Array:
    """Ids of the masked tokens in ascending order [B, N - K]."""
    length = kept.mask_BxN.shape[1]
    places_BxN = jnp.where(kept.mask_BxN, jnp.arange(length)[None], length)
    return jnp.sort(places_BxN, axis=1)[:, : length - kept.keep_BxK.shape[1]]


def take(x: jax.Array, ids_BxK: jax.Array) -> jax.Array:
    """Rows `ids_BxK` of `x` [B, N] or [B, N, D] -> [B, K] or [B, K, D]."""
    index = ids_BxK if x.ndim == 2 else ids_BxK[:, :, None]
    return jnp.take_along_axis(x, index, axis=1)


def restore(kept_BxKxD: jax.Array, fill_D: jax.Array, restore_BxN: jax.Array) -> jax.Array:
    """Puts kept tokens back where they came from and `fill_D` everywhere else -> [B, N, D]."""
    batch, kept, width = kept_BxKxD.shape
    missing = restore_BxN.shape[1] - kept
    fill_BxMxD = broadcast(fill_D.astype(kept_BxKxD.dtype), (batch, missing, width))
    return take(jnp.concatenate([kept_BxKxD, fill_BxMxD], axis=1), restore_BxN)
