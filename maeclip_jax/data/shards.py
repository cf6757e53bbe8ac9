"""ArrayRecord files as one sequence of records, read by ranges of neighbours; on disks and in buckets alike.

ArrayRecord's own data source reads records one by one (from gs://: one request each, of which 25 times the bytes arrive
that are used), opens one file after another, and keeps all of them open, with 8 bytes of memory for each of their
records. Here a range is one request for each file that it touches, and files are opened when they are first needed, by
as many threads as ask for them. The process keeps at most `OPEN` of them open, with indices of at most `INDEX` bytes.

array_record 0.8.6 raises nothing where a file is missing or a server does not answer: it opens as a file of 0 records.
Here that is an error which names the file. Google's client repeats requests that fail for a while (429, 503, a reset
connection) by itself, for up to 16 minutes, without a word.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from maeclip_jax import remote
from maeclip_jax.errors import UserError, storage

OPEN = 1024  # files; a reader costs some 100 kB beside its index
INDEX = 1 << 30  # bytes
# Bytes of a data set in a bucket that is held in memory (it is read once, by a request a file), and of all such.
SMALL, HELD = 256 << 20, 1 << 30
_TOGETHER = 32  # files that are read at a time then
# Read-ahead makes a range one request; parallelism would split it again, and the threads are ours.
_OPTIONS = "readahead_buffer_size:64M,max_parallelism:0"


class Asked(NamedTuple):
    """What this process has asked buckets for: ranges of records, their bytes as they are used, and files opened.

    A range is one request, and so is the opening of a file. Worker processes count for themselves.
    """

    ranges: int = 0
    bytes: int = 0
    opened: int = 0


class _Counter:
    """Adds up `Asked`, from many threads."""

    def __init__(self):
        self._lock, self._sum = threading.Lock(), Asked()

    def add(self, path: str, **more: int) -> None:
        """Counts what is asked of `path`, if that is in a bucket."""
        if storage.is_remote(path):
            with self._lock:
                self._sum = Asked(*(a + more.get(name, 0) for name, a in self._sum._asdict().items()))

    def __call__(self) -> Asked:
        return self._sum


asked = _Counter()


@dataclass(frozen=True)
class Shard:
    """Records `skip` to `skip + take` of the file at `path`."""

    path: str
    skip: int
    take: int


_held = 0


def reserve(owner: object, size: float) -> bool:
    """Whether `owner`, of `size` bytes, may be held in memory; if so, that is counted for as long as it lives."""
    global _held
    if size > SMALL or _held + size > HELD:
        return False
    _held += size
    weakref.finalize(owner, _release, size)
    return True


def _release(size: float) -> None:
    global _held
    _held -= size


class Shards:
    """`read(begin, end)`: the bytes of these records of all shards, as if they were one file.

    version: what changes when the files do; those that are open under another one are not used. held: all records are
    read at the first read, each file by one request, and stay in memory.
    """

    def __init__(self, shards: Sequence[Shard], version: object = None, held: bool = False):
        self.version, self.held = version, held
        self._lock, self._records = threading.Lock(), None
        self.shards = [shard for shard in shards if shard.take]
        self._ends = np.cumsum([shard.take for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def parts(self, begin: int, end: int) -> list[tuple[str, int, int]]:
        """(path, first, last + 1) of each file that holds some of these records."""
        if not 0 <= begin <= end <= len(self):
            raise IndexError(f"records {begin} to {end} of {len(self)}")
        found, place = [], int(np.searchsorted(self._ends, begin, "right"))
        while begin < end:
            shard, last = self.shards[place], int(self._ends[place])
            first = begin - (last - shard.take) + shard.skip
            count = min(end, last) - begin
            found.append((shard.path, first, first + count))
            begin, place = begin + count, place + 1
        return found

    def read(self, begin: int, end: int) -> list[bytes]:
        """UserError where a file is missing, may not be read, or is shorter than it should be."""
        if self.held:
            with self._lock:  # others wait for what they need as well
                if self._records is None:
                    with ThreadPoolExecutor(_TOGETHER, "reading a small data set") as pool:
                        found = pool.map(lambda part: self._range(*part), self.parts(0, len(self)))
                        self._records = list(itertools.chain.from_iterable(found))
            return self._records[begin:end]
        return list(itertools.chain.from_iterable(self._range(*part) for part in self.parts(begin, end)))

    def _range(self, path: str, first: int, last: int) -> list[bytes]:
        reader = _readers.get(path, self.version)
        if reader.num_records() < last:
            raise UserError(
                f"{path} has {reader.num_records()} records and should have {last} or more: it is not the file "
                "that the data set's dataset_info.json describes; copy or prepare the data set again"
            )
        with remote.failing("read", path):
            found = reader.read(first, last)
        asked.add(path, ranges=1, bytes=sum(map(len, found)))
        return found


class _Readers:
    """The open files of this process. One that is in use stays open until it is not, also when it is let go here."""

    def __init__(self):
        self._open: OrderedDict[tuple, object] = OrderedDict()
        self._opening: dict[tuple, threading.Lock] = {}
        self._lock, self._records = threading.Lock(), 0

    def get(self, path: str, version: object):
        """UserError or OSError where the file cannot be opened."""
        key = (path, version)
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:  # others wait for this file alone
            with self._lock:
                if key in self._open:
                    return self._open[key]
            reader = _open(path)
            asked.add(path, opened=1)
            with self._lock:
                self._opening.pop(key, None)
                self._open[key] = reader
                self._records += reader.num_records()
                while len(self._open) > 1 and (len(self._open) > OPEN or 8 * self._records > INDEX):
                    _, old = self._open.popitem(last=False)
                    self._records -= old.num_records()
            return reader


_readers = _Readers()


def _open(path: str):
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(path, options=_OPTIONS)
    if not reader.ok() or not reader.num_records():
        raise _unreadable(path)
    return reader


def _unreadable(path: str) -> Exception:
    """Why a file, which has records by the data set's own account, opened as an empty one."""
    from etils import epath

    try:
        size = epath.Path(path).stat().length
        if remote.is_remote(path):
            with remote.failing("read", path):
                remote.system(path).cat_file(path, 0, 1)  # one may be allowed to look and not to read
    except FileNotFoundError:
        return UserError(f"{path} is missing, which the data set's dataset_info.json names; copy the data set again")
    except UserError as e:
        return e
    except Exception as e:  # remote file systems raise what they like
        return OSError(f"{path} cannot be opened: {' '.join(str(e).split()) or type(e).__name__}")
    return UserError(f"{path} ({size} bytes) is not an ArrayRecord file, or not a whole one; copy the data set again")
