"""Augmented views of pictures for SimCLR, made on the device from the picture that CLIP sees.

As facebookresearch/SLIP has them: crops of 8 to 100 % of the area, colour jitter (0.4, 0.4, 0.4, 0.1) for 80 % of them,
grey for 20 %, blur of 0.1 to 2 pixels in 224 for half, mirrored for half. Ours: jitter has one order, and a crop that
sticks out is cut where torchvision draws again.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow


def augment(rng: jax.Array, image_BxSxSx3: jax.Array) -> jax.Array:
    """A view of each square uint8 picture, uint8, drawn from (rng, B) alone; see the head of this file."""
    batch, side = image_BxSxSx3.shape[:2]
    u = iter(jax.random.uniform(rng, (14, batch, 1)))

    def between(low: float, high: float) -> jax.Array:
        return low + (high - low) * next(u)

    area, ratio = between(0.08, 1.0), jnp.exp(between(math.log(3 / 4), math.log(4 / 3)))
    height, width = jnp.minimum(jnp.sqrt(area / ratio), 1), jnp.minimum(jnp.sqrt(area * ratio), 1)
    across = _window(next(u), width, side)
    across = jnp.where((next(u) < 0.5)[:, :, None], across, across[:, ::-1])
    x = _resampled(image_BxSxSx3 / 255, _window(next(u), height, side), across)

    jitter = next(u) < 0.8
    light, contrast, colour, hue = between(0.6, 1.4), between(0.6, 1.4), between(0.6, 1.4), between(-0.1, 0.1)
    x = jnp.where(_pixel(jitter), _jittered(x, *map(_pixel, (light, contrast, colour, hue))), x)
    x = jnp.where(_pixel(next(u) < 0.2), _grey(x), x)

    blurred, sigma = next(u) < 0.5, between(0.1, 2.0) * side / 224
    blur = _weights(jnp.broadcast_to(jnp.arange(side)[None], (batch, side)), jnp.where(blurred, sigma, 0.01), side)
    return jnp.round(255 * jnp.clip(_resampled(x, blur, blur), 0, 1)).astype(jnp.uint8)


def _pixel(x_Bx1: jax.Array) -> jax.Array:
    return x_Bx1[:, :, None, None]


def _window(place_Bx1: jax.Array, share_Bx1: jax.Array, side: int) -> jax.Array:
    """[B, S, S]: bilinear weights that stretch `share` of a line of S pixels over all of it."""
    at_BxS = (place_Bx1 * (1 - share_Bx1) + share_Bx1 * (jnp.arange(side) + 0.5)[None] / side) * side - 0.5
    at_BxS = jnp.clip(at_BxS, 0, side - 1)
    return jnp.maximum(0, 1 - jnp.abs(at_BxS[:, :, None] - jnp.arange(side)[None, None]))


def _weights(at_BxS: jax.Array, sigma_Bx1: jax.Array, side: int) -> jax.Array:
    """[B, S, S]: Gaussian weights around places on a line, which sum to 1."""
    away = (at_BxS[:, :, None] - jnp.arange(side)[None, None]) / sigma_Bx1[:, :, None]
    return jax.nn.softmax(-jnp.square(away) / 2, axis=-1)


def _resampled(x_BxSxSx3: jax.Array, down_BxSxS: jax.Array, across_BxSxS: jax.Array) -> jax.Array:
    x = jnp.einsum("bij,bjwc->biwc", down_BxSxS, x_BxSxSx3)
    return jnp.einsum("bij,bhjc->bhic", across_BxSxS, x)


def _grey(x: jax.Array) -> jax.Array:
    return jnp.sum(x * jnp.asarray(GREY).reshape(1, 1, 1, 3), axis=-1, keepdims=True) * jnp.ones_like(x)


def _jittered(x: jax.Array, light: jax.Array, contrast: jax.Array, colour: jax.Array, hue: jax.Array) -> jax.Array:
    """Brightness, contrast and saturation times a factor, then the hue turned by a share of the circle."""
    x = jnp.clip(x * light, 0, 1)
    mean = jnp.mean(_grey(x), axis=(1, 2), keepdims=True)
    x = jnp.clip(mean + contrast * (x - mean), 0, 1)
    x = jnp.clip(_grey(x) + colour * (x - _grey(x)), 0, 1)
    red, green, blue = x[..., 0:1], x[..., 1:2], x[..., 2:3]
    top = jnp.max(x, axis=-1, keepdims=True)
    chroma = top - jnp.min(x, axis=-1, keepdims=True)
    some = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(
        top == red, (green - blue) / some, jnp.where(top == green, 2 + (blue - red) / some, 4 + (red - green) / some)
    )
    turned = jnp.mod(jnp.asarray([5.0, 3.0, 1.0]).reshape(1, 1, 1, 3) + sixth + 6 * hue, 6)
    return top - chroma * jnp.clip(jnp.minimum(turned, 4 - turned), 0, 1)
