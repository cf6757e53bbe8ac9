"""MAE and M3AE: reconstruct masked patches, or masked patches and masked words. One module, one or two streams.

MAE (He et al. 2021): picture only. M3AE (Geng et al. 2022): one encoder over [cls | kept patches | kept words], joint
decoder; its text loss counts masked words that are not padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from maeclip_jax.nn.pool import Pool, Tokens
from maeclip_jax.nn.pool import features as pool_features
from maeclip_jax.nn.tower import Decoder, Encoder
from maeclip_jax.objectives.reconstruction import (
    UNITS,
    filled_in,
    mask_noise,
    masks,
    reconstruction_errors,
    reconstruction_losses,
)
from maeclip_jax.objectives.streams import (
    check_class_token,
    example,
    path_noise,
    paths,
    split_tower,
    stream_inputs,
    token_counts,
)


class Masked(nn.Module):
    """MAE (`streams=("image",)`) or M3AE (`streams=("image", "text")`).

    `image_tower`: dict(size, patch, width, depth, heads, cls, pool, ...) of the encoder; `text_tower`: dict(vocab,
    length, pool, ...) of the words in it (M3AE); `decoder_tower`: dict(width, depth, heads). `mask`: stream -> share
    masked out. `weights`: stream -> weight of its loss. `mask_words`: any | one, see `masks`. `norm_pix`: per-patch
    normalised targets, `patch_weight`: one | variance, see `reconstruction_errors`. `compute`: dtype, layers, remat,
    attention, mlp.
    """

    image_tower: Mapping
    decoder_tower: Mapping
    mask: Mapping
    weights: Mapping
    text_tower: Mapping | None = None
    streams: tuple[str, ...] = ("image",)
    mask_share: str = "sample"
    mask_words: str = "any"
    norm_pix: bool = True
    patch_weight: str = "one"
    stats: str = "imagenet"
    compute: Mapping | None = None

    contrastive = False
    generative = True
    units = UNITS

    def setup(self):
        check_class_token(self.image_tower)
        picture, tower, head = split_tower(self.image_tower)
        self.image_pool = Pool(head["pool"], tower["heads"], head.get("map"))
        text_embed = None
        if "text" in self.streams:
            text_embed, _, text_head = split_tower(self.text_tower)
            self.text_pool = Pool(text_head["pool"], tower["heads"], text_head.get("map"))
        encoder = Encoder(image=picture, text=text_embed, compute=self.compute, **tower)
        # The encoder's sub-tree is called after what goes in, so that `image/` means the same in every objective.
        if text_embed is None:
            self.image = encoder
        else:
            self.image_text = encoder
        shape = dict(vocab=text_embed["vocab"], length=text_embed["length"]) if text_embed else None
        self.decoder = Decoder(image=picture, text=shape, compute=self.compute, **self.decoder_tower)

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What one example must hold."""
        return example(self.image_tower, self.text_tower if "text" in self.streams else None)

    def _inputs(self, batch) -> dict[str, jax.Array]:
        return stream_inputs(batch, self.image_tower, self.stats, self.streams)

    def _encoder(self) -> Encoder:
        return self.image_text if "text" in self.streams else self.image

    def draw(self, batch: Mapping[str, jax.Array], *, train: bool) -> dict:
        """Noise by which each example is masked, and drops paths of the encoder."""
        tokens = token_counts(batch, self.image_tower, self.streams)
        noise = mask_noise(self.make_rng("mask"), tokens, batch["image"].shape[0], self.mask_share)
        return {"mask": noise} | (paths(self, batch, {"encoder": self.image_tower}) if train else {})

    def _predict(self, batch, drawn, hidden_words: bool = False):
        inputs = self._inputs(batch)
        kept = masks(drawn["mask"], inputs, self.mask, self.mask_words)
        tokens = self._encoder()(inputs, kept, path_noise(drawn, "encoder"))
        pad_BxT = inputs["text"] == 0 if "text" in inputs else None
        return self.decoder(tokens, kept, pad_BxT, hidden_words), inputs, kept

    def local(self, batch: Mapping[str, jax.Array], drawn: Mapping, *, train: bool) -> dict:
        """What each example's reconstruction lacks: see `reconstruction_errors`."""
        if self.is_initializing():
            self.embed(batch)  # a pooling with parameters exists from the start, so that probes find it
        predicted = self._predict(batch, drawn, hidden_words=True)
        return reconstruction_errors(*predicted, self.norm_pix, self.patch_weight)

    def combine(self, made: Mapping, *, train: bool) -> tuple[jax.Array, dict]:
        """Weighted sum of reconstruction losses; metrics `image`, `text` (nats per word) and `text_accuracy` (%)."""
        parts = reconstruction_losses(made)
        return sum(self.weights[s] * parts[s] for s in self.streams), parts

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[jax.Array, dict]:
        """`combine` of `local` of the whole batch."""
        return self.combine(self.local(batch, self.draw(batch, train=train), train=train), train=train)

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

    def reconstruct(self, batch: Mapping[str, jax.Array], words: int | None = None) -> dict[str, jax.Array]:
        """What the decoder fills in: see `filled_in`."""
        return filled_in(
            *self._predict(batch, self.draw(batch, train=False)), norm_pix=self.norm_pix, stats=self.stats,
            patch=self.image_tower["patch"], size=self.image_tower["size"], words=words,
        )  # fmt: skip
