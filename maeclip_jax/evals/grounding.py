"""Grounding: does a map of where the objective looks, given a phrase, lie on what the phrase names?

A query is a picture and the name of a class in its mask. Maps (see `saliency`): "similarity", "gradcam", "rollout";
with other poolings than the tower's own, on the same weights, where asked for. Scores, averaged over queries:

- pointing: the greatest value of the upsampled map lies in the mask or within `tolerance` pixels of it, 15 as the
  pointing game has it (Zhang et al. 2016); the number names the tolerance. Where several pixels share it, the share of
  them that do, so a flat map (whose values differ by rounding only) has what chance has.
- iou: of the mask and the pixels above half of the way from the map's least to its greatest value.
- matched_iou: of the mask and as many of the map's greatest pixels as the mask has. It asks for no threshold.

Only pictures with several classes tell a map that reads the phrase from one that finds what stands out: a table has
them apart. An objective without a space that pictures and texts share is scored by its roll-out, which reads no phrase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError, from_modules, unknown
from maeclip_jax.evals import saliency
from maeclip_jax.evals.items import Items, one_by_one
from maeclip_jax.evals.mask_classes import check_masks, class_names, embed_prompts, make_prompts
from maeclip_jax.evals.pictures import heat, is_flat, sheet, square, thumbnail, upsample
from maeclip_jax.evals.protocol import (
    Context,
    Detail,
    Metric,
    NotApplicable,
    Picture,
    as_text,
    key_rows,
    need_shared_space,
    percent,
    select,
)

METHODS = {"gradcam": "Grad-CAM", "similarity": "similarity", "rollout": "roll-out"}
SCORES = ("pointing", "iou", "matched_iou")
WHO = "grounding"


class Grounding:
    """`data`: its ops keep "image" and "mask" (uint8 [H, W], ids of classes). `length`: tokens of a prompt.

    `classes`, `templates`, `ignore` (ids whose pixels do not count): as in segmentation. A class is asked for where it
    covers at least `min_area` of the counted pixels but not all of them; never the one called "background"; in each
    picture the `phrases` largest. `tolerance`: pixels of the mask, 0 = inside alone; on small pictures 15 are many, and
    chance rises with them. `pools`: "own" and other poolings. `block`: whose input Grad-CAM weighs (see
    `saliency.gradcam` for what suits a pooling). The first `pictures` queries are drawn.

    Metrics in percent: `<map>_<score>`, `<map>_<pool>_<score>`. The chance level is that of a pixel,
    or a mask of the right size, at random. `baseline_center_<score>` is of a map that falls from the picture's centre,
    `baseline_whole_iou` of the whole picture.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        length: int,
        classes: str | Sequence[str] | None = None,
        templates: str | Sequence[str] = "plain",
        methods: Sequence[str] = tuple(METHODS),
        pools: Sequence[str] = ("own",),
        block: int = -1,
        min_area: float = 0.01,
        phrases: int = 6,
        tolerance: float = 15,
        ignore: Sequence[int] = (255,),
        batch_size: int = 32,
        pictures: int = 8,
        tile: int = 128,
    ):
        for method in methods:
            if method not in METHODS:
                raise unknown("grounding method", method, METHODS)
        if "rollout" not in methods or not callable(getattr(context.objective, "features", None)):
            need_shared_space(context.objective, "grounding by phrases")
        if not callable(getattr(context.objective, "features", None)):
            raise NotApplicable("grounding listens to an image tower, and this objective has none to listen to")
        shared = getattr(context.objective, "contrastive", False)
        methods = [m for m in METHODS if m in methods and (shared or m == "rollout")]
        if not methods or not pools:
            raise UserError(f"grounding needs at least one of `methods` ({', '.join(METHODS)}) and one of `pools`")
        if not tolerance >= 0:
            raise UserError(f"grounding: tolerance={tolerance} is not valid; valid: pixels, 0 or more")
        self.block = saliency.check(context.objective, tuple(pools), block)
        # name -> (method, pooling); a patch on its own has no pooling
        self.maps = {
            method if pool == "own" or method == "similarity" else f"{method}_{pool}": (method, pool)
            for method in methods
            for pool in pools
        }
        self.context, self.data, self.batch_size, self.ignore = context, data, batch_size, tuple(ignore)
        self.min_area, self.phrases, self.pictures, self.tile = min_area, phrases, pictures, tile
        self.tolerance = tolerance
        self.classes = class_names(context, data, classes, WHO)
        self.prompts_CxKxT = make_prompts(context, self.classes, templates, length) if shared else None
        self.draw = context.compile(self._draw)

    def _draw(self, objective, params, batch, *z_CxE):
        """{name: [B, Q, N], or [B, 1, N] where the phrase does not matter}"""
        image, out = batch["image"], {}
        if z_CxE:
            text_BxQxE = z_CxE[0][batch["phrase"]]
        for name, (method, pool) in self.maps.items():
            if method == "similarity":
                out[name] = saliency.similarity(objective, params, image, text_BxQxE)
            elif method == "gradcam":
                out[name] = saliency.gradcam(objective, params, image, text_BxQxE, pool=pool, block=self.block)
            else:
                out[name] = saliency.rollout(objective, params, image, pool=pool)[:, None]
        return out

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, the table of maps, a contact sheet."""
        scores, areas, nears, several = {name: [] for name in [*self.maps, "center"]}, [], [], []
        texts, tiles, keys, asked = [], [], [], []
        self.flat = dict.fromkeys(METHODS, 0)
        for image_HxWx3, mask_HxW, present, maps, key in self._pictures(params):
            keys.append(key)
            real = ~np.isin(mask_HxW, self.ignore)
            for q, c in enumerate(present):
                values = {n: x[min(q, len(x) - 1)] for n, x in maps.items()}
                for name, x in values.items():
                    self.flat[self.maps[name][0]] += is_flat(x)
                drawn = {n: upsample(square(x), *mask_HxW.shape) for n, x in values.items()}
                target_P = (mask_HxW == c)[real]
                near_P = within(mask_HxW == c, self.tolerance)[real]
                for name, map_HxW in (drawn | {"center": falling(mask_HxW.shape)}).items():
                    scores[name].append(score(map_HxW[real], target_P, near_P))
                areas.append(target_P.mean())
                nears.append(near_P.mean())
                several.append(len(present) > 1)
                asked.append((len(keys) - 1, c))
                if len(texts) < self.pictures:
                    texts.append(self.classes[c])
                    tiles += self._row(image_HxWx3, mask_HxW == c, drawn)
        if not areas:
            raise UserError(
                f"grounding found no class that covers {100 * self.min_area:g}% of a picture but not all of it; check "
                "the split, `ignore` and `min_area`"
            )
        area_M, score_M = np.array(areas), {name: np.array(s) for name, s in scores.items()}
        chance_M = {"pointing": np.array(nears), "matched_iou": area_M / (2 - area_M)}
        keys = one_by_one(keys)
        group = [keys[picture] for picture, _ in asked]
        queries = [f"{keys[picture]}/{self.classes[c]}" for picture, c in asked]
        for name, values_Mx3 in score_M.items():
            for which, value, value_M in zip(SCORES, 100 * values_Mx3.mean(0), 100 * values_Mx3.T):
                chance = 100 * float(chance_M[which].mean()) if which in chance_M and name != "center" else None
                note = self._how() if which == "pointing" else ""
                items = Items(value_M, queries, group)
                if name == "center":  # of which neither more nor less is better: it is of the data
                    yield Metric(f"baseline_{name}_{which}", value, "%", chance=chance, note=note, items=items)
                else:
                    yield percent(f"{name}_{which}", value, chance=chance, note=note, items=items)
        yield Metric("baseline_whole_iou", 100 * area_M.mean(), "%", items=Items(100 * area_M, queries, group))
        yield Detail("maps", self._table(score_M, chance_M, np.array(several)))
        if tiles:
            columns = ["image", "mask", *(self._title(*m) for m in self.maps.values())]
            gap = max(2, self.tile // 32)
            yield Detail("sheet", {
                "kind": "sheet", "picture": "pictures", "columns": columns, "rows": len(texts), "gap": gap,
                "rows_text": texts,
                "note": "Each map is scaled from its own least (dark) to its own greatest value; a flat map is dark.",
            })  # fmt: skip
            yield Picture("pictures", sheet(tiles, len(columns), gap))

    def _pictures(self, params: Any) -> Iterator[tuple]:
        """(picture or None once no more are drawn, mask, classes asked for, {name: [Q or 1, N]}, key) of every one."""
        z_CxE, queries = (), 0
        if self.prompts_CxKxT is not None:
            z_CxE = (embed_prompts(self.context, params, self.prompts_CxKxT, self.batch_size),)
        for batch in self.context.batches(self.data, self.batch_size):
            held = select(batch, "image", "mask", who=WHO)
            wanted = ("image", "mask", "_valid") if queries < self.pictures else ("mask", "_valid")
            key = key_rows(batch, len(held["_valid"]))
            rows = self.context.rows({name: held[name] for name in wanted} | {"key": key})
            check_masks(rows["mask"], self.classes, self.ignore, WHO)
            asked = [self._present(mask_HxW) for mask_HxW in held["mask"]]
            phrase_BxQ = np.array([a + [0] * (self.phrases - len(a)) for a in asked], np.int32)
            with from_modules():
                maps = self.draw(params, {k: held[k] for k in ("image", "_valid")} | {"phrase": phrase_BxQ}, *z_CxE)
            for i, mask_HxW in enumerate(rows["mask"]):
                present = self._present(mask_HxW)
                queries += len(present)
                image_HxWx3 = rows["image"][i] if "image" in rows else None
                of_picture = {name: maps[name][i] for name in self.maps}
                yield image_HxWx3, mask_HxW, present, of_picture, as_text(rows["key"][i])

    def _present(self, mask_HxW: np.ndarray) -> list[int]:
        """The classes to be asked for, largest first."""
        ids, counts = np.unique(mask_HxW[~np.isin(mask_HxW, self.ignore)], return_counts=True)
        share = counts / max(counts.sum(), 1)
        found = [
            (-s, int(c)) for c, s in zip(ids, share)
            if self.min_area <= s < 1 and c < len(self.classes) and self.classes[c] not in ("", "background")
        ]  # fmt: skip
        return [c for _, c in sorted(found)[: self.phrases]]

    def _how(self) -> str:
        """What counts as pointed at."""
        return f"within {self.tolerance:g} pixels of the mask" if self.tolerance else "inside the mask"

    def _title(self, method: str, pool: str) -> str:
        if method == "similarity":
            return METHODS[method]
        return f"{METHODS[method]}, {self.context.objective.image_tower['pool'] + ' (own)' if pool == 'own' else pool}"

    def _row(
        self, image_HxWx3: np.ndarray, target_HxW: np.ndarray, drawn: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        white = np.repeat(target_HxW[..., None] * np.uint8(255), 3, axis=-1)
        size = image_HxWx3.shape[:2]
        maps = [heat(image_HxWx3, m if m.shape == size else upsample(m, *size)) for m in drawn.values()]
        return [thumbnail(x, self.tile) for x in (image_HxWx3, white, *maps)]

    def _table(self, score_M: Mapping[str, np.ndarray], chance_M: Mapping, several_M: np.ndarray) -> dict:
        titles = {name: self._title(*m) for name, m in self.maps.items()} | {"center": "the picture's centre"}
        rows = [
            [title, *(100 * score_M[name].mean(0)).tolist(), *_mean(score_M[name][several_M, 0])]
            for name, title in titles.items()
        ]
        chance, matched = (100 * float(chance_M[k].mean()) for k in ("pointing", "matched_iou"))
        rows.append(["chance", chance, "", matched, *_mean(chance_M["pointing"][several_M])])
        columns = ["map", "pointing (%)", "IoU (%)", "IoU, area matched (%)", "pointing, several classes (%)"]
        depth = self.context.objective.image_tower["depth"]
        place = "leaving the final norm" if self.block == depth else f"entering block {self.block} of {depth}"
        note = (
            f"{len(several_M)} queries, {int(several_M.sum())} of them in pictures with several classes: only these "
            f"tell whether the phrase is read. Pointing: {self._how()}. Grad-CAM: tokens {place}."
        )
        flat = ", ".join(f"{METHODS[method]} {count}" for method, count in self.flat.items() if count)
        if flat:
            note += f" Flat maps, whose values differ by rounding only and which point nowhere: {flat}."
        return {"kind": "table", "columns": columns, "rows": rows, "note": note}


def _mean(values: np.ndarray) -> list:
    return [100 * float(values.mean())] if len(values) else [""]


def within(target_HxW: np.ndarray, pixels: float) -> np.ndarray:
    """bool [H, W]: the pixels whose centre is at most so far from that of one in the mask, which is not empty."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~target_HxW) <= pixels if pixels else target_HxW


