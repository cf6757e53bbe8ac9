"""A data set assembled by the processes of one machine, unit by unit, so that killing it loses at most a unit each.

A finished unit is one folder that appears under its final name at once (written elsewhere, then renamed), and holds
its shards. When all units are there, keys that occur in several are dropped from the later ones, the shards move to
their TFDS names, and the whole folder takes its place with one rename. Every step can be repeated after a kill.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from maeclip_jax import errors
from maeclip_jax.errors import storage
from maeclip_jax.prepare import crawl, division, image_text, manifest
from maeclip_jax.prepare.image_text import Dropped, Kept, Stored, Storing
from maeclip_jax.prepare.manifest import Counting, Tally

# Facts about a kept record that its example does not hold; with them a duplicate can be subtracted from the account.
_ROW = np.dtype(
    [("hash", "u8"), ("split", "u2"), ("width", "u4"), ("height", "u4"), ("bytes", "u8"), ("verbatim", "?"),
     ("rows", "u4"), ("empty", "u4")]
)  # fmt: skip
_PULSE = 32  # records between two progress updates
_EARLY = 10_000  # records after which too many bad ones end the work before all is read


@dataclasses.dataclass(frozen=True)
class Job:
    reading: crawl.Reading
    storing: Storing
    folder: str  # where units lie
    counting: Counting | None = None

    def unit_folder(self, unit: crawl.Unit) -> Path:
        return Path(self.folder, f"{unit.index:06d}")


class _UnitWriter:
    """Writes a unit's folder: `SPLIT.array_record`, rows.npy, dropped.jsonl and, last, summary.json."""

    def __init__(self, folder: Path, counting: Counting | None):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.folder, self.tally, self.rows = folder, Tally(counting), []
        self.shards: dict[str, array_record_module.ArrayRecordWriter] = {}
        self.dropped = open(folder / "dropped.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (closed in commit)

    def add(self, outcome: Kept | Dropped) -> None:
        self.tally.add(outcome)
        if isinstance(outcome, Dropped):
            self.dropped.write(json.dumps(outcome.json(), ensure_ascii=False) + "\n")
            return
        if outcome.split not in self.shards:
            path = str(self.folder / f"{outcome.split}.array_record")
            self.shards[outcome.split] = array_record_module.ArrayRecordWriter(path, image_text.WRITER)
        self.shards[outcome.split].write(image_text.serialize(outcome.example))
        stored, split = outcome.stored, list(self.shards).index(outcome.split)
        size = (stored.source_width, stored.source_height, outcome.source_bytes)
        self.rows.append((_hash(outcome.key), split, *size, stored.verbatim, outcome.rows, outcome.empty_captions))

    def commit(self, final: Path) -> None:
        """The folder appears as `final`, complete, or not at all."""
        self.dropped.close()
        for writer in self.shards.values():
            writer.close()
        np.save(self.folder / "rows.npy", np.array(self.rows, _ROW))
        shards = {s: _shard(self.folder / f"{s}.array_record", self.tally.kept[s]) for s in self.shards}
        summary = {"tally": self.tally.json(), "shards": shards}
        (self.folder / "summary.json").write_text(json.dumps(summary))
        os.rename(self.folder, final)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _shard(path: Path, records: int) -> dict:
    """{records, bytes, sha256} of a shard, after a check that the file system holds all of it."""
    found = array_record_module.ArrayRecordReader(str(path))
    if found.num_records() != records:
        raise storage.StorageError(
            f"{path} holds {found.num_records()} of {records} records that were written: is the disk full?", room=True
        )
    found.close()
    return {"records": records, "bytes": path.stat().st_size, "sha256": manifest.sha256(path)}


def work(job: Job, unit: crawl.Unit, pulse: Callable[[int], None]) -> None:
    """Reads a unit and commits its folder. `pulse(n)` is told of every n records on the way."""
    final = job.unit_folder(unit)
    writer, since = _UnitWriter(Path(f"{final}.tmp{os.getpid()}"), job.counting), 0
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


def run(plan: crawl.Plan, storing: Storing, *, out: Path, name: str, workers: int, max_bad: float,
        identity: dict, progress: Callable, counting: Counting | None = None) -> dict:  # fmt: skip
    """Assembles `plan` into the TFDS folder `out` and returns its manifest.

    `progress(total)` gives a tqdm bar. Raises UserError when `out` is being written by another process, was begun with
    other options or from another source, or when more than `max_bad` (a share) of the records are bad.
    """
    building = out.with_name(f"{out.name}.incomplete")
    building.mkdir(parents=True, exist_ok=True)
    with _alone(building):
        _claim(building / "identity.json", identity)
        job = Job(plan.reading, storing, str(building / "units"), counting)
        Path(job.folder).mkdir(exist_ok=True)
        for leftover in Path(job.folder).glob("*.tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        done = [u for u in plan.units if job.unit_folder(u).exists()]
        tally = Tally.sum(Tally.from_json(_summary(job, u)["tally"]) for u in done)
        todo = [u for u in plan.units if not job.unit_folder(u).exists()]
        with progress(_expected(plan.units)) as bar:
            bar.update(tally.records)
            for unit in _finished(job, todo, workers, bar):
                tally = Tally.sum((tally, Tally.from_json(_summary(job, unit)["tally"])))
                done.append(unit)
                if _expected(plan.units) is None:
                    _estimate(bar, tally.records, done, plan.units)
                if tally.records >= _EARLY:
                    manifest.check_share(tally, max_bad)
        _drop_repeated(plan, job)
        finished = _assemble(plan, job, building / "final", name, max_bad, identity)
        os.rename(building / "final", out)
    shutil.rmtree(building)
    return finished


class _alone:
    """Locks the folder for this process; the kernel releases the lock when the process ends, however it ends."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self):
        self.file = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise errors.UserError(
                f"{str(self.folder)!r} is being written by another process; valid: wait for it, or another --name"
            ) from None

    def __exit__(self, *_):
        self.file.close()


def _claim(path: Path, identity: dict) -> None:
    if path.exists():
        manifest.check_same(json.loads(path.read_text()), identity, path.parent)
        return
    partial = path.with_suffix(".tmp")
    partial.write_text(manifest.dump(identity))
    os.rename(partial, path)


def _summary(job: Job, unit: crawl.Unit) -> dict:
    return json.loads((job.unit_folder(unit) / "summary.json").read_text())


def _expected(units: tuple[crawl.Unit, ...]) -> int | None:
    counts = [u.records for u in units]
    return None if None in counts else sum(counts)


def _estimate(bar, records: int, done: list[crawl.Unit], units: tuple[crawl.Unit, ...]) -> None:
    """If the source does not give its number of records, it is estimated from bytes, once the first units are read."""
    share = sum(u.size for u in done) / max(1, sum(u.size for u in units))
    bar.total = round(records / share) if share else None


def _finished(job: Job, todo: list[crawl.Unit], workers: int, bar) -> Iterator[crawl.Unit]:
    """Works through `todo` and yields units as they are finished, in any order."""
    if workers == 1 or len(todo) <= 1:
        for unit in todo:
            work(job, unit, bar.update)
            yield unit
        return
    # Not fork: OpenCV and ArrayRecord have threads of their own by now.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    count = min(workers, len(todo))
    with concurrent.futures.ProcessPoolExecutor(count, context, _start, (job, counter)) as pool:
        waiting = {pool.submit(_work, unit): unit for unit in todo}
        seen = 0
        try:
            while waiting:
                ready = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_COMPLETED).done
                now = counter.value
                bar.update(now - seen)
                seen = now
                for future in ready:
                    unit = waiting.pop(future)
                    future.result()
                    yield unit
        except concurrent.futures.process.BrokenProcessPool:
            raise errors.UserError(
                f"one of {count} workers was killed (out of memory?); valid: the same command again, which continues, "
                "perhaps with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: tuple = ()


def _start(job: Job, counter) -> None:
    global _worker
    _worker = (job, counter)
    # A pool's workers wait forever when their parent process is killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(unit: crawl.Unit) -> None:
    job, counter = _worker

    def pulse(records: int) -> None:
        with counter.get_lock():
            counter.value += records

    work(job, unit, pulse)


def _drop_repeated(plan: crawl.Plan, job: Job) -> None:
    """Drops from later units what earlier units have. A unit that changes is rewritten and then replaced."""
    hashes = [np.load(job.unit_folder(u) / "rows.npy")["hash"] for u in plan.units]
    first = np.unique(np.concatenate(hashes), return_index=True)[1]
    repeated = np.ones(sum(map(len, hashes)), bool)
    repeated[first] = False
    for unit, bad in zip(plan.units, np.split(repeated, np.cumsum([len(h) for h in hashes])[:-1])):
        if bad.any():
            _rewrite(job, unit, bad)


def _rewrite(job: Job, unit: crawl.Unit, repeated: np.ndarray) -> None:
    """The same unit with the marked rows dropped."""
    final = job.unit_folder(unit)
    splits = list(_summary(job, unit)["shards"])
    readers = [array_record_module.ArrayRecordReader(str(final / f"{s}.array_record")) for s in splits]
    writer = _UnitWriter(Path(f"{final}.tmp{os.getpid()}"), job.counting)
    for line in (final / "dropped.jsonl").read_text(encoding="utf-8").splitlines():
        writer.add(Dropped(**json.loads(line)))
    for row, bad in zip(np.load(final / "rows.npy").tolist(), repeated):
        _, split, width, height, size, verbatim, rows, empty = row
        example = image_text.parse(readers[split].read())
        stored = Stored(example["image"], example["width"], example["height"], width, height, verbatim)
        kept = Kept(splits[split], example["key"], example, stored, size, rows, empty)
        writer.add(image_text.duplicate(kept) if bad else kept)
    for reader in readers:
        reader.close()
    aside = Path(f"{final}.tmp{os.getpid()}.old")  # a kill between the renames: the unit is done once more
    os.rename(final, aside)
    writer.commit(final)
    shutil.rmtree(aside)


def _assemble(plan: crawl.Plan, job: Job, final: Path, name: str, max_bad: float, identity: dict) -> dict:
    """Moves all shards to `final` and writes their metadata for TFDS and for readers; returns the manifest."""
    summaries = {u: _summary(job, u) for u in plan.units}
    tally = Tally.sum(Tally.from_json(s["tally"]) for s in summaries.values())
    manifest.check_share(tally, max_bad)
    final.mkdir(exist_ok=True)
    shards: dict[str, list[dict]] = {}
    for split in sorted(tally.kept):
        found = [(u, s["shards"][split]) for u, s in summaries.items() if split in s["shards"]]
        for index, (unit, shard) in enumerate(found):
            target = final / f"{name}-{split}.array_record-{index:05d}-of-{len(found):05d}"
            if not target.exists():
                os.rename(job.unit_folder(unit) / f"{split}.array_record", target)
            shards.setdefault(split, []).append({"file": target.name, **shard})
    with open(final / "dropped.jsonl", "w", encoding="utf-8") as file:
        for unit in plan.units:
            file.write((job.unit_folder(unit) / "dropped.jsonl").read_text(encoding="utf-8"))
    image_text.write_metadata(final, plan, shards)
    tree = manifest.build(name, identity, tally, shards, division.upstream_total(plan))
    (final / "report.txt").write_text(manifest.report(tree), encoding="utf-8")
    (final / "manifest.json").write_text(manifest.dump(tree), encoding="utf-8")
    return tree
