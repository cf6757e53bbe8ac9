"""CLIP: two towers and a contrastive loss over the global batch. `loss="sigmoid"` is SigLIP, `keep < 1` is FLIP."""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn.mask import draw_noise, keep_by
from maeclip_jax.nn.mesh import batch_devices, batch_sharded, everywhere, over_rows
from maeclip_jax.nn.pool import Pool, Tokens
from maeclip_jax.nn.pool import features as pool_features
from maeclip_jax.nn.tower import Encoder
from maeclip_jax.nn.transformer import compute_dtype
from maeclip_jax.objectives import losses
from maeclip_jax.objectives.streams import (
    check_class_token,
    check_pooled,
    check_smoothing,
    example,
    path_noise,
    paths,
    split_tower,
    stream_inputs,
    token_counts,
)

PROJECTIONS = ("linear", "affine", "none")
# loss -> (initial log of the inverse temperature, initial bias). CLIP: ln(1 / 0.07). SigLIP: t = 10, b = -10.
LOSSES = {"softmax": (math.log(1 / 0.07), None), "sigmoid": (math.log(10.0), -10.0)}


def two_towers(image_tower: Mapping, text_tower: Mapping, compute: Mapping | None) -> tuple[Encoder, Encoder]:
    """The encoders of a config's two towers; how they are pooled is not theirs to know."""
    picture, image, _ = split_tower(image_tower)
    text_embed, text, _ = split_tower(text_tower)
    return Encoder(image=picture, compute=compute, **image), Encoder(text=text_embed, compute=compute, **text)


class EmbedHead(nn.Module):
    """Tokens -> pooled -> projected -> L2-normalised [B, width], float32.

    `projection`: linear (CLIP) | affine (with a bias: SigLIP's texts) | none (SigLIP's pictures). `map`: see Pool.
    """

    kind: str
    width: int
    heads: int
    projection: str = "linear"
    map: Mapping | None = None

    def setup(self):
        if self.projection not in PROJECTIONS:
            raise ValueError(f"unknown projection {self.projection!r}; valid: {', '.join(PROJECTIONS)}")
        self.pool = Pool(self.kind, self.heads, self.map)
        if self.projection != "none":
            init = nn.initializers.xavier_uniform()
            self.project = nn.Dense(self.width, use_bias=self.projection == "affine", kernel_init=init)

    def __call__(self, tokens: Tokens) -> jax.Array:
        return self.compared(self.pool(tokens))

    def compared(self, x: jax.Array) -> jax.Array:
        """Pooled tokens [..., D], projected and of length 1."""
        if self.projection != "none":
            x = self.project(x)
        elif x.shape[-1] != self.width:
            raise ValueError(f"projection is none, but the tower is {x.shape[-1]} wide and embed_width {self.width}")
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

    def dense(self, tokens: Tokens) -> jax.Array:
        """Every token as if it were pooled alone, [B, N, width]; under `cls` each token stands for the class token."""
        x_BxNxD = tokens.x.astype(jnp.float32)
        if self.kind == "map":  # the only pooling that changes a single token
            b, n, d = x_BxNxD.shape
            x_BxNxD = self.pool(Tokens(x_BxNxD.reshape(b * n, 1, d))).reshape(b, n, d)
        return self.compared(x_BxNxD)


