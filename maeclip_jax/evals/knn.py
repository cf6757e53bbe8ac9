"""k nearest neighbours on frozen features: nothing is trained, so it is the cheap look at a representation.

Cosine similarity; each of the k nearest training pictures votes for its class with exp(similarity / temperature) (Wu
et al. 2018, section 3.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals import representation
from maeclip_jax.evals.accuracy import Labelled, accuracies, ranks
from maeclip_jax.evals.protocol import Context, Detail, Metric, Picture, unit_rows

BLOCK_BYTES = 1 << 26  # similarities at a time


class Knn:
    """`data`: pictures it is tested on; `train`: the neighbours; their ops keep "image" and "label". `k`: a number, or
    several, of which the first is the headline. `pool`: own | embed | gap | max | cls | ...

    Metrics in percent: `top1`, `mean_per_class`, `top5` (more than 5 classes), `top1_k<k>` of the other k; each
    with its chance level. Where k is more than the training pictures, all of them vote, and the number says so. A class
    that ties with the right one counts as before it. `effective_rank` of the tested pictures: see `representation`.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        train: Mapping,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        pool: str = "own",
        classes: int | None = None,
        batch_size: int = 256,
    ):
        self.k = [k] if isinstance(k, int) else [*k]
        if not self.k or min(self.k) < 1 or not temperature > 0:
            raise UserError(
                f"knn: k={k}, temperature={temperature} is not valid; valid: k of 1 or more, temperature > 0"
            )
        self.context, self.temperature = context, temperature
        self.labelled = Labelled(context, "knn", {"data": data, "train": train}, pool, batch_size, classes)

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, then the table over k."""
        sets = self.labelled.load(params)
        (x_NxD, label_N), (bank_MxD, own_M) = sets["data"], sets["train"]
        classes = self.labelled.classes
        with self.context.progress("pictures", len(x_NxD)) as progress:
            rank_KxN = neighbours(
                unit_rows(x_NxD),
                label_N,
                unit_rows(bank_MxD),
                own_M,
                [min(k, len(own_M)) for k in self.k],
                self.temperature,
                classes,
                progress.update,
            )
        notes = [f"all {len(own_M)} neighbours" if k > len(own_M) else "" for k in self.k]
        all_k = [
            [dataclasses.replace(m, note=note) for m in accuracies(rank_N, label_N, classes, self.labelled.keys)]
            for rank_N, note in zip(rank_KxN, notes)
        ]
        yield from all_k[0]
        yield representation.effective_rank(x_NxD)
        for k, found in zip(self.k[1:], all_k[1:]):
            yield dataclasses.replace(found[0], name=f"top1_k{k}")
        rows = [[k, top1.value, mean_per_class.value] for k, (top1, mean_per_class, *_) in zip(self.k, all_k)]
        note = f"{len(own_M)} training pictures, {len(label_N)} tested, {classes} classes."
        if max(self.k) > len(own_M):
            note += f" Where k is more than {len(own_M)}, all training pictures vote."
        columns = ["k", "top-1 (%)", "mean per class (%)"]
        yield Detail("neighbours", {"kind": "table", "columns": columns, "rows": rows, "note": note})


def neighbours(x_NxD, label_N, bank_MxD, own_M, ks, temperature, classes, tick=lambda n: None) -> np.ndarray:
    """Ranks of the right class [K, N], for every k; rows of `x` and `bank` have length 1. Blockwise in memory."""
    out = np.empty((len(ks), len(x_NxD)), np.int64)
    most = max(ks)
    size = max(1, BLOCK_BYTES // (4 * max(len(bank_MxD), classes)))
    for start in range(0, len(x_NxD), size):
        rows = slice(start, min(start + size, len(x_NxD)))
        # Equal rows of the bank have equal cosines only up to rounding, which differs between blocks of a product:
        # without this, the order of the bank would break ties.
        near_BxM = np.round(x_NxD[rows] @ bank_MxD.T, 6)
        which_Bxk = np.argpartition(-near_BxM, most - 1, axis=1)[:, :most]
        near_Bxk = np.take_along_axis(near_BxM, which_Bxk, axis=1)
        order = np.argsort(-near_Bxk, axis=1, kind="stable")
        which_Bxk, near_Bxk = (np.take_along_axis(a, order, axis=1) for a in (which_Bxk, near_Bxk))
        weight_Bxk = np.exp((near_Bxk - near_Bxk[:, :1]) / temperature)  # the nearest one votes with 1
        row_Bxk = np.broadcast_to(np.arange(len(near_Bxk))[:, None], which_Bxk.shape)
        for n, k in enumerate(ks):
            vote_BxC = np.zeros((len(near_Bxk), classes))
            np.add.at(vote_BxC, (row_Bxk[:, :k], own_M[which_Bxk[:, :k]]), weight_Bxk[:, :k])
            out[n, rows] = ranks(vote_BxC, label_N[rows])
        tick(rows.stop - rows.start)
    return out
