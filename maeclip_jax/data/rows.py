"""Rows of batches: a record through its ops, its replacement when it is bad, and rows put together to arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maeclip_jax.data.ahead import ReadAhead
from maeclip_jax.data.order import permuted, stable_hash
from maeclip_jax.data.source import ENDLESS
from maeclip_jax.errors import BadRecord, UserError

_TRIES = 32
_NEAR = 8  # of these tries are among the records that are read together
_HIDDEN = {"_key": object, "_valid": bool, "_bad": np.int32}  # what the pipeline itself adds to a row
_NARROW = {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}  # what the device would make of them


@dataclass(frozen=True)
class Component:
    """One source with its ops. epochs: (position in the stream of a lane, lane) -> index of the record.

    ahead: reads the source in the order of `epochs`, where that is faster than record by record.
    """

    name: str
    source: Any
    ops: Callable
    epochs: Callable[[int, int], int]
    ahead: ReadAhead | None = None

    def load(self, index: int, rng: np.random.Generator, place: tuple[int, int] | None = None) -> tuple[dict, str]:
        """Record `index` through the ops: (example, key). BadRecord carries the key in `.key`.

        place: (position, lane) of the record, if it is the one of `epochs`.
        """
        key = f"{getattr(self.source, 'name', self.name) or 'record'}/{index}"
        try:
            if self.ahead is not None and place is not None:
                record = self.source.record(self.ahead.take(index, *place), index)
            else:
                record = self.source[index]
            key = str(record.get("key", key))
            return self.ops(record, rng), key
        except BadRecord as e:
            e.key = key
            raise
        except UserError:
            raise
        except Exception as e:
            e.add_note(f"while making an example of record {key!r}")
            raise


def generator(key: int, attempt: int, n: int) -> np.random.Generator:
    """The random stream of example n, one for each attempt: counters of one Philox key never overlap."""
    return np.random.Generator(np.random.Philox(key=key, counter=(0, 0, attempt, n)))


class TrainRows:
    """This host's training rows as an endless random-access sequence, for grain.

    key: 64 bits that all augmentation draws come from. start: global example of row 0 of the global batch of step 0.
    block: (first row, number of rows) of this host inside the global batch. lanes: see `data.blocks`; the records of
    each are a sequence of their own.
    """

    def __init__(self, components, mix, *, key: int, start: int, batch_size: int, block: tuple[int, int], lanes: int):
        self.components, self.mix, self.key = components, mix, key
        self.start, self.batch_size, self.block, self.lanes = start, batch_size, block, lanes

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> dict:
        offset, rows = self.block
        step, row = divmod(i, rows)
        first = self.start + step * self.batch_size
        lane, row = divmod(offset + row, self.batch_size // self.lanes)
        position = first // self.lanes + row
        c, position = self.mix(position, lane) if self.mix else (0, position)
        n = first + lane * (self.batch_size // self.lanes) + row
        example, key, bad = self.example(self.components[c], position, lane, n)
        return {**example, "_key": key, "_bad": len(bad), "_bad_records": bad}

    def replacement(self, component: Component, position: int, lane: int, n: int, attempt: int) -> int:
        """The index of the record that stands for the bad one of example n, at the given attempt from 1 on.

        It is drawn from all records: bad ones that are neighbours would all give way to the one behind them. Where
        blocks are read, first from those of the window, whose files are open. Records of an endless source are
        independent draws, of which the next one is as good as any.
        """
        length, draw = len(component.source), stable_hash("replacement", self.key, n, attempt)
        if getattr(component.source, "endless", False):
            return (component.epochs(position, lane) + attempt) % length
        if attempt < _NEAR and hasattr(component.epochs, "window"):
            records = component.epochs.window(position, lane).records_N
            return int(records[draw % len(records)])
        return draw % length

    def example(
        self, component: Component, position: int, lane: int, n: int, *, ahead: bool = True
    ) -> tuple[dict, str, list]:
        """(example, key, [its record] if that is bad). A bad record gives way to a good one of its source.

        Bad ones among those tried in its place are not told: each is counted where its own turn comes, once an epoch.
        ahead=False: out of turn, which is read alone.
        """
        index = component.epochs(position, lane)
        bad: list[tuple[str, str, str]] = []
        for attempt in range(_TRIES):
            try:
                at = self.replacement(component, position, lane, n, attempt) if attempt else index
                place = (position, lane) if ahead and not attempt else None
                return *component.load(at, generator(self.key, attempt, n), place), bad[:1]
            except BadRecord as e:
                bad.append((e.key, e.kind, e.detail))
        raise _all_bad(component, bad)


class EvaluationRows:
    """This host's rows of one pass in order; rows past the end and bad records are zeros with `_valid` False."""

    lanes = 1

    def __init__(self, component: Component, length: int, batch_size: int, block: tuple[int, int]):
        self.component, self.length, self.batch_size, self.block = component, length, batch_size, block
        self.spec, self._empty = self._first_good()

    def __len__(self) -> int:
        return -(-self.length // self.batch_size) * self.block[1]

    def __getitem__(self, i: int) -> dict:
        offset, rows = self.block
        step, row = divmod(i, rows)
        n = step * self.batch_size + offset + row
        if n >= self.length:
            return {**self._empty, "_key": "", "_valid": False, "_bad": 0, "_bad_records": []}
        try:
            example, key = self.component.load(n, generator(0, 0, n), (i, 0))
        except BadRecord as e:
            bad = [(e.key, e.kind, e.detail)]
            return {**self._empty, "_key": e.key, "_valid": False, "_bad": 1, "_bad_records": bad}
        return {**example, "_key": key, "_valid": True, "_bad": 0, "_bad_records": []}

    def _first_good(self) -> tuple[dict, dict]:
        """The signature of the rows and an empty one, from the first record that is good."""
        bad = []
        # The first ones may be bad for one reason, which says nothing of the others.
        tried = [0, *(permuted(i, self.length, 0) for i in range(min(self.length, _TRIES)))]
        for n in dict.fromkeys(tried):
            try:
                example, _ = self.component.load(n, generator(0, 0, n))
            except BadRecord as e:
                bad.append((e.key, e.kind, e.detail))
                continue
            empty = {k: "" if isinstance(v, str) else np.zeros_like(_array(v)) for k, v in example.items()}
            return signature(example), empty
        raise _all_bad(self.component, bad)


def _all_bad(component: Component, bad: list) -> UserError:
    counts = ", ".join(f"{k} {n}" for k, n in sorted(Counter(kind for _, kind, _ in bad).items()))
    key, kind, detail = bad[-1]
    name = getattr(component.source, "name", component.name or "the source")
    return UserError(
        f"{len(bad)} records of {name}, tried one after another, cannot be used ({counts}); "
        f"the last: {key}: {kind}: {detail}"
    )


def signature(example: dict) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """name -> (shape, dtype) of one row, as it will stand in the batch."""
    arrays = {k: _array(v) for k, v in example.items()}
    return {k: (a.shape, a.dtype) for k, a in arrays.items()}


def _array(value) -> np.ndarray:
    if isinstance(value, str | bytes):
        return np.array(value, object)
    array = np.asarray(value)
    return array.astype(_NARROW[array.dtype]) if array.dtype in _NARROW else array


def collate(rows: list[dict]) -> dict:
    """Rows to a chunk: name -> array with a leading axis, underscore names stay lists. UserError where rows differ."""
    names = rows[0].keys()
    for row in rows:
        if row.keys() != names:
            a, b = (", ".join(k for k in r if not k.startswith("_")) for r in (rows[0], row))
            raise UserError(
                f"rows of one batch have different names: {rows[0]['_key']!r} has {a}; {row['_key']!r} has {b}; "
                "end the ops with keep(...)"
            )
    chunk: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in rows]
        if name.startswith("_"):
            chunk[name] = values
            continue
        arrays = [_array(v) for v in values]
        for row, array in zip(rows, arrays):
            if array.shape != arrays[0].shape:
                raise UserError(
                    f"rows of {name!r} have different shapes: {list(arrays[0].shape)} for {rows[0]['_key']!r}, "
                    f"{list(array.shape)} for {row['_key']!r}; fix the size in the ops (resize, crop, tokenize)"
                )
        chunk[name] = np.stack(arrays)
    return chunk


def join(chunks: list[dict]) -> tuple[dict, int, list]:
    """Chunks to one batch: (batch, records whose turn it was, the bad ones of them as (key, kind, detail))."""
    bad = [b for c in chunks for records in c["_bad_records"] for b in records]
    batch: dict[str, Any] = {}
    for name, first in chunks[0].items():
        if name == "_bad_records":
            continue
        if name.startswith("_"):
            values = [v for c in chunks for v in c[name]]
            batch[name] = np.array(values, _HIDDEN[name]) if name in _HIDDEN else _array(values)
        else:
            batch[name] = first if len(chunks) == 1 else np.concatenate([c[name] for c in chunks])
    batch["_bad_names"] = [": ".join(b) for b in bad]
    if "_valid" in batch:
        tried = int(batch["_valid"].sum()) + len(bad)
    else:
        tried = len(batch["_key"])
    return batch, tried, bad