class Clip(nn.Module):
    """Two towers. `image_tower`: dict(size, patch, width, depth, heads, cls, pool, ...); `text_tower`: dict(vocab,
    length, width, depth, heads, causal, pool, ...); `embed_width`: of the shared space. `loss`: softmax | sigmoid.
    `duplicates`: negative (as their papers) | positive: what a text of the batch is to a picture whose caption has the
    same ids; see `losses.contrastive_softmax`. `label_smoothing`: of the softmax, in training alone. `keep`: share
    of patches the image tower sees in training (FLIP when below 1). `contrast_mib`: MiB of float32 logits on a device
    beyond which the contrast is worked on in parts (two to five times as much lives at once: gradients). `compute`:
    dtype, layers, remat, attention, mlp.
    """

    image_tower: Mapping
    text_tower: Mapping
    embed_width: int = 512
    loss: str = "softmax"
    duplicates: str = "negative"
    label_smoothing: float = 0.0
    keep: float = 1.0
    contrast_mib: float = 128.0
    mask_share: str = "sample"
    stats: str = "imagenet"
    compute: Mapping | None = None

    contrastive = True
    generative = False
    streams = ("image", "text")
    # Metric -> (unit, which direction is better); the others are plain numbers.
    units = {
        "loss": ("nats", "lower"), "contrast": ("nats", "lower"), "image_to_text_top1": ("%", "higher"),
        "text_to_image_top1": ("%", "higher"), "duplicates": ("%", "none"),
    }  # fmt: skip

    def setup(self):
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; valid: {', '.join(LOSSES)}")
        if self.duplicates not in losses.DUPLICATES:
            raise ValueError(f"unknown duplicates {self.duplicates!r}; valid: {', '.join(losses.DUPLICATES)}")
        check_smoothing(self.label_smoothing, self.loss)
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {self.keep}")
        if not self.contrast_mib > 0:
            raise ValueError(f"contrast_mib must be above 0, got {self.contrast_mib}")
        check_class_token(self.image_tower)
        self.image, self.text = two_towers(self.image_tower, self.text_tower, self.compute)
        self.image_head, self.text_head = (
            EmbedHead(
                tower["pool"], self.embed_width, tower["heads"], tower.get("projection", "linear"), tower.get("map")
            )
            for tower in (self.image_tower, self.text_tower)
        )
        log_scale, bias = LOSSES[self.loss]
        self.log_scale = self.param("log_logit_scale", nn.initializers.constant(log_scale), ())
        if bias is not None:
            self.bias = self.param("logit_bias", nn.initializers.constant(bias), ())

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What one example must hold."""
        return example(self.image_tower, self.text_tower)

    def _inputs(self, batch) -> dict[str, jax.Array]:
        return stream_inputs(batch, self.image_tower, self.stats)

    def _parts(self, batch: int, products: int = 1) -> int:
        """In how many parts to contrast a batch; a part holds so many `products` of embeddings."""
        return losses.parts_within(self.contrast_mib / products, batch, batch_devices())

    def _passes(self) -> dict[str, Mapping]:
        """Name -> tower, of every pass through a tower in training."""
        return {"image": self.image_tower, "text": self.text_tower}

    def draw(self, batch: Mapping[str, jax.Array], *, train: bool) -> dict:
        """Noise by which FLIP keeps patches of each picture, and by which paths are dropped; nothing without either."""
        drawn = paths(self, batch, self._passes()) if train else {}
        if train and self.keep < 1:
            length = token_counts(batch, self.image_tower)["image"]
            drawn["keep"] = draw_noise(self.make_rng("mask"), batch["image"].shape[0], length, self.mask_share)
        return drawn

    def _embedded(self, inputs: Mapping[str, jax.Array], drawn: Mapping) -> dict[str, jax.Array]:
        kept = {}
        if "keep" in drawn:
            batch, length = inputs["image"].shape[:2]
            count = max(1, round(length * self.keep))
            check_pooled(self.image_tower, count, f"keep={self.keep} leaves {count} of {length} patches in training")
            kept["image"] = keep_by(drawn["keep"], batch, count)
        image = self.image({"image": inputs["image"]}, kept, path_noise(drawn, "image"))
        text = self.text({"text": inputs["text"]}, None, path_noise(drawn, "text"))
        return {
            "image": self.image_head(image["image"]),
            "text": self.text_head(text["text"]),
            "captions": inputs["text"],
        }

    def _contrast(self, made: Mapping[str, jax.Array], train: bool) -> tuple[jax.Array, dict]:
        z_image, z_text, captions = made["image"], made["text"], made["captions"]
        parts = self._parts(z_image.shape[0])
        dtype = compute_dtype(dict(self.compute or {}).get("dtype", "float32"))
        exchange = losses.Exchange(dtype, batch_devices(), batch_sharded, everywhere, over_rows)
        if self.loss == "softmax":
            loss, metrics = losses.contrastive_softmax(
                z_image,
                z_text,
                self.log_scale,
                parts,
                captions,
                self.duplicates,
                self.label_smoothing if train else 0.0,
                exchange,
            )
        else:
            loss, metrics = losses.contrastive_sigmoid(
                z_image, z_text, self.log_scale, self.bias, parts, captions, self.duplicates, exchange
            )
            metrics["logit_bias"] = self.bias
        metrics |= {
            "contrast": loss,
            "logit_scale": jnp.exp(self.log_scale),
            # How far the mean embedding is from zero: 1 = all pictures (texts) have collapsed onto one point.
            "image_mean_norm": jnp.linalg.norm(jnp.mean(z_image, axis=0)),
            "text_mean_norm": jnp.linalg.norm(jnp.mean(z_text, axis=0)),
        }
        return loss, metrics

    def local(self, batch: Mapping[str, jax.Array], drawn: Mapping, *, train: bool) -> dict:
        """Embeddings `image` and `text` [B, embed_width] of each pair, and the ids of its caption."""
        return self._embedded(self._inputs(batch), drawn)

    def combine(self, made: Mapping, *, train: bool) -> tuple[jax.Array, dict]:
        """Contrastive loss; metrics: in-batch top-1 both ways and duplicates (%), logit_scale, norms of the means."""
        return self._contrast(made, train)

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[jax.Array, dict]:
        """`combine` of `local` of the whole batch."""
        return self.combine(self.local(batch, self.draw(batch, train=train), train=train), train=train)

    def doubt(self, metrics: Mapping[str, float], batch_size: int) -> str:
        """What makes a step of `batch_size` pairs useless, in a sentence; "" where nothing does."""
        if metrics.get("duplicates", 0) < 100 * (1 - 1.5 / batch_size):
            return ""
        return f"all {batch_size} captions of the batch are equal, so the contrast has nothing to tell apart"

    def encode(self, batch: Mapping[str, jax.Array]) -> dict[str, Tokens]:
        """Unmasked tokens of each modality in the batch, each through its own tower."""
        return {s: getattr(self, s)({s: x})[s] for s, x in self._inputs(batch).items()}

    def embed(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Pooled, projected, L2-normalised embeddings [B, embed_width] of each modality in the batch."""
        return {s: getattr(self, f"{s}_head")(t) for s, t in self.encode(batch).items()}

    def dense(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{"image": [B, N, embed_width]}: every patch on its own where texts can be compared with it, row-major."""
        return {"image": self.image_head.dense(self.encode({"image": batch["image"]})["image"])}

    def features(self, batch: Mapping[str, jax.Array], pools: tuple[str, ...]) -> dict[str, jax.Array]:
        """Pictures as what `pools` make of their tokens: see `nn.pool.features`."""
        tokens = self.encode({"image": batch["image"]})["image"]
        return pool_features(tokens, pools, own=self.image_head.pool, embed=self.image_head)
