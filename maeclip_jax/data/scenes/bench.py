"""How fast scenes are drawn, and what they look like."""

from __future__ import annotations

import time

import numpy as np

from maeclip_jax.data.scenes.stream import sample, scene
from maeclip_jax.data.scenes.world import SceneSpec


def rates(spec: SceneSpec, seconds: float = 2.0) -> dict:
    """Pictures per second on one core with captions (`sample`) and with everything (`scene`), after `warm_seconds` in
    which the first 1500 scenes filled the cache of stamps. Time of the process, so other processes do not count."""
    start = time.process_time()
    for index in range(1500):
        sample(spec, 0, index)
    found = {"resolution": spec.resolution, "objects": list(spec.objects), "warm_seconds": time.process_time() - start}
    for draw in (sample, scene):
        n, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            draw(spec, 1, n)
            n += 1
        found[f"{draw.__name__}_per_second"] = n / spent
    return found


def sheet(spec: SceneSpec, seed: int = 0, split: str = "train", rows: int = 8, columns: int = 12) -> np.ndarray:
    """A contact sheet, uint8 [rows * (H + 4), columns * (W + 4), 3]."""
    edge = ((2, 2), (2, 2), (0, 0))
    pictures = [np.pad(sample(spec, seed, i, split)["image"], edge, constant_values=255) for i in range(rows * columns)]
    return np.concatenate([np.concatenate(pictures[r * columns : (r + 1) * columns], 1) for r in range(rows)], 0)
