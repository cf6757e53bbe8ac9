"""Features with mean 0 and variance 1 in every channel, by the statistics of the rows that a classifier learns from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDING = 1e-6  # a channel that varies by less than this share of its own size is constant: it becomes 0


class Standard(NamedTuple):
    """`mean` [D] and `scale` [D], 1 / standard deviation: batch normalisation without scale and shift (He et al. 2022,
    appendix A.2), with the statistics of all rows in place of running ones."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, x_NxD: np.ndarray) -> Standard:
        """That of the rows."""
        mean_D = x_NxD.mean(0, dtype=np.float64)
        variance_D = np.zeros_like(mean_D)
        for start in range(0, len(x_NxD), 8192):
            variance_D += np.square(x_NxD[start : start + 8192] - mean_D).sum(0)
        sd_D = np.sqrt(variance_D / len(x_NxD))
        varies_D = sd_D > ROUNDING * np.hypot(mean_D, sd_D)
        scale_D = np.divide(1, sd_D, out=np.zeros_like(sd_D), where=varies_D)
        return cls(mean_D.astype(np.float32), scale_D.astype(np.float32))

    def __call__(self, x_NxD: np.ndarray) -> np.ndarray:
        """float32 [N, D]"""
        return (np.asarray(x_NxD, np.float32) - self.mean) * self.scale
