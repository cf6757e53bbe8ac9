"""MAE and M3AE: reconstruct masked patches, or masked patches and masked words. One module, one or two streams.

MAE (He et al. 2021): picture only. M3AE (Geng et al. 2022): one encoder over [cls | kept patches | kept words], joint
decoder; its text loss counts the masked words that are not padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn import pixels
from maeclip_jax.nn.mask import Kept, keep_count, random_keep
from maeclip_jax.nn.pool import Pool, Tokens, parse
from maeclip_jax.nn.pool import features as pool_features
from maeclip_jax.nn.tower import Decoder, Encoder
from maeclip_jax.objectives import losses

# Settings of a tower: those of its embedding, and those of the operations on its tokens.
EMBEDDING = ("size", "patch", "position", "patch_bias", "vocab", "length", "std", "padding")
HEAD = ("pool", "projection", "map")


def patches(batch: Mapping[str, jax.Array], image: Mapping, stats: str) -> jax.Array:
    """The normalised patches [B, N, P] of a batch's pictures; ValueError if they do not have the tower's size."""
    height, width = batch["image"].shape[1:3]
    if (height, width) != (image["size"], image["size"]):
        raise ValueError(f"pictures are {height}x{width}, the image tower takes {image['size']}x{image['size']}")
    return pixels.patchify(pixels.normalise(batch["image"], stats), image["patch"])


def stream_inputs(
    batch: Mapping[str, jax.Array], image: Mapping, stats: str, streams: tuple[str, ...] = ("image", "text")
) -> dict[str, jax.Array]:
    """What towers take of a batch: patches [B, N, P] and ids [B, T], of those `streams` that are in it."""
    inputs = {}
    if "image" in batch:
        inputs["image"] = patches(batch, image, stats)
    if "text" in batch and "text" in streams:
        inputs["text"] = batch["text"]
    return inputs


def split_tower(tower: Mapping) -> tuple[dict, dict, dict]:
    """A config's tower as what belongs to (its embedding, its encoder, the head on top of it)."""

    def of(names: tuple[str, ...]) -> dict:
        return {k: v for k, v in tower.items() if k in names}

    return of(EMBEDDING), {k: v for k, v in tower.items() if k not in (*EMBEDDING, *HEAD)}, of(HEAD)


def check_class_token(tower: Mapping) -> None:
    """Raises ValueError if the image pooling needs a class token that the tower does not have."""
    if parse(tower["pool"])[0] == "cls" and not tower.get("cls"):
        raise ValueError("image_tower.pool is cls but image_tower.cls is False: there is no class token to take")


def example(image: Mapping | None, text: Mapping | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example's picture and text, from the towers that take them."""
    shapes = {}
    if image is not None:
        shapes["image"] = jax.ShapeDtypeStruct((image["size"], image["size"], 3), jnp.uint8)
    if text is not None:
        shapes["text"] = jax.ShapeDtypeStruct((text["length"],), jnp.int32)
    return shapes


def draw_masks(rng: jax.Array, inputs: Mapping[str, jax.Array], ratio: Mapping, share: str) -> dict[str, Kept]:
    """Per stream, which tokens are kept; streams draw independently. `ratio`: stream -> share masked out."""
    kept = {}
    for i, (stream, x) in enumerate(sorted(inputs.items())):
        batch, length = x.shape[:2]
        kept[stream] = random_keep(jax.random.fold_in(rng, i), batch, length, keep_count(length, ratio[stream]), share)
    return kept


def reconstruction_losses(
    predicted: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array], kept: Mapping[str, Kept], norm_pix: bool
) -> dict[str, jax.Array]:
    """{"image": MSE on masked patches, "text": CE on masked words, "text_accuracy": percent} of what was predicted."""
    out = {}
    if "image" in predicted:
        target = losses.patch_normalise(inputs["image"])[0] if norm_pix else inputs["image"]
        out["image"] = losses.reconstruction_image(predicted["image"], target, kept["image"].mask_BxN)
    if "text" in predicted:
        text_BxT = inputs["text"]
        out["text"], out["text_accuracy"] = losses.reconstruction_text(
            predicted["text"], text_BxT, kept["text"].mask_BxN, text_BxT == 0
        )
    return out