def score(map_P: np.ndarray, target_P: np.ndarray, near_P: np.ndarray) -> tuple[float, float, float]:
    """(pointing, iou, matched_iou) in 0..1 of a map's values and a mask that is neither empty nor everything.

    `near_P`: what may be pointed at, the mask and its surroundings. A map that is not finite scores 0.
    """
    if not np.isfinite(map_P).all():
        return 0.0, 0.0, 0.0
    if is_flat(map_P):
        map_P = np.zeros_like(map_P)
    low, high, area = map_P.min(), map_P.max(), np.count_nonzero(target_P)
    found_P = map_P - low > (high - low) / 2
    iou = np.count_nonzero(found_P & target_P) / np.count_nonzero(found_P | target_P)
    # The `area` greatest values: all above the last of them, and of its equals the share that is needed.
    edge = np.partition(map_P, -area)[-area]
    above_P, level_P = map_P > edge, map_P == edge
    hits = np.count_nonzero(above_P & target_P) + (area - np.count_nonzero(above_P)) * target_P[level_P].mean()
    return float(near_P[map_P == high].mean()), float(iou), float(hits / (2 * area - hits))


def falling(shape: tuple[int, int]) -> np.ndarray:
    """[H, W]: minus the squared distance from the centre."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    return -(y[:, None] ** 2) - x**2
