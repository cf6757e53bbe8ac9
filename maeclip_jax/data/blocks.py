"""Block order: which record is example n where neighbours are read together. Pure functions of (seed, n).

A record alone costs a request, and a request to a bucket costs tens of milliseconds. So records are taken in *blocks*
of `size` neighbours. All blocks of the data set are permuted, each epoch anew (above a million blocks, in two steps, so
that few files are read at a time); the rows of `window` blocks in a row are then permuted among themselves.

The order has a fixed number of *lanes*. A lane owns fixed rows of every global batch (lane k of L: rows k*B/L to
(k+1)*B/L) and its own blocks, so that a host reads the blocks of its rows alone, and the examples do not depend on the
number of hosts. Position p of a lane is its p-th row since the beginning of training. After n examples (a multiple of
the lanes) each lane is at n / lanes, whatever the batch sizes have been: a position in the data is still one integer.

Every epoch is a permutation of all records: lane k has floor((N*(e+1) + k) / L) - floor((N*e + k) / L) rows of epoch e,
which add up to N, and no lane is ever more than one row behind another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from maeclip_jax.data.order import permuted, stable_hash
from maeclip_jax.errors import UserError, unknown

ORDERS = ("auto", "records", "blocks")
_DEFAULTS = {"size": 64, "window": 16, "lanes": 0, "ahead": 4, "reads": 64}
_LANES = 64  # as many hosts as a slice of 256 chips has
# A process that read blocks from everywhere would have all files open, with 8 bytes of memory for each record. Above so
# many blocks, regions of neighbouring blocks are permuted, and the blocks of so many regions in a row among themselves.
FLAT, REGION, POOL = 1 << 20, 1024, 16
_FEWEST = 4  # blocks of a lane in an epoch: small data sets have smaller blocks, so that there is something to permute


@dataclass(frozen=True)
class Settings:
    """size: records of a block. window: blocks whose rows are permuted together. lanes: see the module.

    ahead: blocks that a lane reads before their window begins, beyond its pace. reads: requests at a time.
    The last two change the speed alone.
    """

    size: int
    window: int
    lanes: int
    ahead: int
    reads: int

    def __str__(self) -> str:
        return f"blocks of {self.size}, windows of {self.window} blocks, {self.lanes} lanes"


def settings(config: Any, batch_size: int) -> Settings:
    """The `blocks` of a data config, complete. UserError for what cannot be.

    lanes=0 are 64, or as many as divide both 64 and the batch.
    """
    given = dict(config or {})
    for name in given:
        if name not in _DEFAULTS:
            raise unknown("key of data.blocks:", name, _DEFAULTS)
    found = {**_DEFAULTS, **given}
    for name, value in found.items():
        least = 0 if name in ("lanes", "ahead") else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"data.blocks.{name} is {value!r}; valid: whole numbers from {least} on")
    lanes = found["lanes"] or gcd(_LANES, batch_size)
    if batch_size % lanes:
        near = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= lanes][-3:]
        raise UserError(
            f"data.blocks.lanes={lanes} does not divide the batch of {batch_size}; valid: its divisors, for instance "
            f"{', '.join(map(str, near))}, or 0 for the default"
        )
    return Settings(**{**found, "lanes": lanes})


def starts(first: int, batch_size: int, lanes: int, offset: int, rows: int) -> dict[int, int]:
    """{lane: position} of the first of the rows `offset` to `offset + rows` of the batch that begins at `first`."""
    own = batch_size // lanes
    which = range(offset // own, -(-(offset + rows) // own))
    return {lane: first // lanes + max(0, offset - lane * own) for lane in which}


@dataclass(frozen=True)
class Window:
    """Rows of one lane that are shuffled among themselves.

    start: position in the lane of the first row. records_N: the record of each row. spans: what must be read, (begin,
    end) of neighbours, in the order in which they are first needed. span_N: the place in `spans` of each row's record.
    needs: the position at which each of `spans` is first needed.
    """

    start: int
    records_N: np.ndarray
    spans: tuple[tuple[int, int], ...]
    span_N: np.ndarray
    needs: tuple[int, ...]

    @property
    def end(self) -> int:
        """The position of the first row after this window."""
        return self.start + len(self.records_N)


def _window(start: int, spans: Sequence[tuple[int, int]], order_N: np.ndarray | None = None) -> Window:
    """The window of the rows of `spans`, permuted by `order_N`."""
    records = np.concatenate([np.arange(begin, end) for begin, end in spans])
    place = np.repeat(np.arange(len(spans)), [end - begin for begin, end in spans])
    if order_N is not None:
        records, place = records[order_N], place[order_N]
    _, first = np.unique(place, return_index=True)
    by_need = np.argsort(first)  # span -> its place by need, and back
    rank = np.empty_like(by_need)
    rank[by_need] = np.arange(len(spans))
    needs = tuple(start + int(row) for row in np.sort(first))
    return Window(start, records, tuple(spans[i] for i in by_need), rank[place], needs)


class Blocks:
    """(position, lane) -> index of the record, of `length` records. `seed`: parts of the seed, as of `order.Epochs`."""

    def __init__(self, length: int, *seed, size: int, window: int, lanes: int):
        self.length, self.seed, self.lanes, self.blocks = length, seed, lanes, window
        self.size = max(1, min(size, length // (_FEWEST * lanes)))
        self._cached = functools.lru_cache(maxsize=4 * lanes + 64)(self._make)
        self._last: dict[int, Window] = {}  # of each lane: nearly every row is in it

    def __call__(self, position: int, lane: int = 0) -> int:
        found = self.window(position, lane)
        return int(found.records_N[position - found.start])

    def window(self, position: int, lane: int = 0) -> Window:
        """The window that holds `position` of `lane`."""
        last = self._last.get(lane)
        if last is not None and last.start <= position < last.end:
            return last
        epoch = ((position + 1) * self.lanes - lane - 1) // self.length
        layout = self._layout(epoch)
        start, first, _ = self._segment(epoch, lane)
        slot = layout.slot(first + position - start)
        begin = layout.slot(first)
        found = self._last[lane] = self._cached(epoch, lane, (slot - begin) // self.blocks)
        return found

    def __reduce__(self):
        size = {"size": self.size, "window": self.blocks, "lanes": self.lanes}
        return functools.partial(Blocks, self.length, *self.seed, **size), ()

    def _segment(self, epoch: int, lane: int) -> tuple[int, int, int]:
        """(position in the lane, first, end): the rows of `lane` in the sequence of all blocks of `epoch`."""
        before, after = epoch * self.length, (epoch + 1) * self.length
        first, end = (_below(after, k, self.lanes) - _below(before, k, self.lanes) for k in (lane, lane + 1))
        return (before + lane) // self.lanes, first, end

    def _layout(self, epoch: int) -> _Layout:
        return _Layout.of(self.length, self.size, stable_hash("blocks", *self.seed, epoch))

    def _make(self, epoch: int, lane: int, number: int) -> Window:
        layout = self._layout(epoch)
        start, first, end = self._segment(epoch, lane)
        slots = layout.slot(first) + number * self.blocks, layout.slot(end - 1) + 1
        spans, skipped = [], None
        for slot in range(slots[0], min(slots[0] + self.blocks, slots[1])):
            at, block, count = layout.block(slot)
            low, high = max(at, first), min(at + count, end)
            if skipped is None:
                skipped = low - first
            spans.append((block * self.size + low - at, block * self.size + high - at))
        rows = sum(high - low for low, high in spans)
        # Raw bits of a counter-based generator are the same in every version of numpy.
        key = stable_hash("window", *self.seed, epoch, lane, number)
        return _window(start + skipped, spans, np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable"))


def _below(x: int, k: int, lanes: int) -> int:
    """The sum of floor((x + j) / lanes) for j in range(k)."""
    whole, rest = divmod(x, lanes)
    return k * whole + max(0, k - (lanes - rest))


@dataclass(frozen=True)
class _Layout:
    """Where the blocks of one epoch stand. The last block, which may be short, stands at slot `odd`."""

    key: int
    full: int  # blocks of `size` records
    size: int
    short: int  # records of the last block
    odd: int

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(length: int, size: int, key: int) -> _Layout:
        full = -(-length // size) - 1
        return _Layout(key, full, size, length - full * size, stable_hash("odd", key) % (full + 1))

    def slot(self, row: int) -> int:
        """The slot of a row of the sequence of all blocks."""
        if row < self.odd * self.size:
            return row // self.size
        row -= self.odd * self.size
        return self.odd if row < self.short else self.odd + 1 + (row - self.short) // self.size

    def block(self, slot: int) -> tuple[int, int, int]:
        """(first row, block, records) of a slot."""
        if slot == self.odd:
            return slot * self.size, self.full, self.short
        if slot < self.odd:
            return slot * self.size, self._permuted(slot), self.size
        return (slot - 1) * self.size + self.short, self._permuted(slot - 1), self.size

    def _permuted(self, place: int) -> int:
        """The block at a place among the full ones."""
        if self.full <= FLAT:
            return permuted(place, self.full, self.key)
        regions = self.full // REGION
        if place >= regions * REGION:  # the blocks that make no whole region
            return place
        pool, place = divmod(place, POOL * REGION)
        count = min(POOL, regions - pool * POOL)
        region, block = divmod(permuted(place, count * REGION, stable_hash("pool", self.key, pool)), REGION)
        return permuted(pool * POOL + region, regions, self.key) * REGION + block


class InOrder:
    """A host's rows of one pass in order as one lane: position i -> record, read in spans of at most `size`.

    Its rows are `rows` from row `offset` on of each batch of `batch_size`; those past `length` are not read.
    """

    lanes = 1

    def __init__(self, length: int, *, batch_size: int, offset: int, rows: int, size: int):
        self.length, self.batch_size, self.offset, self.rows, self.size = length, batch_size, offset, rows, size
        if rows == batch_size:  # the only host: its rows are neighbours across batches too
            self.batch_size = self.rows = batch_size * max(1, size // batch_size)

    def __call__(self, position: int, lane: int = 0) -> int:
        step, row = divmod(position, self.rows)
        return step * self.batch_size + self.offset + row

    def window(self, position: int, lane: int = 0) -> Window:
        """One span. Past the end, an empty one."""
        step, row = divmod(position, self.rows)
        first = row - row % self.size
        begin = self(step * self.rows + first)
        end = max(begin, min(begin + self.size, begin - first + self.rows, self.length))
        return _window(step * self.rows + first, [(begin, end)])
