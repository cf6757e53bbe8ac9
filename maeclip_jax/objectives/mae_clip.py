"""MAE-CLIP: CLIP, plus a masked pass through the same towers and a decoder across both modalities.

Source: Weers et al., CVPR 2023: shared encoders, separate forward passes (contrastive unmasked, generative masked),
weighted sum of the losses. The weights are not known from the paper; the experiment files say which are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax

from maeclip_jax.nn.tower import Decoder
from maeclip_jax.objectives.clip import Clip
from maeclip_jax.objectives.reconstruction import UNITS, draw_masks, filled_in, reconstruction_losses


class MaeClip(Clip):
    """CLIP's towers used twice. `decode`: streams the masked pass covers, ("image", "text") or ("image",).

    `decoder_tower`: dict(width, depth, heads). `mask`: stream -> share masked out. `weights`: contrast, image, text.
    `mask_words`: any | one, see `draw_masks`; `norm_pix`, `patch_weight`: see `reconstruction_losses`.
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

    def _predict(self, inputs: Mapping[str, jax.Array], hidden_words: bool = False):
        inputs = {s: inputs[s] for s in self.decode}
        kept = draw_masks(self.make_rng("mask"), inputs, self.mask, self.mask_share, self.mask_words)
        tokens = {s: getattr(self, s)({s: x}, {s: kept[s]})[s] for s, x in inputs.items()}
        pad_BxT = inputs["text"] == 0 if "text" in inputs else None
        return self.decoder(tokens, kept, pad_BxT, hidden_words), inputs, kept

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[jax.Array, dict]:
        """w_contrast * contrastive + w_image * image + w_text * text; metrics of CLIP and of the reconstruction."""
        inputs = self._inputs(batch)
        contrast, metrics = self._contrast(inputs, train)
        parts = reconstruction_losses(*self._predict(inputs, hidden_words=True), self.norm_pix, self.patch_weight)
        loss = self.weights["contrast"] * contrast + sum(self.weights[s] * parts[s] for s in self.decode)
        return loss, metrics | parts

    def reconstruct(self, batch: Mapping[str, jax.Array], words: int | None = None) -> dict[str, jax.Array]:
        """What the decoder fills in: see `masked.filled_in`."""
        return filled_in(
            *self._predict(self._inputs(batch)), norm_pix=self.norm_pix, stats=self.stats,
            patch=self.image_tower["patch"], size=self.image_tower["size"], words=words,
        )  # fmt: skip
