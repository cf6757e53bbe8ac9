"""Zero-shot segmentation: every pixel takes the class whose prompts lie nearest to its patch.

The protocol of CLIPpy (Ranasinghe et al. 2022): patches on their own through the projection, L2-normalised, upsampled
bilinearly to the size of the mask, and the best cosine wins. (Upsampling is linear, so it is done on the cosines.)

A picture larger than the model takes is seen through a window of the model's size that slides over it by `stride`
pixels; where windows overlap, the cosines of a patch are averaged (so TCL, Cha et al. 2023, and SCLIP, Wang et al.
2024, report it: at 448 pixels, by half a window; they keep the picture's aspect ratio, and here it is resized to a
square). Its numbers stand beside those of the plain way, under a name of their own.

The background, class 0 of sets like Pascal VOC, has no look of its own. What stands for it, `background`:
- "prompt": phrases of its own, `background_words`: a pixel that prefers any of them is background. CLIPpy takes the
  word "background" and 39 words for stuff; the packaged list "stuff", of the same length, is our own choice of words.
- "threshold": pixels whose best cosine does not exceed `threshold`.
- "none": class 0 is a class like any other.
- "auto": "prompt" if class 0 is called background, else "none".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maeclip_jax.errors import UserError, from_modules, unknown
from maeclip_jax.evals.items import Items, one_by_one
from maeclip_jax.evals.mask_classes import check_masks, class_names, embed_prompts, make_prompts
from maeclip_jax.evals.pictures import class_colours, colour_mask, sheet, square, thumbnail, upsample
from maeclip_jax.evals.prompt_lists import FOLDER, read_list, set_of_prompts
from maeclip_jax.evals.protocol import (
    Context,
    Detail,
    Metric,
    Picture,
    as_text,
    key_rows,
    need_shared_space,
    percent,
    select,
)
from maeclip_jax.evals.saliency import similarity

BACKGROUND = ("auto", "prompt", "threshold", "none")
COLUMNS = ("image", "ground truth", "prediction")
LEGEND = 0.02  # of a picture's pixels must be of a class that is not there to bring it into the legend
WHO = "segmentation"


class Segmentation:
    """`data`: its ops keep "image" and "mask" (uint8 [H, W], ids of classes). `length`: tokens of a prompt.

    `classes`: None = the source's `mask_classes`; a list in the order of ids; or a file. An id called "" is never
    found. `templates`: as in zero-shot classification. `ignore`: ids whose pixels do not count.
    `background_words`: a list, a file, or "stuff". `stride`: of the window, for pictures larger than the model takes; a
    multiple of the patch that divides what the picture is larger. The number says the rule of the background, and how
    many windows a picture has.

    Metrics in percent over all pixels of the data: `miou`, the mean over classes that occur in the ground truth or in a
    prediction (all 21 of Pascal VOC's val do); `mean_accuracy`, over classes in the ground truth; `pixel_accuracy`;
    with a background, `foreground_iou`, all other classes taken together. The reference of each is what the most
    frequent class everywhere would have (for `foreground_iou`: foreground everywhere).
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        length: int,
        classes: str | Sequence[str] | None = None,
        templates: str | Sequence[str] = "plain",
        background: str = "auto",
        background_words: str | Sequence[str] = ("background",),
        threshold: float | None = None,
        stride: int | None = None,
        ignore: Sequence[int] = (255,),
        batch_size: int = 64,
        pictures: int = 8,
        tile: int = 128,
    ):
        need_shared_space(context.objective, "zero-shot segmentation")
        if background not in BACKGROUND:
            raise unknown("segmentation background", background, BACKGROUND)
        if background == "threshold" and threshold is None:
            raise UserError('segmentation: background="threshold" needs `threshold`, a cosine from -1 to 1')
        self.context, self.data, self.batch_size, self.ignore = context, data, batch_size, tuple(ignore)
        self.pictures, self.tile, self.threshold = pictures, tile, threshold
        self.classes = class_names(context, data, classes, WHO)
        if background == "auto":
            background = "prompt" if self.classes[0] == "background" else "none"
        self.background = background
        named = [c for c, name in enumerate(self.classes) if name and c not in self.ignore]
        if background != "none":
            named = [c for c in named if c != 0]
        if not named:
            raise UserError("segmentation: `ignore` and empty names leave no class to be found")
        words = read_words(background_words) if background == "prompt" else []
        self.class_of_P = np.array([0] * len(words) + named)
        phrases = [*words, *(self.classes[c] for c in named)]
        self.prompts_PxKxT = make_prompts(context, phrases, templates, length)
        self.words, self.stride = set_of_prompts(templates, classes), stride
        self.scores = context.compile(self._scores)

    def _scores(self, objective: Any, params: Any, batch: Mapping, z_PxE: jax.Array) -> jax.Array:
        """[B, P, N] cosines of phrases and the patches of whole pictures."""
        image = batch["image"]
        if self.stride is None:
            return similarity(objective, params, image, z_PxE)
        tower = objective.image_tower
        places = window_places(image.shape[1], tower["size"], tower["patch"], self.stride)
        seen = [image[:, y : y + tower["size"], x : x + tower["size"]] for y in places for x in places]
        score = similarity(objective, params, jnp.concatenate(seen), z_PxE)
        score_KxBxPxN = score.reshape(len(seen), len(image), *score.shape[1:])
        return averaged(score_KxBxPxN, [n // tower["patch"] for n in places], image.shape[1] // tower["patch"])

    def _how(self, pixels: int) -> str:
        """What the numbers are of, besides the data."""
        said = [self.words, f"background: {self.background}"]
        if self.stride is not None:
            tower = self.context.objective.image_tower
            count = len(window_places(pixels, tower["size"], tower["patch"], self.stride)) ** 2
            said.append(f"{count} windows of {tower['size']} in {pixels} pixels")
        return ", ".join(filter(None, said))

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, the table of classes, a contact sheet."""
        count, tiles, shown, legend = len(self.classes), [], [], set()
        z_PxE = embed_prompts(self.context, params, self.prompts_PxKxT, self.batch_size)
        counts_CxC1 = np.zeros((count, count + 1), np.int64)  # the last column: no answer
        keys, parts = [], []
        for batch in self.context.batches(self.data, self.batch_size):
            image = select(batch, "image", who=WHO)
            how = self._how(image["image"].shape[1])
            with from_modules():
                score_BxPxN = self.scores(params, image, z_PxE)
            held = select(batch, *(["image"] if len(shown) < self.pictures else []), "mask", who=WHO)
            rows = self.context.rows(held | {"key": key_rows(batch, len(held["_valid"]))})
            keys += [as_text(key) for key in rows["key"]]
            check_masks(rows["mask"], self.classes, self.ignore, WHO)
            for i, mask_HxW in enumerate(rows["mask"]):
                found_HxW = self.predict(score_BxPxN[i], mask_HxW.shape)
                one_CxC1 = confusion(mask_HxW, found_HxW, count, self.ignore)
                counts_CxC1 += one_CxC1
                parts.append(areas(one_CxC1))
                if len(shown) < self.pictures:
                    found, pixels = np.unique(found_HxW, return_counts=True)
                    legend |= {*np.unique(mask_HxW).tolist(), *found[pixels >= LEGEND * mask_HxW.size].tolist()}
                    shown.append(np.unique(mask_HxW))
                    tiles += self._row(rows["image"][i], mask_HxW, found_HxW)
        if not counts_CxC1.sum():
            raise UserError("segmentation found no pixels that count in its data; check the split and `ignore`")
        items = items_of(one_by_one(keys), np.stack(parts))
        for metric in metrics(counts_CxC1, self.background != "none"):
            yield dataclasses.replace(metric, note=how, items=items[metric.name])
        yield Detail("classes", self._table(counts_CxC1))
        if tiles:
            gap, colours = max(2, self.tile // 32), class_colours(count)
            hidden = {*self.ignore, *([] if self.background == "none" else [0])}
            named = [c for c in sorted(legend - set(self.ignore)) if c < count]
            yield Detail("sheet", {
                "kind": "sheet", "picture": "pictures", "columns": list(COLUMNS), "rows": len(shown), "gap": gap,
                "rows_text": [", ".join(self.classes[c] for c in ids if c not in hidden) for ids in shown],
                "legend": [[self.classes[c], "#" + bytes(colours[c]).hex()] for c in named],
                "note": "White pixels do not count. The legend leaves out what was found on small patches only.",
            })  # fmt: skip
            yield Picture("pictures", sheet(tiles, len(COLUMNS), gap))

    def predict(self, score_PxN: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """[H, W] ids from the cosines of phrases and patches; the number of classes where there is no answer."""
        score_PxHxW = upsample(square(score_PxN), *shape)
        best_HxW = score_PxHxW.max(0)
        found_HxW = self.class_of_P[score_PxHxW.argmax(0)]
        if self.background == "threshold":
            found_HxW = np.where(best_HxW > self.threshold, found_HxW, 0)
        return np.where(np.isfinite(best_HxW), found_HxW, len(self.classes))  # a broken model gets nothing right

    def _row(self, image_HxWx3: np.ndarray, mask_HxW: np.ndarray, found_HxW: np.ndarray) -> list[np.ndarray]:
        colours = class_colours(len(self.classes))
        hidden = np.isin(mask_HxW, self.ignore)
        masks = [np.where(hidden, 255, m).astype(np.uint8) for m in (mask_HxW, found_HxW)]
        return [thumbnail(x, self.tile) for x in (image_HxWx3, *(colour_mask(m, colours) for m in masks))]

    def _table(self, counts_CxC1: np.ndarray) -> dict:
        iou_C, accuracy_C = per_class(counts_CxC1)
        true_C, rows = counts_CxC1.sum(1), []
        for c in np.flatnonzero(~np.isnan(iou_C)):
            wrong_C = np.where(np.arange(len(true_C)) == c, 0, counts_CxC1[c, :-1])
            taken_for = self.classes[wrong_C.argmax()] if wrong_C.any() else ""
            share = 100 * float(true_C[c] / true_C.sum())
            accuracy = "" if np.isnan(accuracy_C[c]) else 100 * float(accuracy_C[c])
            rows.append([self.classes[c], share, 100 * float(iou_C[c]), accuracy, taken_for])
        columns = ["class", "pixels (%)", "IoU (%)", "accuracy (%)", "most often taken for"]
        phrases, templates = self.prompts_PxKxT.shape[:2]
        note = f"{phrases} phrases, {templates} prompts each. Background: {self.background}"
        note += f" (best cosine up to {self.threshold:g})." if self.background == "threshold" else "."
        return {"kind": "table", "columns": columns, "rows": rows, "note": note}


def window_places(pixels: int, window: int, patch: int, stride: int) -> list[int]:
    """Where windows begin along a side, in pixels. UserError if patches of two would not lie on each other."""
    if stride < 1 or stride % patch or pixels < window or (pixels - window) % stride or stride > window:
        raise UserError(
            f"segmentation: stride={stride} does not suit pictures of {pixels} pixels and windows of {window} in "
            f"patches of {patch}; valid: a multiple of {patch} up to {window} that divides {pixels - window}, or None"
        )
    return list(range(0, pixels - window + 1, stride))


def averaged(score_KxBxPxN: jax.Array, places: Sequence[int], side: int) -> jax.Array:
    """[B, P, side * side]: scores of K windows, which begin at `places` x `places` (in patches), row by row."""
    _, b, p, n = score_KxBxPxN.shape
    inside = round(n**0.5)
    total, times = jnp.zeros((b, p, side, side), score_KxBxPxN.dtype), np.zeros((side, side), np.float32)
    for score_BxPxN, (y, x) in zip(score_KxBxPxN, ((y, x) for y in places for x in places)):
        total = total.at[:, :, y : y + inside, x : x + inside].add(score_BxPxN.reshape(b, p, inside, inside))
        times[y : y + inside, x : x + inside] += 1
    return (total / times[None, None]).reshape(b, p, side * side)


def read_words(words: str | Sequence[str]) -> list[str]:
    """Phrases that mean background: a list, a file, or the packaged list "stuff"."""
    if isinstance(words, str):
        packaged = {p.stem: str(p) for p in FOLDER.glob("*.txt")}
        if words not in packaged and not words.endswith((".txt", ".json")):
            raise unknown("background words", words, [*sorted(packaged), "a .json or .txt file", "a list"])
        words = read_list(packaged.get(words, words), "words")
    if not len(words):
        raise UserError('segmentation: `background_words` is empty; valid: phrases, a file, "stuff"')
    return list(words)


def confusion(mask_HxW: np.ndarray, found_HxW: np.ndarray, count: int, ignore: Sequence[int]) -> np.ndarray:
    """int64 [C, C + 1]: pixels of true class (row) by predicted class; column C holds pixels without an answer."""
    real = ~np.isin(mask_HxW, ignore)
    pairs = mask_HxW[real].astype(np.int64) * (count + 1) + found_HxW[real]
    return np.bincount(pairs, minlength=count * (count + 1)).reshape(count, count + 1)


def areas(counts_CxC1: np.ndarray) -> np.ndarray:
    """[C + 1, 3] pixels: of each class right, its own, found as it; then of foreground found, its own or found, 0."""
    each_Cx3 = np.stack([counts_CxC1.diagonal(), counts_CxC1.sum(1), counts_CxC1.sum(0)[:-1]], axis=1)
    either = counts_CxC1.sum() - counts_CxC1[0, 0] - counts_CxC1[0, -1]
    return np.concatenate([each_Cx3, [[counts_CxC1[1:, 1:-1].sum(), either, 0]]]).astype(np.float64)


def items_of(keys: Sequence[str], areas_NxC1x3: np.ndarray) -> dict[str, Items]:
    """What each metric is the mean of: pictures, and for the means over classes each class of each picture."""
    right_NxC, true_NxC, found_NxC = np.moveaxis(areas_NxC1x3[:, :-1], 2, 0)
    both_N, either_N = areas_NxC1x3[:, -1, 0], areas_NxC1x3[:, -1, 1]
    key_N = np.array(keys, object)

    def within(part_NxC: np.ndarray, whole_NxC: np.ndarray) -> Items:
        several = whole_NxC.shape[1] > 1
        # A picture without a pixel of the whole weighs nothing, and stays: whether it has one may depend on the model.
        n, c = np.nonzero(whole_NxC) if several else (np.arange(len(key_N)), np.zeros(len(key_N), int))
        value = 100 * part_NxC[n, c] / np.maximum(whole_NxC[n, c], 1)
        strata = [f"class {i}" for i in c] if several else None
        return Items(value, key_N[n], stratum=strata, weight=whole_NxC[n, c])

    return {
        "miou": within(right_NxC, true_NxC + found_NxC - right_NxC),
        "mean_accuracy": within(right_NxC, true_NxC),
        "pixel_accuracy": within(right_NxC.sum(1, keepdims=True), true_NxC.sum(1, keepdims=True)),
        "foreground_iou": within(both_N[:, None], either_N[:, None]),
    }


def per_class(counts_CxC1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(IoU, accuracy) [C] in 0..1; NaN for a class that occurs nowhere, or not in the ground truth."""
    true_C, found_C, right_C = counts_CxC1.sum(1), counts_CxC1.sum(0)[:-1], counts_CxC1.diagonal()
    with np.errstate(invalid="ignore"):
        return right_C / (true_C + found_C - right_C), np.where(true_C > 0, right_C / true_C, np.nan)


def metrics(counts_CxC1: np.ndarray, background: bool) -> list[Metric]:
    """Percent; see `Segmentation`."""
    iou_C, accuracy_C = per_class(counts_CxC1)
    true_C, all_ = counts_CxC1.sum(1), counts_CxC1.sum()
    occurring = np.count_nonzero(true_C)
    most = true_C.max() / all_
    out = [
        ("miou", np.nanmean(iou_C), most / occurring),
        ("mean_accuracy", np.nanmean(accuracy_C), 1 / occurring),
        ("pixel_accuracy", counts_CxC1.diagonal().sum() / all_, most),
    ]
    if background:
        both, either = counts_CxC1[1:, 1:-1].sum(), all_ - counts_CxC1[0, 0] - counts_CxC1[0, -1]
        out.append(("foreground_iou", both / either if either else 0, 1 - true_C[0] / all_))
    return [percent(name, 100 * value, reference=100 * float(reference)) for name, value, reference in out]
