"""A fake trainer whose truth is known: gains over log10 N with a planted crossing, noise of runs and of items."""

import math

import numpy as np

from maeclip_jax.study.effects import Difference


def gain(size, slope, crossing=8000):
    """In points: 0 at `crossing`, falling by -slope a decade."""
    return slope * (math.log10(size) - math.log10(crossing))


def study(seed, *, sizes=(1000, 4000, 16000, 64000), diversities=(1.0,), seeds=3, slope=-8.0, sd=2.0, items=400):
    """Differences of one repetition. Every item has a gain of its own beside the true one, and every run a shift.

    sd: of a run's shift. An item's outcome is 1 with a probability that has the planted difference between the arms.
    """
    lots = np.random.default_rng(seed)
    of_item = lots.normal(0, 8, items)  # points by which an item's own gain differs; those drawn need not sum to 0
    easy = lots.uniform(20, 80, items)
    found = []
    for size in sizes:
        for share in diversities:
            for r in range(seeds):
                shift = gain(size, slope) + lots.normal(0, sd) + of_item
                first, second = (100.0 * (lots.uniform(0, 100, items) < easy + s * shift / 2) for s in (1, -1))
                each = first - second
                found.append(Difference(size, share, r, float(each.mean()), each))
    return found
