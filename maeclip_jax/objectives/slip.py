"""SLIP: CLIP, plus SimCLR on two augmented views of the picture (Mu et al. 2021).

Source: facebookresearch/SLIP: the image tower sees the picture and both views (three passes), a head of three layers
maps the views to 256 numbers, and each view must find its partner among all other views of the batch (NT-Xent). The
head's BatchNorm takes the statistics of the global batch, as SyncBN does in training; it keeps no running ones, because
nothing but this loss ever goes through the head.

Views are made on the device, from the picture that CLIP sees (theirs: from the original file), so they cost the hosts
and the wire nothing. As theirs: crops of 8 to 100 % of the area, colour jitter (0.4, 0.4, 0.4, 0.1) for 80 % of them,
grey for 20 %, blur of 0.1 to 2 pixels in 224 for half, mirrored for half. Ours: jitter has one order, and a crop that
sticks out is cut where torchvision draws again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.objectives import losses
from maeclip_jax.objectives.clip import Clip
from maeclip_jax.objectives.masked import patches

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow


class Slip(Clip):
    """`simclr`: dict(hidden, width, temperature, weight) of the head on the pooled picture and of its loss."""

    simclr: Mapping | None = None

    def setup(self):
        super().setup()
        self.simclr_head = Head(self.simclr["hidden"], self.simclr["width"])

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[jax.Array, dict]:
        """Contrastive + weight * NT-Xent; metrics of CLIP, `simclr` and `view_top1` (%)."""
        contrast, metrics = self._contrast(self._inputs(batch), train)
        a_BxD, b_BxD = (self._view(rng, batch) for rng in jax.random.split(self.make_rng("mask")))
        parts = self._parts(a_BxD.shape[0], products=4)  # each view with its like and with the others
        loss, top1 = nt_xent(a_BxD, b_BxD, self.simclr["temperature"], parts)
        return contrast + self.simclr["weight"] * loss, metrics | {"simclr": loss, "view_top1": top1}

    def _view(self, rng: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        view = {"image": augment(rng, batch["image"])}
        tokens = self.image({"image": patches(view, self.image_tower, self.stats)})["image"]
        return self.simclr_head(self.image_head.pool(tokens))


class Head(nn.Module):
    """[B, D] -> Dense, BatchNorm, ReLU, twice, and Dense -> [B, width] of length 1.

    Layers are called after how they are split over devices (`sharding.RULES`).
    """

    hidden: int
    width: int

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        for name in ("up", "down"):
            x_BxD = nn.Dense(self.hidden, kernel_init=nn.initializers.xavier_uniform(), name=name)(x_BxD)
            x_BxD = nn.relu(BatchNorm(name=f"{name}_norm")(x_BxD))
        x_BxD = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), name="project")(x_BxD)
        return x_BxD * jax.lax.rsqrt(jnp.sum(jnp.square(x_BxD), axis=-1, keepdims=True) + 1e-12)


class BatchNorm(nn.Module):
    """Every feature with mean 0 and variance 1 over the global batch, then scaled and shifted; in evaluation too."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones_init(), x_BxD.shape[1:])
        bias_D = self.param("bias", nn.initializers.zeros_init(), x_BxD.shape[1:])
        mean, var = jnp.mean(x_BxD, axis=0, keepdims=True), jnp.var(x_BxD, axis=0, keepdims=True)
        return (x_BxD - mean) * jax.lax.rsqrt(var + self.eps) * scale_D[None] + bias_D[None]


@jax.named_scope("view_contrast_loss")
def nt_xent(a_BxD: jax.Array, b_BxD: jax.Array, temperature: float, parts: int = 1) -> tuple[jax.Array, jax.Array]:
    """(mean cross entropy of finding each view's partner among the 2B - 1 others, views of `a` that do in percent).

    Views are L2-normalised. Source: SimCLR (Chen et al. 2020), as SLIP has it. `parts`: see `losses.over_columns`.
    """

    def part(views, own_BxC):
        def found(x_BxD, same_CxD, other_CxD):
            same_BxC, other_BxC = (
                jnp.dot(x_BxD, y_CxD.T, preferred_element_type=jnp.float32) / temperature
                for y_CxD in (same_CxD, other_CxD)
            )
            same_BxC = jnp.where(own_BxC, -1e9, same_BxC)  # a sample is not its own negative
            sum_B = jnp.logaddexp(jax.nn.logsumexp(same_BxC, axis=1), jax.nn.logsumexp(other_BxC, axis=1))
            own_B, best_B, _ = losses.own_and_best_other(other_BxC, own_BxC)
            return sum_B, own_B, jnp.maximum(best_B, jnp.max(jax.lax.stop_gradient(same_BxC), axis=1))

        return found(a_BxD, *views), found(b_BxD, *views[::-1])

    (a_PxB, own_PxB, best_PxB), (b_PxB, _, _) = losses.over_columns(part, (a_BxD, b_BxD), parts)
    sums_B = (jax.nn.logsumexp(a_PxB, axis=0) + jax.nn.logsumexp(b_PxB, axis=0)) / 2
    loss = jnp.mean(sums_B - jnp.sum(a_BxD * b_BxD, axis=1) / temperature)
    return loss, 100 * jnp.mean(jnp.sum(own_PxB, axis=0) > jnp.max(best_PxB, axis=0))


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
