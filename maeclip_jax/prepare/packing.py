"""How many shards a split has and which records go into which: one rule for all that write data sets.

Training reads blocks of 64 neighbouring records, and a process opens each shard that it meets: a request, and 1 MiB of
a bucket. So a shard holds at least eight blocks, and there are as nearly 1,024 shards as sizes of 64 to 256 MB allow.
Records larger than 0.5 MB make larger shards: the eight blocks come first. Small splits have one shard.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maeclip_jax.errors import storage

SMALLEST, LARGEST = 64 * 10**6, 256 * 10**6  # bytes of a shard
USUAL = 1024  # shards
RECORDS = 8 * 64  # of a shard, at least: eight blocks of `data.blocks`
WRITER = "group_size:1,uncompressed"  # JPEG does not shrink, and random access wants groups of one
_READER = "readahead_buffer_size:16M,max_parallelism:0"
_CHUNK = 16 * 10**6  # bytes that are copied at a time


def count(records: int, size: int, least: int = RECORDS) -> int:
    """The number of shards of a split of `records` with `size` bytes in all. `least`: records of a shard."""
    fewest, most = -(-size // LARGEST), size // SMALLEST
    return max(1, min(max(USUAL, fewest), most, records // least))


def ends(records: int, shards: int) -> list[int]:
    """Where each of the shards ends; their lengths differ by one at most."""
    return [round(records * (i + 1) / shards) for i in range(shards)]


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of neighbouring records of a split. `size`: bytes of the records, without what ArrayRecord adds."""

    path: str
    records: int
    size: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to be written. `pieces`: (path, first record, last + 1) of the files that its records come from."""

    file: str
    records: int
    record_bytes: float  # the mean
    pieces: tuple[tuple[str, int, int], ...]


def shards(name: str, split: str, parts: Sequence[Part]) -> list[Shard]:
    """The shards, by their TFDS names, that hold the records of `parts` in this order."""
    records, size = sum(p.records for p in parts), sum(p.size for p in parts)
    number = count(records, size)
    starts = np.cumsum([0, *(p.records for p in parts)])
    found, first = [], 0
    for index, stop in enumerate(ends(records, number)):
        pieces = []
        for place in range(int(np.searchsorted(starts, first, "right")) - 1, int(np.searchsorted(starts, stop))):
            begin, end = max(first, int(starts[place])), min(stop, int(starts[place + 1]))
            if begin < end:
                pieces.append((parts[place].path, begin - int(starts[place]), end - int(starts[place])))
        file = f"{name}-{split}.array_record-{index:05d}-of-{number:05d}"
        found.append(Shard(file, stop - first, size / records, tuple(pieces)))
        first = stop
    return found


def write(shard: Shard, path: Path) -> None:
    """Writes a shard to the local file `path`. The same records give the same bytes."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), WRITER)
    step = max(1, int(_CHUNK / max(1.0, shard.record_bytes)))
    for source, first, last in shard.pieces:
        reader = array_record_module.ArrayRecordReader(source, _READER)
        for begin in range(first, last, step):
            for record in reader.read(begin, min(begin + step, last)):
                writer.write(record)
        reader.close()
    writer.close()
    check(path, shard.records)


def check(path: Path, records: int) -> None:
    """Raises StorageError unless the file system holds all `records` of the file that was written."""
    from array_record.python import array_record_module

    found = array_record_module.ArrayRecordReader(os.fspath(path))
    if found.num_records() != records:
        raise storage.StorageError(
            f"{path} holds {found.num_records()} of {records} records that were written: is the disk full?", room=True
        )
    found.close()
