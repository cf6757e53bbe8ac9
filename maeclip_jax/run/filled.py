"""What a decoder filled in where tokens were hidden: pictures and words of one example, for notebooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals import pictures, reconstruction


@dataclasses.dataclass(frozen=True)
class Filled:
    """What a decoder made of one example. `original`, `masked` (hidden patches grey), `image` (visible patches as they
    were, hidden ones as predicted): uint8 [S, S, 3]; `image_mask`: bool [N], True = was hidden; None without a picture.
    `tokens`: one dict a token, {"true": word}, with "filled" where it was hidden; () without a text.
    """

    original: np.ndarray | None = None
    masked: np.ndarray | None = None
    image: np.ndarray | None = None
    image_mask: np.ndarray | None = None
    tokens: tuple[dict, ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, np.ndarray], tokenizer: Any) -> Filled:
        """From one row of a batch, and what the decoder made of it under `made_image`, `made_text` and their masks."""
        found = {}
        if "made_image" in row:
            mask_HxW = pictures.pixels_of_patches(row["made_image_mask"][None], *row["image"].shape[:2])[0]
            tiles = reconstruction.triptych(row["image"], row["made_image"], mask_HxW)
            found = dict(zip(("original", "masked", "image"), tiles), image_mask=row["made_image_mask"])
        if "made_text" in row:
            tokens = zip(*(row[k].tolist() for k in ("text", "made_text", "made_text_mask")))
            found["tokens"] = tuple(
                {"true": tokenizer.token(true)} | ({"filled": tokenizer.token(made)} if hidden else {})
                for true, made, hidden in tokens
                if true
            )
        return cls(**found)

    @property
    def caption(self) -> str:
        """The words, those that were hidden as `[filled in]`, with the true one behind it where it is another."""
        out = []
        for w in self.tokens:
            right = w.get("filled") == w["true"]
            out.append(f"[{w['filled']}]" + ("" if right else f" ({w['true']})") if "filled" in w else w["true"])
        return " ".join(out)

    def show(self, scale: int = 2):
        """A PIL picture: original, what the model saw, what it filled in; enlarged by a whole factor."""
        tiles = [x.repeat(scale, 0).repeat(scale, 1) for x in (self.original, self.masked, self.image) if x is not None]
        if not tiles:
            raise UserError("no picture was reconstructed; see `caption`")
        return pictures.as_picture(pictures.sheet(tiles, len(tiles), gap=4))
