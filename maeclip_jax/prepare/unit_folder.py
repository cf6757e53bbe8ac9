"""The work on one unit of a source, kept as a folder that appears under its final name at once, so that it is whole.

`SPLIT.array_record` holds the records, `account.jsonl` names what was not kept, and `suspects.jsonl` kept pictures that
are odd. `rows.npy` and `keys.jsonl` have a row for each record that was kept when the unit was read. They stay as they
are when records that earlier units have are dropped later. `shown.json` holds dropped ones for the contact sheet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from maeclip_jax.errors import UserError
from maeclip_jax.prepare import image_text, packing, sheet, suspects
from maeclip_jax.prepare.formats import remote
from maeclip_jax.prepare.formats.units import Reading, Unit
from maeclip_jax.prepare.image_text import Dropped, Kept, Stored, Storing
from maeclip_jax.prepare.manifest import Counting, Tally
from maeclip_jax.prepare.near import Near

# Facts about a kept record that its example does not hold; with them a duplicate can be subtracted from the account.
_ROW = np.dtype(
    [("hash", "u8"), ("digest", "u8"), ("split", "u2"), ("width", "u4"), ("height", "u4"), ("bytes", "u8"),
     ("verbatim", "?"), ("rows", "u4"), ("empty", "u4"), ("extras", "u4"), ("turned", "?")]
)  # fmt: skip
_TEXTS = ("account.jsonl", "keys.jsonl", suspects.FILE)
_EMPTY = 1024  # bytes of a file without rows that cannot be mapped
_BLOCK = 4096  # rows
_PULSE = 32  # records between two progress updates


@dataclasses.dataclass(frozen=True)
class Job:
    reading: Reading
    storing: Storing
    folder: str  # where units lie
    counting: Counting | None = None
    near: Near | None = None
    states: Mapping[str, object] = dataclasses.field(default_factory=dict)  # of the files when the work began

    def unit_folder(self, unit: Unit) -> Path:
        return Path(self.folder, f"{unit.index:06d}")

    def summary(self, unit: Unit) -> dict:
        """{tally, shards: {split: {records, size}}, splits (of its rows), settled} of a finished unit."""
        return json.loads((self.unit_folder(unit) / "summary.json").read_text())

    def rows(self, unit: Unit) -> np.ndarray:
        """The facts of `_ROW` about each record that was kept when the unit was read, not in memory."""
        path = self.unit_folder(unit) / "rows.npy"
        return np.load(path, mmap_mode="r" if os.path.getsize(path) > _EMPTY else None)

    def keys(self, unit: Unit) -> list[str]:
        """The key of each row."""
        with open(self.unit_folder(unit) / "keys.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]


class _Writer:
    def __init__(self, folder: Path, counting: Counting | None):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.folder, self.tally = folder, Tally(counting)
        self.rows: list[tuple] = []  # the newest; the others are in `blocks`, for tuples take ten times the memory
        self.blocks: list[np.ndarray] = []
        self.shards: dict[str, array_record_module.ArrayRecordWriter] = {}
        self.sizes: Counter[str] = Counter()
        self.shown = sheet.Dropped()
        self.files = {name: open(folder / name, "w", encoding="utf-8") for name in _TEXTS}  # noqa: SIM115

    def add(self, outcome: Kept | Dropped) -> None:
        self.tally.add(outcome)
        if isinstance(outcome, Dropped):
            self._line("account.jsonl", outcome.json())
            self.shown.add(outcome)
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
        source = outcome.example["source"]
        for kind, detail in stored.suspect:
            entry = {"key": outcome.key, "source": source, "kind": kind, "detail": detail}
            self._line(suspects.FILE, {"row": len(self.blocks) * _BLOCK + len(self.rows), **entry})
        self._line("keys.jsonl", outcome.key)
        name = sheet.name_hash(source, outcome.key)
        self.rows.append((name, outcome.digest, split, *size, stored.verbatim, *more))
        if len(self.rows) == _BLOCK:
            self.blocks.append(np.array(self.rows, _ROW))
            self.rows = []

    def _line(self, file: str, entry: object) -> None:
        self.files[file].write(json.dumps(entry, ensure_ascii=False) + "\n")

    def commit(self, final: Path, settled: Sequence[str] | None = None) -> None:
        """The folder appears as `final`, complete, or not at all.

        `settled`: the splits of the unit as it was read, if this one is without what earlier units have.
        """
        for file in self.files.values():
            file.close()
        for split, writer in self.shards.items():
            writer.close()
            packing.check(self.folder / f"{split}.array_record", self.tally.kept[split])
        if settled is not None:
            for name in ("rows.npy", "keys.jsonl"):
                shutil.copyfile(final / name, self.folder / name)
        else:
            np.save(self.folder / "rows.npy", np.concatenate([*self.blocks, np.array(self.rows, _ROW)]))
        (self.folder / "shown.json").write_text(json.dumps(self.shown.json()))
        shards = {s: {"records": self.tally.kept[s], "size": self.sizes[s]} for s in self.shards}
        splits = list(shards) if settled is None else settled
        summary = {"tally": self.tally.json(), "shards": shards, "splits": splits, "settled": settled is not None}
        (self.folder / "summary.json").write_text(json.dumps(summary))
        aside = Path(f"{self.folder}.old")  # a kill between the renames: the unit is done once more
        if settled is not None:
            os.rename(final, aside)
        os.rename(self.folder, final)
        shutil.rmtree(aside, ignore_errors=True)


def work(job: Job, unit: Unit, pulse: Callable[[int], None]) -> None:
    """Reads a unit and commits its folder. `pulse(n)` is told of every n records on the way."""
    final = job.unit_folder(unit)
    writer, since = _Writer(Path(f"{final}.tmp{os.getpid()}"), job.counting), 0
    for outcome in image_text.outcomes(job.reading, job.storing, unit, job.near):
        writer.add(outcome)
        since += 1
        if since == _PULSE:
            pulse(since)
            since = 0
    before, now = job.states.get(unit.path), state(job.reading, unit.path)
    if before not in (None, now):
        what = f"{unit.path} {'changed' if now else 'was removed'} while it was read"
        choice = "the same command when nothing writes to the source (finished work is kept)"
        raise UserError(f"{what}; valid: {choice}")
    try:
        writer.commit(final)
    except OSError:
        if not final.exists():
            raise
        shutil.rmtree(writer.folder)  # a process that outlived an earlier run was faster; its unit is the same
    pulse(since)


def state(reading: Reading, path: str) -> tuple[int, int] | None:
    """What changes when a file is written, or files of a folder come and go; None in a bucket, or where it is gone."""
    if remote.is_remote(reading.root):
        return None
    try:
        found = os.stat(Path(reading.root, path))
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def settle(job: Job, unit: Unit, repeated: Mapping[int, str]) -> None:
    """The same unit without the rows in `repeated`: row -> what its picture has the bytes of; "" where its key came."""
    final = job.unit_folder(unit)
    splits = job.summary(unit)["splits"]
    readers = [array_record_module.ArrayRecordReader(str(final / f"{s}.array_record")) for s in splits]
    odd: dict[int, list[tuple[str, str]]] = {}
    for entry in lines(final / suspects.FILE):
        odd.setdefault(entry["row"], []).append((entry["kind"], entry["detail"]))
    writer = _Writer(Path(f"{final}.tmp{os.getpid()}"), job.counting)
    for entry in lines(final / "account.jsonl"):
        writer.add(Dropped(**entry))
    writer.shown = sheet.Dropped(json.loads((final / "shown.json").read_text()))  # with the pictures of these
    for number, row in enumerate(job.rows(unit).tolist()):
        _, digest, split, width, height, size, verbatim, rows, empty, extras, turned = row
        example = image_text.parse(readers[split].read())
        shape = (example["width"], example["height"], width, height)
        stored = Stored(example["image"], *shape, verbatim, turned, tuple(odd.get(number, ())))
        kept = Kept(splits[split], example["key"], example, stored, size, rows, empty, extras, digest)
        first = repeated.get(number)
        writer.add(kept if first is None else image_text.left_out(kept, first))
    for reader in readers:
        reader.close()
    writer.commit(final, settled=splits)


def lines(path: Path):
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)
