"""Pooling operators `(tokens_BxNxD, pad_BxN) -> (B, D)`: pad-aware, in float32, the axis the paper turns.

The config word picks one: `gap`, `max`, `cls`, `last`, `map`, and the family between gap and max: `logsumexp(tau)`
(tau -> 0 is max, tau -> infinity is gap) and `topk(k)`. A row that is all padding pools to zeros.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from maeclip_jax.nn.transformer import activation


class Tokens(flax.struct.PyTreeNode):
    """Dense tokens of one stream after the final norm: `x` [B, N, D], `pad` [B, N] or None, `cls` [B, D] or None."""

    x: jax.Array
    pad: jax.Array | None = None
    cls: jax.Array | None = None


def gap(x_BxNxD: jax.Array, pad_BxN: jax.Array) -> jax.Array:
    """Mean over tokens that are not padding."""
    count_Bx1 = jnp.sum(~pad_BxN, axis=1, keepdims=True)
    return jnp.sum(jnp.where(pad_BxN[..., None], 0, x_BxNxD), axis=1) / jnp.maximum(count_Bx1, 1)


def max_(x_BxNxD: jax.Array, pad_BxN: jax.Array) -> jax.Array:
    """Maximum per channel over tokens that are not padding (CLIPpy, arXiv 2210.09996).

    Picked by index, and the gradient goes to the first of equal tokens. The gradient of jnp.max looks for the values
    that equal the maximum; a compiler that computes those values a second time, rounded differently, finds none and
    divides 0 by 0 (seen on 8 CPU devices).
    """
    first_BxD = jnp.argmax(jnp.where(pad_BxN[..., None], -jnp.inf, jax.lax.stop_gradient(x_BxNxD)), axis=1)
    here_BxNxD = jnp.arange(x_BxNxD.shape[1])[None, :, None] == first_BxD[:, None]
    return _or_zero(jnp.sum(jnp.where(here_BxNxD, x_BxNxD, 0), axis=1), pad_BxN)


def cls(x_BxNxD: jax.Array, pad_BxN: jax.Array) -> jax.Array:
    """The first token: the class token of a picture, or [CLS] of a text whose tokenizer adds it."""
    return _or_zero(x_BxNxD[:, 0], pad_BxN)


def last(x_BxNxD: jax.Array, pad_BxN: jax.Array) -> jax.Array:
    """The last token that is not padding: end-of-text of a causal tower (openai/CLIP)."""
    index_B = jnp.max(jnp.where(pad_BxN, 0, jnp.arange(pad_BxN.shape[1])[None]), axis=1)
    return _or_zero(jnp.take_along_axis(x_BxNxD, index_B[:, None, None], axis=1)[:, 0], pad_BxN)


def logsumexp(x_BxNxD: jax.Array, pad_BxN: jax.Array, tau: float = 1.0) -> jax.Array:
    """tau * log mean exp(x / tau) over tokens that are not padding: between max (tau -> 0) and gap (tau -> inf)."""
    if not tau > 0:
        raise ValueError(f"logsumexp pooling needs tau > 0, got {tau}")
    count_Bx1 = jnp.maximum(jnp.sum(~pad_BxN, axis=1, keepdims=True), 1)
    total_BxD = jax.nn.logsumexp(x_BxNxD / tau, axis=1, where=~pad_BxN[..., None])
    return _or_zero(tau * (total_BxD - jnp.log(count_Bx1)), pad_BxN)


def topk(x_BxNxD: jax.Array, pad_BxN: jax.Array, k: int = 4) -> jax.Array:
    """Mean of the k largest values per channel (fewer where fewer tokens are real): k = 1 is max."""
    if int(k) != k or not 1 <= k <= x_BxNxD.shape[1]:
        raise ValueError(f"topk pooling needs a whole k in 1..{x_BxNxD.shape[1]} (the number of tokens), got {k}")
    x_BxDxN = jnp.where(pad_BxN[..., None], -jnp.inf, x_BxNxD).swapaxes(1, 2)
    top_BxDxK = jax.lax.top_k(x_BxDxN, int(k))[0]
    count_Bx1 = jnp.clip(jnp.sum(~pad_BxN, axis=1, keepdims=True), 1, k)
    return jnp.sum(jnp.where(top_BxDxK == -jnp.inf, 0, top_BxDxK), axis=-1) / count_Bx1


def _or_zero(pooled_BxD: jax.Array, pad_BxN: jax.Array) -> jax.Array:
    return jnp.where(jnp.all(pad_BxN, axis=1, keepdims=True), 0, pooled_BxD)


POOLS: dict[str, Callable] = {"gap": gap, "max": max_, "cls": cls, "last": last, "logsumexp": logsumexp, "topk": topk}
WITH_NUMBER = ("logsumexp", "topk")
NAMES = ("gap", "max", "cls", "last", "map", "logsumexp(tau)", "topk(k)")


def parse(word: str) -> tuple[str, float | None]:
    """`"topk(8)"` -> ("topk", 8.0); `"max"` -> ("max", None). ValueError with the valid names otherwise."""
    match = re.fullmatch(r"(\w+)(?:\(([^()]+)\))?", word)
    name, number = match.groups() if match else (word, None)
    try:
        value = None if number is None else float(number)
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        name = None
    if (name != "map" and name not in POOLS) or (number is not None and name not in WITH_NUMBER):
        raise ValueError(f"unknown pool {word!r}; valid: {', '.join(NAMES)}")
    return name, value


class AttentionPool(nn.Module):
    """One learned query attends over the tokens, then a residual MLP: the MAP head of SigLIP (Zhai et al. 2022).

    `activation`: gelu | gelu_tanh | quick_gelu, of the MLP, which is `mlp_ratio` times as wide as the tokens.
    """

    heads: int
    activation: str = "gelu"
    mlp_ratio: float = 4.0
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x_BxNxD: jax.Array, pad_BxN: jax.Array) -> jax.Array:
        b, _, d = x_BxNxD.shape
        init = nn.initializers.xavier_uniform()
        probe = self.param("probe", init, (1, d))
        query = nn.Dense(d, kernel_init=init, name="query")(jnp.broadcast_to(probe[None], (b, 1, d)))
        key, value = (nn.Dense(d, kernel_init=init, name=name)(x_BxNxD) for name in ("key", "value"))
        split = (b, -1, self.heads, d // self.heads)
        y = jax.nn.dot_product_attention(
            query.reshape(split), key.reshape(split), value.reshape(split), mask=~pad_BxN[:, None, None, :]
        )
        y = nn.Dense(d, kernel_init=init, name="out")(y.reshape(b, d))
        hidden = round(self.mlp_ratio * d)
        z = nn.Dense(hidden, kernel_init=init, name="up")(nn.LayerNorm(epsilon=self.eps, name="norm")(y))
        y = y + nn.Dense(d, kernel_init=init, name="down")(activation(self.activation)(z))
        return _or_zero(y, pad_BxN)


class Pool(nn.Module):
    """The pooling the config word names, on `Tokens`; `map` owns parameters, the others are the functions above.

    `heads` and `map`: of the attention of `map`; dict(activation, mlp_ratio, eps).
    """

    kind: str
    heads: int = 8
    map: Mapping | None = None

    @nn.compact
    def __call__(self, tokens: Tokens) -> jax.Array:
        if parse(self.kind)[0] == "map":
            x_BxNxD = tokens.x.astype(jnp.float32)
            return AttentionPool(self.heads, **(self.map or {}), name="map")(x_BxNxD, _pad(tokens))
        return pooled(tokens, self.kind)


def _pad(tokens: Tokens) -> jax.Array:
    return jnp.zeros(tokens.x.shape[:2], bool) if tokens.pad is None else tokens.pad


def pooled(tokens: Tokens, word: str) -> jax.Array:
    """[B, D] float32 by a pooling word without parameters."""
    name, number = parse(word)
    if name == "map":
        raise ValueError(f"pool 'map' has parameters, which this tower lacks; valid: {', '.join(POOLS)}")
    if name == "cls" and tokens.cls is not None:
        return tokens.cls.astype(jnp.float32)
    return POOLS[name](tokens.x.astype(jnp.float32), _pad(tokens), *(() if number is None else (number,)))


def features(tokens: Tokens, pools: Sequence[str], *, own: Callable, embed: Callable) -> dict[str, jax.Array]:
    """{word: [B, D]} of pictures under several poolings at once.

    "own": as the tower was trained, before any projection; "embed": what the objective compares; or a pooling word
    without parameters. ValueError for "cls" of a tower without a class token.
    """
    named: dict[str, Callable] = {"own": own, "embed": embed}
    if "cls" in pools and tokens.cls is None:
        raise ValueError("pool is cls, but this tower has no class token; valid: own, embed, gap, max, topk(k), ...")
    return {word: named[word](tokens) if word in named else pooled(tokens, word) for word in pools}
