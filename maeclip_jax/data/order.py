"""Which record is example n: pure functions of (seed, n), so training starts anywhere and knows no hosts.

Nothing is read, written or stored here: a position in the data is one integer.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

# Shares are exact over a window of examples and even inside it; a window is a few batches, not an epoch.
_WINDOW = 1024
_FINEST = 10_000
_SHORT = 1 << 16


@functools.lru_cache(maxsize=4096)
def stable_hash(*parts) -> int:
    """64 bits, the same for the same parts on every machine and Python (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permuted(index: int, length: int, key: int) -> int:
    """Where `index` of `range(length)` goes in the permutation that `key` (64 bits) names.

    Long ones are computed at the one point, in microseconds and no memory, however long. The way (a cipher of at least
    16 bits, walked until it lands inside) takes 10 ms a point at length 2, so short ones are written out once. It needs
    16 rounds: at the 4 of grain's own `shuffle`, where neighbours of a million go correlates by 0.4.
    """
    if length <= _SHORT:
        return int(_written_out(length, key)[index])
    from grain.experimental import index_shuffle

    # Where the last index is 2^16, 2^18, ..., grain's cipher has a bit too few for it: the last index goes where the
    # first does, and one record never comes. Of such lengths one index more is permuted, and walked past.
    last = length - 1
    extra = int(last.bit_count() == 1 and last.bit_length() % 2 == 1)
    place = index_shuffle(index, max_index=last + extra, seed=key >> 32, rounds=16)
    return place if place < length else index_shuffle(place, max_index=last + extra, seed=key >> 32, rounds=16)


@functools.lru_cache(maxsize=32)  # the epochs that threads are in, of each component of a mix
def _written_out(length: int, key: int) -> np.ndarray:
    # Raw bits of a counter-based generator, unlike `permutation`, are the same in every version of numpy.
    return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")


class Epochs:
    """Position in a stream -> index of the record: a fresh permutation of all records each epoch.

    An endless source is taken as it comes, record p at position p: its records are independent draws already, no
    permutation can improve on that, and it has no epoch. Several `lanes` (see `data.blocks`) take turns.
    """

    def __init__(self, length: int | None, *seed, lanes: int = 1):
        if length is not None and lanes > 1:
            raise ValueError("a data set of several lanes is read in blocks: data.blocks")
        self.length, self.seed, self.lanes = length, seed, lanes

    def __call__(self, position: int, lane: int = 0) -> int:
        if self.length is None:
            return position * self.lanes + lane
        epoch, index = divmod(position, self.length)
        return permuted(index, self.length, stable_hash("epoch", *self.seed, epoch))


class Mix:
    """Example n -> (component, position in that component's own stream), with the given shares.

    Every window of `self.window` examples (1024, or the first common multiple of the shares' denominators above it)
    holds exactly `self.counts[c]` examples of component c, in an order drawn from (seed, window): exact shares without
    the fixed pattern that would send all of one component to one host. Each component's stream is used in its order.

    Each lane (see `data.blocks`) has an order of its own; n is then a position in the lane.

    Shares with at most four decimals, and simple fractions, are exact; others are rounded to 1/10000 (never to none).
    """

    def __init__(self, weights: Sequence[float], *seed):
        parts = _whole_parts(weights)
        times = -(-_WINDOW // sum(parts))
        self.counts = tuple(times * p for p in parts)
        self.window = sum(self.counts)
        self.seed = seed

    def __call__(self, n: int, lane: int = 0) -> tuple[int, int]:
        window, slot = divmod(n, self.window)
        components, ranks = self._pattern(window, lane)
        component = int(components[slot])
        return component, window * self.counts[component] + int(ranks[slot])

    def before(self, n: int, component: int, lane: int = 0) -> int:
        """How many of the examples before n are of `component`: its position there."""
        window, slot = divmod(n, self.window)
        components, _ = self._pattern(window, lane)
        return window * self.counts[component] + int(np.count_nonzero(components[:slot] == component))

    def _pattern(self, window: int, lane: int) -> tuple[np.ndarray, np.ndarray]:
        which = (window, lane) if lane else (window,)  # lane 0 is what a mix without lanes has
        return _pattern(self.counts, stable_hash("mix", *self.seed, *which))


@functools.lru_cache(maxsize=512)  # threads, and each lane, are in a few windows at a time
def _pattern(counts: tuple[int, ...], key: int) -> tuple[np.ndarray, np.ndarray]:
    """One window: the component of each slot, and how many of the same component come before it."""
    components = np.repeat(np.arange(len(counts)), counts)[_written_out(sum(counts), key)]
    ranks = np.empty_like(components)
    for component, count in enumerate(counts):
        ranks[components == component] = np.arange(count)
    return components, ranks


def _whole_parts(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of `weights`; each at least 1, their sum at most about 10,000."""
    total = sum(Fraction(w) for w in weights)
    shares = [(Fraction(w) / total).limit_denominator(_FINEST) for w in weights]
    common = lcm(*(s.denominator for s in shares))
    if sum(shares) != 1 or common > _FINEST or min(shares) == 0:
        shares = [Fraction(max(1, round(_FINEST * Fraction(w) / total))) for w in weights]
        common = 1
    return [int(s * common) for s in shares]
