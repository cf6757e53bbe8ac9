"""The work on one unit of a source, kept as a folder: `SPLIT.array_record`, rows.npy, account.jsonl, summary.json.

A folder is written elsewhere and appears under its final name at once, so what is there is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from maeclip_jax.prepare import image_text, packing
from maeclip_jax.prepare.formats.units import Reading, Unit
from maeclip_jax.prepare.image_text import Dropped, Kept, Stored, Storing
from maeclip_jax.prepare.manifest import Counting, Tally

# Facts about a kept record that its example does not hold; with them a duplicate can be subtracted from the account.
_ROW = np.dtype(
    [("hash", "u8"), ("split", "u2"), ("width", "u4"), ("height", "u4"), ("bytes", "u8"), ("verbatim", "?"),
     ("rows", "u4"), ("empty", "u4"), ("extras", "u4"), ("turned", "?")]
)  # fmt: skip
_PULSE = 32  # records between two progress updates


@dataclasses.dataclass(frozen=True)
class Job:
    reading: Reading
    storing: Storing
    folder: str  # where units lie
    counting: Counting | None = None

    def unit_folder(self, unit: Unit) -> Path:
        return Path(self.folder, f"{unit.index:06d}")

    def summary(self, unit: Unit) -> dict:
        """{tally, shards: {split: {records, size}}} of a finished unit."""
        return json.loads((self.unit_folder(unit) / "summary.json").read_text())


class _Writer:
    def __init__(self, folder: Path, counting: Counting | None):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.folder, self.tally, self.rows = folder, Tally(counting), []
        self.shards: dict[str, array_record_module.ArrayRecordWriter] = {}
        self.sizes: Counter[str] = Counter()
        self.dropped = open(folder / "account.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (closed in commit)

    def add(self, outcome: Kept | Dropped) -> None:
        self.tally.add(outcome)
        if isinstance(outcome, Dropped):
            self.dropped.write(json.dumps(outcome.json(), ensure_ascii=False) + "\n")
            return
        if outcome.split not in self.shards:
            path = str(self.folder / f"{outcome.split}.array_record")
            self.shards[outcome.split] = array_record_module.ArrayRecordWriter(path, packing.WRITER)
        data = image_text.serialize(outcome.example)
        self.shards[outcome.split].write(data)
        self.sizes[outcome.split] += len(data)
        stored, split = outcome.stored, list(self.shards).index(outcome.split)
        size = (stored.source_width, stored.source_height, outcome.source_bytes)
        more = (outcome.rows, outcome.empty_captions, outcome.extras, stored.turned)
        name = _hash(outcome.example["source"], outcome.key)
        self.rows.append((name, split, *size, stored.verbatim, *more))

    def commit(self, final: Path) -> None:
        """The folder appears as `final`, complete, or not at all."""
        self.dropped.close()
        for split, writer in self.shards.items():
            writer.close()
            packing.check(self.folder / f"{split}.array_record", self.tally.kept[split])
        np.save(self.folder / "rows.npy", np.array(self.rows, _ROW))
        shards = {s: {"records": self.tally.kept[s], "size": self.sizes[s]} for s in self.shards}
        summary = {"tally": self.tally.json(), "shards": shards}
        (self.folder / "summary.json").write_text(json.dumps(summary))
        os.rename(self.folder, final)


def _hash(source: str, key: str) -> int:
    """A key is unique within its shard or table: two shards may have it."""
    return int.from_bytes(hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=8).digest(), "little")


def work(job: Job, unit: Unit, pulse: Callable[[int], None]) -> None:
    """Reads a unit and commits its folder. `pulse(n)` is told of every n records on the way."""
    final = job.unit_folder(unit)
    writer, since = _Writer(Path(f"{final}.tmp{os.getpid()}"), job.counting), 0
    for outcome in image_text.outcomes(job.reading, job.storing, unit):
        writer.add(outcome)
        since += 1
        if since == _PULSE:
            pulse(since)
            since = 0
    try:
        writer.commit(final)
    except OSError:
        if not final.exists():
            raise
        shutil.rmtree(writer.folder)  # a process that outlived an earlier run was faster; its unit is the same
    pulse(since)


def drop_repeated(job: Job, units: tuple[Unit, ...]) -> None:
    """Drops from later units what earlier units have. A unit that changes is rewritten and then replaced."""
    hashes = [np.load(job.unit_folder(u) / "rows.npy")["hash"] for u in units]
    first = np.unique(np.concatenate(hashes), return_index=True)[1]
    repeated = np.ones(sum(map(len, hashes)), bool)
    repeated[first] = False
    for unit, bad in zip(units, np.split(repeated, np.cumsum([len(h) for h in hashes])[:-1])):
        if bad.any():
            _rewrite(job, unit, bad)


def _rewrite(job: Job, unit: Unit, repeated: np.ndarray) -> None:
    """The same unit with the marked rows dropped."""
    final = job.unit_folder(unit)
    splits = list(job.summary(unit)["shards"])
    readers = [array_record_module.ArrayRecordReader(str(final / f"{s}.array_record")) for s in splits]
    writer = _Writer(Path(f"{final}.tmp{os.getpid()}"), job.counting)
    for line in (final / "account.jsonl").read_text(encoding="utf-8").splitlines():
        writer.add(Dropped(**json.loads(line)))
    for row, bad in zip(np.load(final / "rows.npy").tolist(), repeated):
        _, split, width, height, size, verbatim, rows, empty, extras, turned = row
        example = image_text.parse(readers[split].read())
        stored = Stored(example["image"], example["width"], example["height"], width, height, verbatim, turned)
        kept = Kept(splits[split], example["key"], example, stored, size, rows, empty, extras)
        writer.add(image_text.duplicate(kept) if bad else kept)
    for reader in readers:
        reader.close()
    aside = Path(f"{final}.tmp{os.getpid()}.old")  # a kill between the renames: the unit is done once more
    os.rename(final, aside)
    writer.commit(final)
    shutil.rmtree(aside)
