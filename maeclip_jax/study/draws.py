"""The data of a study's cells: whether a size and a diversity can be drawn, and the files of what is drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maeclip_jax.data import folder, source
from maeclip_jax.errors import UserError
from maeclip_jax.study import design, subsets


def check(axes: design.Axes, runs: Sequence[design.Run]) -> str:
    """What could not be checked, in words; "" where all was. UserError for a cell that cannot be drawn.

    A plan for machines elsewhere may be made where the data are not.
    """
    if axes.data == "scenes":
        for share in axes.diversities:
            source.make(design.load(next(run for run in runs if run.diversity == share), axes).data.source)
        return ""
    try:
        folder.locate(source.data_dir(), axes.data)
    except UserError:
        return f"{axes.data} is not prepared here: whether it has {axes.sizes[-1]:,} pairs was not checked"
    most = {}
    for run in runs:  # the sizes of one draw are nested
        most[run.diversity, run.seed] = max(run.size, most.get((run.diversity, run.seed), 0))
    clusters = _clusters(axes)
    for (share, seed), size in most.items():
        _drawn(axes, size, share, seed, clusters)
    return ""


def write(axes: design.Axes, runs: Sequence[design.Run], to: Path) -> None:
    """The subsets of a prepared set that the runs read, below the study's folder. UserError as of `check`."""
    if axes.data == "scenes":
        return
    clusters = _clusters(axes)
    for run in runs:
        path = Path(design.subset(run.size, run.diversity, run.seed).replace("{study}", os.fspath(to)))
        if not path.exists():
            about = _drawn(axes, run.size, run.diversity, run.seed, clusters)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about, indent=1))


def _clusters(axes: design.Axes) -> np.ndarray | None:
    return subsets.read_clusters(axes.clusters) if axes.clusters else None


def _drawn(axes: design.Axes, size: int, share: float, seed: int, clusters_N: np.ndarray | None) -> dict:
    parent = dict(kind="tfds", name=axes.data, split="train")
    return subsets.make(parent, size, seed=seed, share=share, clusters_N=clusters_N if share != 1 else None)
