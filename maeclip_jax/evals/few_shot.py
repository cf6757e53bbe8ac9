"""Few-shot classification: logistic regression on a few training pictures a class, drawn several times.

There is no validation set to choose l2 on, so it is fixed; to make it mean the same for every objective, features are
centred and scaled so that their mean squared length over the drawn pictures is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals import logistic
from maeclip_jax.evals.accuracy import Labelled, ranks
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.protocol import Context, Detail, Metric, Picture, percent


class FewShot:
    """`data`: pictures it is tested on; `train`: what is drawn from; their ops keep "image" and "label". `shots`:
    pictures a class. `seeds`: how many draws. `l2`: see above. `pool`: own | embed | gap | max | cls | ...

    Metrics in percent: `<n>_shot`, the mean of top-1 over the draws, `<n>_shot_sd`, their standard deviation (of the
    sample); `chance`. A class with fewer pictures than asked for gives all it has; the number says so, and the
    table names it.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        train: Mapping,
        shots: Sequence[int] = (1, 5, 10, 25),
        seeds: int = 3,
        l2: float = 0.1,
        pool: str = "own",
        classes: int | None = None,
        batch_size: int = 256,
    ):
        if not len(shots) or min(shots) < 1 or seeds < 1 or not l2 > 0:
            raise UserError(f"few_shot: shots={shots}, seeds={seeds}, l2={l2} is not valid; valid: 1 or more, l2 > 0")
        self.context, self.shots, self.seeds, self.l2 = context, [*shots], seeds, l2
        self.labelled = Labelled(context, "few_shot", {"data": data, "train": train}, pool, batch_size, classes)

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, then the table of draws."""
        sets = self.labelled.load(params)
        (x_NxD, label_N), (bank_MxD, own_M) = sets["data"], sets["train"]
        classes = self.labelled.classes
        count_C = np.bincount(own_M, minlength=classes)
        rows, notes = [], []
        with self.context.progress("draws", len(self.shots) * self.seeds) as progress:
            for shots in self.shots:
                right_SxN = []
                for seed in range(self.seeds):
                    which = draw(own_M, classes, shots, seed)
                    right_SxN.append(right(bank_MxD[which], own_M[which], x_NxD, label_N, classes, self.l2))
                    progress.update()
                few = np.flatnonzero(count_C < shots)
                all_few = f"at most {count_C.max()} a class"
                said = "" if not len(few) else all_few if len(few) == classes else f"{len(few)} classes have fewer"
                found = 100 * np.mean(right_SxN, axis=1)
                items = Items(100 * np.mean(right_SxN, axis=0), self.labelled.keys)
                yield percent(f"{shots}_shot", np.mean(found), chance=100 / classes, note=said, items=items)
                if self.seeds > 1:
                    yield Metric(f"{shots}_shot_sd", float(np.std(found, ddof=1)), "%", note=said)
                rows.append([shots, float(np.mean(found)), *found.tolist()])
                if len(few):
                    named = ", ".join(f"{self.labelled.name(c)} {count_C[c]}" for c in few[:5])
                    notes.append(
                        f"{len(few)} classes have fewer than {shots}: {named}{', ...' if len(few) > 5 else ''}."
                    )
        note = f"{len(own_M)} training pictures to draw from, {len(label_N)} tested, {classes} classes, l2 {self.l2:g}."
        columns = ["pictures a class", "top-1 (%)", *(f"draw {n + 1}" for n in range(self.seeds))]
        yield Detail("draws", {"kind": "table", "columns": columns, "rows": rows, "note": " ".join([note, *notes])})


def draw(label_M: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` random pictures of every class (all it has, where there are fewer), sorted.

    More shots of the same seed hold the fewer ones.
    """
    order = np.random.default_rng(seed).permutation(len(label_M))
    label_M = label_M[order]
    return np.sort(np.concatenate([order[label_M == c][:shots] for c in range(classes)]))


def right(bank_MxD, own_M, x_NxD, label_N, classes: int, l2: float) -> np.ndarray:
    """bool [N]: which rows of `x` a classifier fitted on `bank` finds."""
    mean_D = bank_MxD.mean(0)
    length = max(float(np.sqrt(np.mean(np.sum((bank_MxD - mean_D) ** 2, axis=1)))), 1e-12)
    fit = logistic.Problem((bank_MxD - mean_D) / length, own_M, classes).solve([l2])
    return ranks(fit.scores((x_NxD - mean_D) / length), label_N) == 0
