"""What drawn scenes look like: a contact sheet (`python -m maeclip_jax.bench scenes --sheet FILE` writes one)."""

from __future__ import annotations

import numpy as np

from maeclip_jax.scenes.stream import sample
from maeclip_jax.scenes.world import SceneSpec


def sheet(spec: SceneSpec, seed: int = 0, split: str = "train", rows: int = 8, columns: int = 12) -> np.ndarray:
    """A contact sheet, uint8 [rows * (H + 4), columns * (W + 4), 3]."""
    edge = ((2, 2), (2, 2), (0, 0))
    pictures = [np.pad(sample(spec, seed, i, split)["image"], edge, constant_values=255) for i in range(rows * columns)]
    return np.concatenate([np.concatenate(pictures[r * columns : (r + 1) * columns], 1) for r in range(rows)], 0)
