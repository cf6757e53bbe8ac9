"""LayerNorm of [..., D] as flax computes it, forward and backward, as pure functions that kernels can call."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normed(x: jax.Array, scale: jax.Array, shift: jax.Array, eps: float) -> jax.Array:
    """[..., D] in the dtype of `x`; what is between in float32."""
    away, per_deviation = _standard(x, eps)
    y = away * (per_deviation * scale.astype(jnp.float32)) + shift.astype(jnp.float32)
    return y.astype(x.dtype)


def backward(x: jax.Array, scale: jax.Array, dy: jax.Array, eps: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of x, of its scale and of its shift, the latter two [1, D], all float32; `dy` float32."""
    away, per_deviation = _standard(x, eps)
    y = away * per_deviation
    d = dy * scale.astype(jnp.float32)
    mean, along = (jnp.mean(z, axis=-1, keepdims=True) for z in (d, d * y))
    width = x.shape[-1]
    d_scale, d_shift = (jnp.sum(z.reshape(-1, width), axis=0, keepdims=True) for z in (dy * y, dy))
    return per_deviation * (d - mean - y * along), d_scale, d_shift


def _standard(x, eps):
    """(x minus its mean, 1 / standard deviation), float32."""
    x = x.astype(jnp.float32)
    mean, square = (jnp.mean(z, axis=-1, keepdims=True) for z in (x, x * x))
    return x - mean, jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + eps)
