"""Validation losses: the objective's own loss and metrics on held-out data, with masks from a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.protocol import Context, Detail, Metric, Picture, batch_within, count_rows


class Loss:
    """`data`: its ops keep what the objective trains on. Metrics: `loss` and whatever the objective reports with it.

    The mean over batches of exactly `batch_size` rows, each row in one batch. Rows that do not fill a last batch are
    left out and counted, because a contrastive loss depends on the size of its batch; so does this figure, for those
    objectives. Data of fewer rows is one batch of all of them, and the numbers say so. Batch n draws its masks from
    `seed` + n. Raises UserError for data without rows, and for a single row where the objective compares pairs.
    """

    def __init__(self, context: Context, *, data: Mapping, batch_size: int = 256, seed: int = 0):
        rows = len(context.source(data))
        self.context, self.data, self.seed = context, data, seed
        self.batch_size = batch_within(context, batch_size, rows)
        self.note = f"a batch of {self.batch_size}" if self.batch_size < batch_size else ""
        least = 2 if getattr(context.objective, "contrastive", False) else 1
        if self.batch_size < least:  # said before training, not after
            raise UserError(
                f"loss: the data has {rows} rows and batch_size is {batch_size}; valid: {least} or more of both"
                + (f", for each of {context.process_count} processes" if context.process_count > 1 else "")
            )

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Mean of every scalar, then how many rows went in."""
        found: dict[str, list[float]] = {}
        batches = left_out = 0
        for n, batch in enumerate(self.context.batches(self.data, self.batch_size)):
            names = [k for k in batch if not k.startswith("_")]
            rows = count_rows(self.context, batch)
            if rows < self.batch_size:
                left_out += rows
                continue
            arrays = {k: np.asarray(batch[k]) for k in names}
            for name, value in self.context.loss(params, arrays, self.seed + n).items():
                found.setdefault(name, []).append(float(value))
            batches += 1
        units = getattr(self.context.objective, "units", {})
        for name, values in found.items():
            unit, better = units.get(name, ("", "lower" if name == "loss" else "none"))
            # Weights, though all the same: an accuracy of 0 or 100 in every batch must not pass for a share of batches.
            items = Items(values, [f"batch {n}" for n in range(batches)], weight=[self.batch_size] * batches)
            yield Metric(name, sum(values) / batches, unit, better, note=self.note, items=items)
        note = f"{batches} batches of {self.batch_size} rows; {left_out} rows that do not fill a batch are left out."
        yield Detail("rows", {"kind": "table", "columns": ["rows used", "rows left out"],
                              "rows": [[batches * self.batch_size, left_out]], "note": note})  # fmt: skip
