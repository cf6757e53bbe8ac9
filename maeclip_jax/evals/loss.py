"""Validation losses: the objective's own loss and metrics on held-out data, with masks from a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals.protocol import Context, Detail, Metric, Picture, count_rows


class Loss:
    """`data`: its ops keep what the objective trains on. Metrics: `loss` and whatever the objective reports with it.

    The mean over batches of exactly `batch_size` rows, each row in one batch. Rows that do not fill a last batch are
    left out and counted, because a contrastive loss depends on the size of its batch; so does this figure, for those
    objectives. Batch n draws its masks from `seed` + n.
    """

    def __init__(self, context: Context, *, data: Mapping, batch_size: int = 256, seed: int = 0):
        self.context, self.data, self.batch_size, self.seed = context, data, batch_size, seed
        rows = len(context.source(data))
        if rows < batch_size:  # said before training, not after
            raise UserError(
                f"loss: the data has {rows} rows, which do not fill one batch of {batch_size}; "
                f"set batch_size to at most {rows}"
            )

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Mean of every scalar, then how many rows went in."""
        sums: dict[str, float] = {}
        batches = left_out = 0
        for n, batch in enumerate(self.context.batches(self.data, self.batch_size)):
            names = [k for k in batch if not k.startswith("_")]
            rows = count_rows(self.context, batch)
            if rows < self.batch_size:
                left_out += rows
                continue
            arrays = {k: np.asarray(batch[k]) for k in names}
            for name, value in self.context.loss(params, arrays, self.seed + n).items():
                sums[name] = sums.get(name, 0.0) + float(value)
            batches += 1
        units = getattr(self.context.objective, "units", {})
        for name, total in sums.items():
            yield Metric(name, total / batches, *units.get(name, ("", "lower" if name == "loss" else "none")))
        note = f"{batches} batches of {self.batch_size} rows; {left_out} rows that do not fill a batch are left out."
        yield Detail("rows", {"kind": "table", "columns": ["rows used", "rows left out"],
                              "rows": [[batches * self.batch_size, left_out]], "note": note})  # fmt: skip