def filled_in(predicted, inputs, kept, *, norm_pix: bool, stats: str, patch: int, size: int) -> dict[str, jax.Array]:
    """Predictions as things to look at: `image` [B, H, W, 3] float in 0..255 as predicted everywhere (per-patch
    normalisation undone with the target's own mean and deviation, as MAE's pictures are made), `image_mask` [B, N],
    `text` [B, T] most likely words, `text_mask` [B, T]."""
    out = {}
    if "image" in predicted:
        x_BxNxP = predicted["image"]
        if norm_pix:
            _, mean, std = losses.patch_normalise(inputs["image"])
            x_BxNxP = x_BxNxP * std + mean
        out["image"] = pixels.denormalise(pixels.unpatchify(x_BxNxP, patch, size, size), stats)
        out["image_mask"] = kept["image"].mask_BxN
    if "text" in predicted:
        out["text"] = jnp.argmax(predicted["text"], axis=-1).astype(jnp.int32)
        out["text_mask"] = kept["text"].mask_BxN
    return out


class Masked(nn.Module):
    """MAE (`streams=("image",)`) or M3AE (`streams=("image", "text")`).

    `image_tower`: dict(size, patch, width, depth, heads, cls, pool, ...) of the encoder; `text_tower`: dict(vocab,
    length, pool, ...) of the words in it (M3AE); `decoder_tower`: dict(width, depth, heads). `mask`: stream -> share
    masked out. `weights`: stream -> weight of its loss. `norm_pix`: per-patch normalised targets. `compute`: dtype,
    layers, remat, attention.
    """

    image_tower: Mapping
    decoder_tower: Mapping
    mask: Mapping
    weights: Mapping
    text_tower: Mapping | None = None
    streams: tuple[str, ...] = ("image",)
    mask_share: str = "sample"
    norm_pix: bool = True
    stats: str = "imagenet"
    compute: Mapping | None = None

    contrastive = False
    generative = True

    def setup(self):
        check_class_token(self.image_tower)
        picture, tower, head = split_tower(self.image_tower)
        self.image_pool = Pool(head["pool"], tower["heads"], head.get("map"))
        words = None
        if "text" in self.streams:
            words, _, text_head = split_tower(self.text_tower)
            self.text_pool = Pool(text_head["pool"], tower["heads"], text_head.get("map"))
        encoder = Encoder(image=picture, text=words, compute=self.compute, **tower)
        # The encoder's sub-tree is called after what goes in, so that `image/` means the same in every objective.
        if words is None:
            self.image = encoder
        else:
            self.image_text = encoder
        shape = dict(vocab=words["vocab"], length=words["length"]) if words else None
        self.decoder = Decoder(image=picture, text=shape, compute=self.compute, **self.decoder_tower)

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What one example must hold."""
        return example(self.image_tower, self.text_tower if "text" in self.streams else None)

    def _inputs(self, batch) -> dict[str, jax.Array]:
        return stream_inputs(batch, self.image_tower, self.stats, self.streams)

    def _encoder(self) -> Encoder:
        return self.image_text if "text" in self.streams else self.image

    def _predict(self, batch):
        inputs = self._inputs(batch)
        kept = draw_masks(self.make_rng("mask"), inputs, self.mask, self.mask_share)
        tokens = self._encoder()(inputs, kept)
        pad_BxT = inputs["text"] == 0 if "text" in inputs else None
        return self.decoder(tokens, kept, pad_BxT), inputs, kept

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[jax.Array, dict]:
        """Weighted sum of reconstruction losses; metrics `image`, `text` (nats per word) and `text_accuracy` (%)."""
        parts = reconstruction_losses(*self._predict(batch), self.norm_pix)
        loss = sum(self.weights[s] * parts[s] for s in self.streams)
        if self.is_initializing():
            self.embed(batch)  # a pooling with parameters exists from the start, so that probes find it
        return loss, parts

    def encode(self, batch: Mapping[str, jax.Array]) -> dict[str, Tokens]:
        """Unmasked tokens of whatever is in the batch; with both, encoded together."""
        return self._encoder()(self._inputs(batch))

    def embed(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Pooled tokens per stream; nothing is projected or normalised, since nothing was trained to be compared."""
        return {s: getattr(self, f"{s}_pool")(t) for s, t in self.encode(batch).items()}

    def features(self, batch: Mapping[str, jax.Array], pools: tuple[str, ...]) -> dict[str, jax.Array]:
        """Pictures as what `pools` make of their tokens: see `nn.pool.features`."""
        tokens = self.encode({"image": batch["image"]})["image"]
        return pool_features(tokens, pools, own=self.image_pool, embed=self.image_pool)

    def reconstruct(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the decoder fills in: see `filled_in`."""
        return filled_in(
            *self._predict(batch), norm_pix=self.norm_pix, stats=self.stats,
            patch=self.image_tower["patch"], size=self.image_tower["size"],
        )  # fmt: skip
