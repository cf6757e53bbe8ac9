"""MAE-CLIP: CLIP, plus a masked pass through the same towers and a decoder across both modalities.

Source: Weers et al., CVPR 2023: shared encoders, separate forward passes (contrastive unmasked, generative masked),
weighted sum of the losses. The weights are not known from the paper; the experiment files say which are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax

from maeclip_jax.nn.tower import Decoder
from maeclip_jax.objectives.clip import Clip
from maeclip_jax.objectives.reconstruction import (
    UNITS,
    filled_in,
    mask_noise,
    masks,
    reconstruction_errors,
    reconstruction_losses,
)
from maeclip_jax.objectives.streams import path_noise, token_counts


class MaeClip(Clip):
    """CLIP's towers used twice. `decode`: streams the masked pass covers, ("image", "text") or ("image",).

    `decoder_tower`: dict(width, depth, heads). `mask`: stream -> share masked out. `weights`: contrast, image, text.
    `mask_words`: any | one, see `masks`; `norm_pix`, `patch_weight`: see `reconstruction_errors`.
    """

    decoder_tower: Mapping | None = None
    mask: Mapping | None = None
    weights: Mapping | None = None
    decode: tuple[str, ...] = ("image", "text")
    mask_words: str = "any"
    norm_pix: bool = True
    patch_weight: str = "one"

    generative = True
    units = Clip.units | UNITS

    def setup(self):
        super().setup()
        if tuple(self.decode) not in (("image", "text"), ("image",)):
            raise ValueError(f"unknown decode {self.decode!r}; valid: ('image', 'text'), ('image',)")
        shape = {k: self.text_tower[k] for k in ("vocab", "length")} if "text" in self.decode else None
        picture = {k: self.image_tower[k] for k in ("size", "patch")}
        self.decoder = Decoder(
            image=picture, text=shape, projection="per_stream", compute=self.compute, **self.decoder_tower
        )

    def _passes(self) -> dict[str, Mapping]:
        return super()._passes() | {f"masked_{s}": getattr(self, f"{s}_tower") for s in self.decode}

    def draw(self, batch: Mapping[str, jax.Array], *, train: bool) -> dict:
        """Of CLIP, and noise by which the masked pass of each example is masked."""
        drawn = super().draw(batch, train=train)
        tokens = token_counts(batch, self.image_tower, tuple(self.decode))
        noise = mask_noise(self.make_rng("mask"), tokens, batch["image"].shape[0], self.mask_share)
        return drawn | {"mask": noise}

    def _predict(self, inputs: Mapping[str, jax.Array], drawn: Mapping, hidden_words: bool = False):
        inputs = {s: inputs[s] for s in self.decode}
        kept = masks(drawn["mask"], inputs, self.mask, self.mask_words)
        tokens = {
            s: getattr(self, s)({s: x}, {s: kept[s]}, path_noise(drawn, f"masked_{s}"))[s] for s, x in inputs.items()
        }
        pad_BxT = inputs["text"] == 0 if "text" in inputs else None
        return self.decoder(tokens, kept, pad_BxT, hidden_words), inputs, kept

    def local(self, batch: Mapping[str, jax.Array], drawn: Mapping, *, train: bool) -> dict:
        """Embeddings, and what each example's reconstruction lacks."""
        inputs = self._inputs(batch)
        made = self._embedded(inputs, drawn)
        predicted = self._predict(inputs, drawn, hidden_words=True)
        return made | {"errors": reconstruction_errors(*predicted, self.norm_pix, self.patch_weight)}

    def combine(self, made: Mapping, *, train: bool) -> tuple[jax.Array, dict]:
        """w_contrast * contrastive + w_image * image + w_text * text; metrics of CLIP and of the reconstruction."""
        contrast, metrics = self._contrast(made, train)
        parts = reconstruction_losses(made["errors"])
        loss = self.weights["contrast"] * contrast + sum(self.weights[s] * parts[s] for s in self.decode)
        return loss, metrics | parts

    def reconstruct(self, batch: Mapping[str, jax.Array], words: int | None = None) -> dict[str, jax.Array]:
        """What the decoder fills in: see `masked.filled_in`."""
        return filled_in(
            *self._predict(self._inputs(batch), self.draw(batch, train=False)), norm_pix=self.norm_pix,
            stats=self.stats, patch=self.image_tower["patch"], size=self.image_tower["size"], words=words,
        )  # fmt: skip
