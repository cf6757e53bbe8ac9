"""Subsets of a data set as one small file, read through the parent's own files: no record is copied.

A subset's file is JSON:

    format   1
    parent   source: the config of the parent without its folder; account: what tells its data from others of the name
    size     records of the subset; seed: which draw; unit: records drawn together
    indices  null: record j is the j-th of a permutation of the parent that the seed names. Otherwise the chosen records
             in rising order: their differences as little-endian int64, compressed by zlib, in base64.
    choice   what else was decided, in words and numbers (diversity, clusters)

Two sizes of one seed are nested, since both are prefixes of one permutation. `unit` neighbours that are drawn together
are read by one request where the parent lies in a bucket; 1 is the finest draw, and good for disks.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maeclip_jax import remote
from maeclip_jax.data import source
from maeclip_jax.data.ahead import readable
from maeclip_jax.data.order import permuted, stable_hash
from maeclip_jax.errors import UserError, differences

FORMAT = 1


class SubsetSource:
    """The records that the file at `path` names, of its parent in the folder of data sets `dir`.

    UserError where the file is not a subset's, the parent is missing, or its data are not those of the file.
    """

    endless = False

    def __init__(self, path: str | os.PathLike, dir: str | None = None):
        self._config = {"path": os.fspath(path), "dir": dir}
        self.about = read(path)
        parent = dict(self.about["parent"]["source"])
        self.parent = source.make(parent | ({"dir": dir} if parent.get("kind") == "tfds" else {}))
        then, now = self.about["parent"]["account"], account(self.parent)
        differ = {n for n in then.keys() & now.keys() if then[n] != now[n]}
        if differ:
            said = differences(*({n: one[n] for n in sorted(differ)} for one in (now, then)))
            raise UserError(f"the parent of {path} has changed: {said}; make the subset again")
        self.size = self.about["size"]
        self.name = f"{self.parent.name}#{self.size}-{self.about['seed']}"
        self.indices_N = unpacked(self.about["indices"]) if self.about["indices"] else None
        self.classes, self.mask_classes = self.parent.classes, self.parent.mask_classes
        self.remote, self.files = getattr(self.parent, "remote", False), getattr(self.parent, "files", 1)
        self.record_bytes = getattr(self.parent, "record_bytes", 0)
        if readable(self.parent):
            self.read, self.record = self._read, self._record

    @property
    def account(self) -> dict:
        """What tells this subset from others."""
        digest = stable_hash(json.dumps(self.about, sort_keys=True))
        return {"name": self.name, "records": self.size, "subset": f"{digest:016x}"}

    def index(self, place: int) -> int:
        """The parent's index of record `place`."""
        if not 0 <= place < self.size:
            raise IndexError(f"record {place} of {self.size} of {self.name}")
        if self.indices_N is not None:
            return int(self.indices_N[place])
        return drawn(place, self._units, self.about["unit"], self.about["seed"])

    @functools.cached_property
    def _units(self) -> int:
        return len(self.parent) // self.about["unit"]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> dict:
        return self.parent[self.index(place)]

    def _read(self, begin: int, end: int) -> list[bytes]:
        found: list[bytes] = []
        for first, last in _runs(self.index(place) for place in range(begin, end)):
            found += self.parent.read(first, last)
        return found

    def _record(self, data: bytes, place: int) -> dict:
        return self.parent.record(data, self.index(place))

    def __reduce__(self):
        return source.make, ({"kind": "subset", **self._config},)


def drawn(place: int, units: int, unit: int, seed: int) -> int:
    """Record `place` of the permutation of a parent of `units` units, which `seed` names."""
    which, row = divmod(place, unit)
    return permuted(which, units, stable_hash("subset", seed)) * unit + row


def account(made: Any) -> dict:
    """What tells the data of a source from others of its name."""
    return dict(getattr(made, "account", {"name": made.name, "records": len(made)}))


def _runs(indices: Iterator[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the runs of neighbours."""
    begin = end = None
    for i in indices:
        if i != end:
            if begin is not None:
                yield begin, end
            begin = i
        end = i + 1
    if begin is not None:
        yield begin, end


def packed(indices_N: np.ndarray) -> str:
    """Rising indices as text."""
    steps = np.diff(np.asarray(indices_N, "<i8"), prepend=np.int64(0)).astype("<i8")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpacked(text: str) -> np.ndarray:
    """int64 [N]; the inverse of `packed`."""
    return np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8"))


def read(path: str | os.PathLike) -> Mapping[str, Any]:
    """The content of a subset's file. UserError if it is not one."""
    text = remote.read_text(os.fspath(path))
    if text is None:
        raise UserError(f"no subset at {os.fspath(path)!r}; python -m maeclip_jax.study.subsets makes one")
    try:
        about = json.loads(text)
        missing = {"parent", "size", "seed", "unit", "indices"} - about.keys()
    except (ValueError, AttributeError):
        about, missing = {}, {"everything"}
    if missing or about.get("format") != FORMAT:
        raise UserError(f"{os.fspath(path)!r} is not the file of a subset of format {FORMAT}; "
                        "python -m maeclip_jax.study.subsets makes one")  # fmt: skip
    return about
