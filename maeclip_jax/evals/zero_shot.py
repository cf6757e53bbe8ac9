"""Zero-shot classification: the class whose prompts lie nearest to the picture.

Per class every prompt template is filled in, embedded and L2-normalised; the class embedding is their L2-normalised
mean (Radford et al. 2021, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError, unknown
from maeclip_jax.evals.accuracy import of_classes
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.prompt_lists import class_names, fill, read_templates, set_of_prompts
from maeclip_jax.evals.protocol import (
    Context,
    Detail,
    Metric,
    Picture,
    embed_texts,
    keys_of,
    need_shared_space,
    percent,
    unit_rows,
)

AMONG = ("all", "occurring")


class ZeroShot:
    """`data`: config of the pictures; its ops keep "image" and "label", or "labels" where a picture has several.

    `length`: tokens of a prompt. `classes`: None = the class names of the source; a list in label order; a packaged set
    ("imagenet", by synset); or a file: .txt with a name a line (or `source name<TAB>readable name`), .json with a list
    or {source name: readable name}. `templates`: the name of a packaged set, a file with a list, or a list; "{}" is the
    class name and "{a}" the article that fits it ("a", "an"). `among`: all classes, or only those that are `occurring`
    in the data (ImageNet-A and -R have 200 of 1,000).

    Metrics in percent: `top1`, `top5` (more than 5 classes), `mean_per_class` (one label a picture). A wrong class that
    scores the same as the right one counts as before it: a collapsed model scores 0. With several labels, finding any
    of them is right; pictures without one are left out and counted. Each number names the set of its prompts.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        length: int,
        classes: str | Sequence[str] | None = None,
        templates: str | Sequence[str] = "plain",
        among: str = "all",
        batch_size: int = 256,
    ):
        need_shared_space(context.objective, "zero-shot classification")
        if among not in AMONG:
            raise unknown("zero_shot among", among, AMONG)
        self.context, self.data, self.batch_size, self.among = context, data, batch_size, among
        self.classes = class_names(classes, getattr(context.source(data), "classes", None))
        if len(self.classes) < 2:
            raise UserError(f"zero_shot: {len(self.classes)} class, which any picture finds; at least 2 are needed")
        self.templates, self.words = read_templates(templates), set_of_prompts(templates, classes)
        prompts = [fill(t, c) for c in self.classes for t in self.templates]
        self.prompts_PxT = np.stack([context.tokenizer(p, length) for p in prompts])
        context.want(data, "embed")

    def class_embeddings(self, params: Any) -> np.ndarray:
        """[C, D] float32, rows of length 1."""
        per_class, total, start = len(self.templates), None, 0
        for z_BxD in embed_texts(self.context, params, self.prompts_PxT, self.batch_size):
            if total is None:
                total = np.zeros((len(self.classes), z_BxD.shape[1]), np.float32)
            np.add.at(total, np.arange(start, start + len(z_BxD)) // per_class, z_BxD)
            start += len(z_BxD)
        return unit_rows(total)

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, then the table of classes."""
        z_CxD = self.class_embeddings(params)
        found = self.context.features(params, self.data, self.batch_size, "embed")
        right_NxC = self._right(found)
        has_N = right_NxC.any(1)
        z_NxD, right_NxC = unit_rows(found["image"])[has_N], right_NxC[has_N]
        if not len(z_NxD):
            raise UserError("zero_shot found no labelled pictures in its data; check the split")
        competes_C = right_NxC.any(0) if self.among == "occurring" else np.ones(len(z_CxD), bool)
        if competes_C.sum() < 2:
            raise UserError("zero_shot: 1 class occurs in the data, which any picture finds; set among to 'all'")
        ranks, guesses = [], []
        for start in range(0, len(z_NxD), self.batch_size):
            right_BxC = right_NxC[start : start + self.batch_size]
            score_BxC = z_NxD[start : start + self.batch_size] @ z_CxD.T
            best_B = np.where(right_BxC, score_BxC, -np.inf).max(1)
            # Wrong classes that are not strictly worse: ties, and NaN, count against the model.
            before_BxC = ~(score_BxC < best_B[:, None]) & ~right_BxC & competes_C
            ranks.append(before_BxC.sum(1))
            ahead_BxC = np.where(ranks[-1][:, None] == 0, right_BxC, before_BxC)
            guesses.append(np.where(ahead_BxC, np.nan_to_num(score_BxC, nan=2), -np.inf).argmax(1))
        rank_N, guess_N = np.concatenate(ranks), np.concatenate(guesses)
        count, one = int(competes_C.sum()), bool((right_NxC.sum(1) == 1).all())
        seen_C = right_NxC.sum(0)
        hit_C = (right_NxC & (guess_N[:, None] == np.arange(len(z_CxD)))).sum(0)
        guessing = chance(right_NxC.sum(1), count, 1)
        keys = np.array(keys_of(found.get("key"), len(has_N)), object)[has_N]
        first = Items(100 * (rank_N == 0), keys)
        yield percent("top1", 100 * np.mean(rank_N == 0), chance=guessing, note=self.words, items=first)
        if one:
            each = hit_C[seen_C > 0] / seen_C[seen_C > 0]
            classes = of_classes(each, seen_C)
            yield percent("mean_per_class", 100 * np.mean(each), chance=guessing, note=self.words, items=classes)
        if count > 5:
            five, among = chance(right_NxC.sum(1), count, 5), Items(100 * (rank_N < 5), keys)
            yield percent("top5", 100 * np.mean(rank_N < 5), chance=five, note=self.words, items=among)
        yield Detail("classes", self._table(right_NxC, guess_N, seen_C, hit_C, int((~has_N).sum()), count))

    def _right(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        """bool [N, C]: which classes a picture shows."""
        name = "labels" if "labels" in found else "label"
        if name not in found:
            held = ", ".join(["image", *(k for k in found if k != "image")])
            raise UserError(
                f'zero_shot needs "label" or "labels" in its batches, which hold: {held}; end the ops with '
                'keep("image","label")'
            )
        label_NxK = np.asarray(found[name]).reshape(len(found["image"]), -1)
        bad = label_NxK[(label_NxK >= len(self.classes)) | (label_NxK < (-1 if name == "labels" else 0))]
        if bad.size:
            raise UserError(
                f"zero_shot: label {bad[0]} in the data, but there are {len(self.classes)} class "
                f"names (valid labels: 0 to {len(self.classes) - 1}); set `classes` to the names in label order"
            )
        right_NxC = np.zeros((len(label_NxK), len(self.classes)), bool)
        n, k = np.nonzero(label_NxK >= 0)
        right_NxC[n, label_NxK[n, k]] = True
        return right_NxC

    def _table(self, right_NxC, guess_N, seen_C, hit_C, without: int, competing: int) -> dict:
        rows = []
        for c in np.flatnonzero(seen_C):
            wrong = guess_N[right_NxC[:, c] & (guess_N != c)]
            taken_for = self.classes[np.bincount(wrong).argmax()] if len(wrong) else ""
            rows.append([self.classes[c], int(seen_C[c]), 100 * float(hit_C[c] / seen_C[c]), taken_for])
        columns = ["class", "pictures", "top-1 (%)", "most often taken for"]
        example = fill(self.templates[0], self.classes[0])
        note = f"{competing} classes, {len(guess_N)} pictures, {len(self.templates)} prompts a class: {example!r}"
        note += ", ..." if len(self.templates) > 1 else ""
        note += f"; {without} pictures without a label are left out" if without else ""
        return {"kind": "table", "columns": columns, "rows": rows, "note": note}


def chance(labels_N: np.ndarray, classes: int, k: int) -> float:
    """Percent of pictures of which k different classes, drawn at random, name at least one of `labels_N` right ones."""
    missed_N = np.ones(len(labels_N))
    for i in range(k):
        missed_N *= np.maximum(classes - labels_N - i, 0) / (classes - i)
    return 100 * float(np.mean(1 - missed_N))
