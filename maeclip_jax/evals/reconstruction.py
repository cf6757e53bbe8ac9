"""Reconstruction: pictures and captions with a part masked out, and what the decoder fills in.

Masked-pixel error in the 0..1 scale of pixels and masked-token accuracy in percent, each next to baselines that need
no model. For pixels: each masked patch in its own true mean colour (`patch_mean_mse`), which a model has to beat to
show any structure, and the mean colour of the picture's visible patches (`visible_mean_mse`), which is all that can
be said without a model. The first is told more than a model with plain pixels, and otherwise something else than
one whose targets are normalised per patch (`norm_pix`): there a prediction is un-normalised with one mean and one
deviation of the true patch, taken over its three channels, so it is told how light the patch is and how much is in
it, and not its colour. The baseline for words is the most frequent word among the masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.pictures import pixels_of_patches, sheet
from maeclip_jax.evals.protocol import (
    Context,
    Detail,
    Metric,
    NotApplicable,
    Picture,
    key_rows,
    keys_of,
    percent,
    select,
)

COLUMNS = ("original", "masked", "reconstruction", "mean colours")
GREY = 128
UNIT = "MSE, pixels 0 to 1"


class Reconstruction:
    """`data`: its ops keep "image", "text" or both, as the objective wants them.

    Metrics over all of the data: `masked_mse` (reference: `patch_mean_mse`), both baselines of the same pixels, and
    `token_accuracy` (reference: commonest word).
    Shown: the first `pictures` and the first `captions` rows. Masks are drawn from `seed`, so that two runs (and two
    steps) are shown the same ones.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        batch_size: int = 256,
        pictures: int = 8,
        captions: int = 8,
        seed: int = 0,
    ):
        if not callable(getattr(context.objective, "reconstruct", None)):
            raise NotApplicable("this objective has no decoder, so nothing is reconstructed")
        self.context, self.data, self.batch_size, self.seed = context, data, batch_size, seed
        self.pictures, self.captions = pictures, captions

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics of the streams that the objective fills in, a contact sheet, captions with their gaps filled."""
        own_mean = bool(getattr(self.context.objective, "norm_pix", False))
        errors, tiles, lines, guesses, keys = [], [], [], [], []
        for n, batch in enumerate(self.context.batches(self.data, self.batch_size)):
            held = select(batch, *([s for s in ("image", "text") if s in batch] or ["image"]), who="reconstruction")
            if "text" in held and held["text"].ndim != 2:
                raise UserError(
                    "reconstruction takes one caption a picture: use tokenize(T), not captions(K), in its ops"
                )
            filled = self.context.reconstruct(params, held, self.seed + n)
            for stream in ("image", "text"):
                if stream in filled and stream not in held:
                    select(batch, stream, who="reconstruction")  # says what is missing
            true = self.context.rows(held | {"key": key_rows(batch, len(held["_valid"]))})
            keys.append(true["key"])
            if "image" in filled:
                mask_BxHxW = pixels_of_patches(filled["image_mask"], *true["image"].shape[1:3])
                errors.append(pixel_errors(true["image"], filled["image"], mask_BxHxW, filled["image_mask"]))
                for i in range(min(self.pictures - len(tiles) // len(COLUMNS), len(mask_BxHxW))):
                    flat_HxWx3 = mean_of_patches(true["image"][i][None], filled["image_mask"].shape[1])[0]
                    tiles += triptych(true["image"][i], filled["image"][i], mask_BxHxW[i])
                    tiles.append(pasted(true["image"][i], flat_HxWx3, mask_BxHxW[i]))
            if "text" in filled:
                masked_BxT = filled["text_mask"].astype(bool) & (true["text"] != 0)
                right_BxT = masked_BxT & (true["text"] == filled["text"])
                guesses.append((true["text"][masked_BxT], right_BxT.sum(1), masked_BxT.sum(1)))
                for i in range(min(self.captions - len(lines), len(masked_BxT))):
                    lines.append(self._line(true["text"][i], filled["text"][i], masked_BxT[i]))
        if not tiles and not guesses:
            raise UserError("reconstruction found nothing to reconstruct in its data; check the split")
        keys = keys_of(np.concatenate(keys), sum(map(len, keys)))
        if errors and (error_Nx4 := np.concatenate(errors))[:, -1].any():
            items = [mean_within(keys, error_Nx4[:, i], error_Nx4[:, -1]) for i in range(3)]
            mse, patch_mean, visible_mean = (error_Nx4[:, :3].sum(0) / error_Nx4[:, -1].sum()).tolist()
            yield Metric("masked_mse", mse, UNIT, "lower", reference=patch_mean, items=items[0])
            yield Metric("patch_mean_mse", patch_mean, UNIT, "none", items=items[1])
            yield Metric("visible_mean_mse", visible_mean, UNIT, "none", items=items[2])
        if tiles:
            note = (
                "Grey patches are hidden from the model; the reconstruction keeps the visible ones. The fourth picture"
                " is the baseline: each hidden patch in its own true mean colour."
            )
            if own_mean:
                note += (
                    " The model predicts patches normalised by their mean and deviation over all channels; they are"
                    " painted with the true patch's own, so it is told how light a hidden patch is, and not its colour."
                )
            gap = max(2, tiles[0].shape[0] // 32)
            yield Detail("sheet", {
                "kind": "sheet", "picture": "pictures", "columns": list(COLUMNS), "rows": len(tiles) // len(COLUMNS),
                "gap": gap, "note": note,
            })  # fmt: skip
            yield Picture("pictures", sheet(tiles, len(COLUMNS), gap))
        if guesses:
            true_W, right_N, count_N = (np.concatenate(x) for x in zip(*guesses))
            if len(true_W):
                commonest = 100 * float(np.bincount(true_W).max() / len(true_W))
                items = mean_within(keys, 100 * right_N, count_N)
                yield percent("token_accuracy", 100 * right_N.sum() / len(true_W), reference=commonest, items=items)
            note = f"{len(true_W)} words were masked in all."
            yield Detail("captions", {"kind": "captions", "captions": lines, "note": note})

    def _line(self, true_T: np.ndarray, filled_T: np.ndarray, masked_T: np.ndarray) -> list[dict]:
        """One entry a token: {"true": word}, with "filled": word where it was masked."""
        token, out = self.context.tokenizer.token, []
        for true, filled, masked in zip(true_T.tolist(), filled_T.tolist(), masked_T.tolist()):
            if true:
                out.append({"true": token(true)} | ({"filled": token(filled)} if masked else {}))
        return out


def pixel_errors(true_BxHxWx3, filled_BxHxWx3, mask_BxHxW, mask_BxN) -> np.ndarray:
    """[B, 4], of each picture over masked pixels in 0..1: sum of squared errors, that of each patch's own mean colour,
    that of the visible patches' mean colour, number of values."""
    true = np.asarray(true_BxHxWx3, np.float32) / 255
    filled = np.clip(np.asarray(filled_BxHxWx3, np.float32) / 255, 0, 1)
    weight = mask_BxHxW[..., None].astype(np.float32)
    seen = (1 - weight).sum((1, 2), keepdims=True)
    visible = (true * (1 - weight)).sum((1, 2), keepdims=True) / np.maximum(seen, 1)
    guesses = (filled, mean_of_patches(true, mask_BxN.shape[1]), visible)
    sums = [np.sum(weight * (guess - true) ** 2, axis=(1, 2, 3), dtype=np.float64) for guess in guesses]
    return np.stack([*sums, 3 * weight.sum((1, 2, 3), dtype=np.float64)], axis=1)


