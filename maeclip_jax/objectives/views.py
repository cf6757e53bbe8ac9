"""Augmented views of pictures for SimCLR, and crops for self-distillation, made on the device.

As facebookresearch/SLIP has them: crops of 8 to 100 % of the area, 3/4 to 4/3 as wide as high, drawn anew where they
stick out, as torchvision's RandomResizedCrop does; colour jitter (0.4, 0.4, 0.4, 0.1) for 80 % of them, grey for 20 %,
blur of 0.1 to 2 pixels in 224 for half, mirrored for half. Ours: jitter has one order, and views are not rounded to
whole numbers, so that the rounding of floats on another number of devices stays as small as it is.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a crop
CROPS = "crops"  # the scope of what cuts them out and changes them, to which no gradient goes
TRIES = 10  # boxes; after them, the whole picture


def boxes(rng: jax.Array, batch: int, area: tuple[float, float] = AREA) -> tuple[jax.Array, jax.Array]:
    """(height, width) [B, 1] of a crop of each square picture, as shares of its side: the first of TRIES that fits.

    `area`: the least and the most of the picture that it shows.
    """
    area_rng, ratio_rng = jax.random.split(rng)
    area_BxT = jax.random.uniform(area_rng, (batch, TRIES), minval=area[0], maxval=area[1])
    low, high = map(math.log, RATIO)
    ratio_BxT = jnp.exp(jax.random.uniform(ratio_rng, (batch, TRIES), minval=low, maxval=high))
    height_BxT, width_BxT = jnp.sqrt(area_BxT / ratio_BxT), jnp.sqrt(area_BxT * ratio_BxT)
    fits_BxT = jnp.maximum(height_BxT, width_BxT) <= 1
    first_Bx1, any_Bx1 = jnp.argmax(fits_BxT, axis=1)[:, None], jnp.any(fits_BxT, axis=1)[:, None]
    height_Bx1, width_Bx1 = (jnp.take_along_axis(x, first_Bx1, axis=1) for x in (height_BxT, width_BxT))
    return jnp.where(any_Bx1, height_Bx1, 1), jnp.where(any_Bx1, width_Bx1, 1)


def draw(rng: jax.Array, batch: int) -> dict[str, jax.Array]:
    """What one view of each picture is like, from (rng, batch) alone: `box` [B, 4] (top, left, height, width) of its
    crop, as shares of the picture (of the room there is, for the first two), and `look` [B, 9] for `distort`."""
    crop_rng, look_rng = jax.random.split(rng)
    box_rng, place_rng = jax.random.split(crop_rng)
    place_2xBx1, look_9xBx1 = jax.random.uniform(place_rng, (2, batch, 1)), jax.random.uniform(look_rng, (9, batch, 1))
    box_Bx4 = jnp.concatenate([*place_2xBx1, *boxes(box_rng, batch)], axis=1)
    return {"box": box_Bx4, "look": jnp.concatenate([*look_9xBx1], axis=1)}


def places(rng: jax.Array, batch: int, count: int, area: tuple[float, float]) -> jax.Array:
    """Boxes [B, V, 4] as in `draw`, of `count` crops of each picture with `area` of it, from (rng, batch) alone."""
    box_rng, place_rng = jax.random.split(rng)
    height, width = boxes(box_rng, batch * count, area)
    box_Rx4 = jnp.concatenate([jax.random.uniform(place_rng, (batch * count, 2)), height, width], axis=1)
    return box_Rx4.reshape(batch, count, 4)


@jax.named_scope(CROPS)
def crop(box_Bx4: jax.Array, image_BxSxSx3: jax.Array) -> jax.Array:
    """A part of each square uint8 picture, resized to all of it, float in 0..1. `box_Bx4`: of `draw`."""
    side = image_BxSxSx3.shape[1]
    top_Bx1, left_Bx1, height_Bx1, width_Bx1 = (box_Bx4[:, i : i + 1] for i in range(4))
    down, across = _window(top_Bx1, height_Bx1, side), _window(left_Bx1, width_Bx1, side)
    return _resampled(image_BxSxSx3 / 255, down, across)


@jax.named_scope(CROPS)
def crops(box_BxVx4: jax.Array, image_BxSxSx3: jax.Array, size: int) -> jax.Array:
    """[B, V, size, size, 3]: several parts of each square uint8 picture, float in 0..1. `box_BxVx4`: of `places`.

    Bilinear, without a filter against aliasing: parts of less than `size` pixels are drawn larger.
    """
    batch, count = box_BxVx4.shape[:2]
    side = image_BxSxSx3.shape[1]
    top, left, height, width = (box_BxVx4.reshape(-1, 4)[:, i : i + 1] for i in range(4))
    down, across = (
        _window(at, share, side, size).reshape(batch, count, size, side) for at, share in ((top, height), (left, width))
    )
    x = jnp.einsum("bvij,bjwc->bviwc", down, image_BxSxSx3 / 255)
    return jnp.einsum("bvij,bvhjc->bvhic", across, x)


@jax.named_scope(CROPS)
def distort(look_Bx9: jax.Array, x: jax.Array) -> jax.Array:
    """Each square picture [B, S, S, 3] in 0..1, mirrored, jittered, greyed and blurred as often as said above, in
    0..255. `look_Bx9`: of `draw`."""
    batch, side = x.shape[:2]
    u = (look_Bx9[:, i : i + 1] for i in range(9))

    def between(low: float, high: float) -> jax.Array:
        return low + (high - low) * next(u)

    x = jnp.where(_pixel(next(u) < 0.5), x, x[:, :, ::-1])
    jitter = next(u) < 0.8
    light, contrast, colour, hue = between(0.6, 1.4), between(0.6, 1.4), between(0.6, 1.4), between(-0.1, 0.1)
    x = jnp.where(_pixel(jitter), _jittered(x, *map(_pixel, (light, contrast, colour, hue))), x)
    x = jnp.where(_pixel(next(u) < 0.2), _grey(x), x)

    blurred, sigma = next(u) < 0.5, between(0.1, 2.0) * side / 224
    blur = _weights(jnp.broadcast_to(jnp.arange(side)[None], (batch, side)), jnp.where(blurred, sigma, 0.01), side)
    return 255 * jnp.clip(_resampled(x, blur, blur), 0, 1)


def _pixel(x_Bx1: jax.Array) -> jax.Array:
    return x_Bx1[:, :, None, None]


def _window(place_Bx1: jax.Array, share_Bx1: jax.Array, side: int, size: int = 0) -> jax.Array:
    """[B, size, S]: bilinear weights that stretch `share` of a line of S pixels over `size` of them (0: S)."""
    size = size or side
    at_BxS = (place_Bx1 * (1 - share_Bx1) + share_Bx1 * (jnp.arange(size) + 0.5)[None] / size) * side - 0.5
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
