"""SLIP: CLIP, plus SimCLR on two augmented views of the picture (Mu et al. 2021).

Source: facebookresearch/SLIP: the image tower sees the picture and both views (three passes), a head of three layers
maps the views to 256 numbers, and each view must find its partner among all other views of the batch (NT-Xent). The
head's BatchNorm takes the statistics of the global batch, as SyncBN does in training; it keeps no running ones, because
nothing but this loss ever goes through the head.

Both views are of the whole picture, as in the source. Where CLIP sees a crop of it, the batch brings two crops of the
whole one (op `views`), three pictures an example in all; where CLIP sees all of it, they are cut out on the device.
Colours, blur and mirroring are done on the device (`views`), so that they cost the hosts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.objectives import losses, views
from maeclip_jax.objectives.clip import Clip
from maeclip_jax.objectives.streams import patches, path_noise

VIEWS = ("image", "batch")


class Slip(Clip):
    """`simclr`: dict(hidden, width, temperature, weight, views) of the head on the pooled picture and of its loss.

    `simclr.views`: what views are crops of: image (the picture that CLIP sees) | batch (the array `views` [B, 2, H, W,
    3] holds them already; a batch that lacks it, as in evaluation, falls back to its picture).
    """

    simclr: Mapping | None = None

    units = Clip.units | {"simclr": ("nats", "lower"), "view_top1": ("%", "higher")}

    def setup(self):
        super().setup()
        if self.simclr.get("views", "image") not in VIEWS:
            raise ValueError(f"unknown simclr.views {self.simclr['views']!r}; valid: {', '.join(VIEWS)}")
        self.simclr_head = SimclrHead(self.simclr["hidden"], self.simclr["width"])

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What one example must hold."""
        shapes = super().inputs()
        if self.simclr.get("views") == "batch":
            shapes["views"] = jax.ShapeDtypeStruct((2, *shapes["image"].shape), shapes["image"].dtype)
        return shapes

    def _passes(self) -> dict[str, Mapping]:
        return super()._passes() | {f"view_{n}": self.image_tower for n in range(2)}

    def draw(self, batch: Mapping[str, jax.Array], *, train: bool) -> dict:
        """Of CLIP, and what two views of each picture are like."""
        drawn = super().draw(batch, train=train)
        rngs = jax.random.split(self.make_rng("mask"))
        return drawn | {"views": tuple(views.draw(rng, batch["image"].shape[0]) for rng in rngs)}

    def local(self, batch: Mapping[str, jax.Array], drawn: Mapping, *, train: bool) -> dict:
        """Embeddings of each pair, and each picture's two views pooled."""
        made = self._embedded(self._inputs(batch), drawn)
        return made | {"views": tuple(self._view(drawn, n, batch) for n in range(2))}

    def combine(self, made: Mapping, *, train: bool) -> tuple[jax.Array, dict]:
        """Contrastive + weight * NT-Xent; metrics of CLIP, `simclr` and `view_top1` (%)."""
        contrast, metrics = self._contrast(made, train)
        a_BxD, b_BxD = map(self.simclr_head, made["views"])
        parts = self._parts(a_BxD.shape[0], products=4)  # each view with its like and with the others
        loss, top1 = nt_xent(a_BxD, b_BxD, self.simclr["temperature"], parts)
        return contrast + self.simclr["weight"] * loss, metrics | {"simclr": loss, "view_top1": top1}

    def _view(self, drawn: Mapping, which: int, batch: Mapping[str, jax.Array]) -> jax.Array:
        made, one = "views" in batch and self.simclr.get("views") == "batch", drawn["views"][which]
        part = batch["views"][:, which] / 255 if made else views.crop(one["box"], batch["image"])
        view = {"image": views.distort(one["look"], part)}
        inputs = {"image": patches(view, self.image_tower, self.stats, whole=False)}
        return self.image_head.pool(self.image(inputs, None, path_noise(drawn, f"view_{which}"))["image"])


class SimclrHead(nn.Module):
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

    def part(views, _, own_BxC):
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