def mean_within(keys: Sequence[str], total_N: np.ndarray, count_N: np.ndarray) -> Items:
    """The mean in each picture or caption, which counts with how much of it was masked; those without are left out."""
    has_N = count_N > 0
    names = np.array(keys, object)[has_N]
    return Items(total_N[has_N] / count_N[has_N], names, weight=count_N[has_N])


def mean_of_patches(image_BxHxWx3: np.ndarray, patches: int) -> np.ndarray:
    """Every pixel replaced by the mean colour of its patch."""
    b, h, w, _ = image_BxHxWx3.shape
    p = round((h * w / patches) ** 0.5)
    mean = image_BxHxWx3.reshape(b, h // p, p, w // p, p, 3).mean((2, 4))
    return mean.repeat(p, axis=1).repeat(p, axis=2)


def triptych(true_HxWx3, filled_HxWx3, mask_HxW) -> list[np.ndarray]:
    """[original, masked, reconstruction with the visible patches pasted in], uint8."""
    true = np.asarray(true_HxWx3, np.uint8)
    return [true, pasted(true, np.full(true.shape, GREY), mask_HxW), pasted(true, filled_HxWx3, mask_HxW)]


def pasted(true_HxWx3, filled_HxWx3, mask_HxW) -> np.ndarray:
    """What is masked as filled in, and the rest as it is; uint8."""
    filled = np.clip(np.rint(np.nan_to_num(filled_HxWx3)), 0, 255).astype(np.uint8)
    return np.where(mask_HxW[..., None].astype(bool), filled, np.asarray(true_HxWx3, np.uint8))
