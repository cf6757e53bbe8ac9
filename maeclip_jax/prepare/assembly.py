"""A data set assembled by the processes of one machine, unit by unit, so that killing it loses at most a unit each.

A finished unit is one folder (`unit_folder`). When all units are there, keys that occur in several are dropped from the
later ones, the records of all units are packed into shards (`packing`), and each shard goes where the data set will be
(`outlet`). A unit's records are removed once the shards that hold them are there, so that the work needs little more
room than the data set. Every step can be repeated after a kill.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import functools
import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from maeclip_jax import errors
from maeclip_jax.prepare import (
    image_text,
    manifest,
    outlet,
    packing,
    repeats,
    sample,
    sheet,
    suspects,
    unit_folder,
)
from maeclip_jax.prepare.formats import img2dataset
from maeclip_jax.prepare.formats.units import Plan, Unit
from maeclip_jax.prepare.image_text import Storing
from maeclip_jax.prepare.manifest import Counting, Tally
from maeclip_jax.prepare.near import Near
from maeclip_jax.prepare.unit_folder import Job

_EARLY = 10_000  # records after which too many bad ones end the work before all is read


def run(plan: Plan, storing: Storing, *, out: Path, name: str, workers: int, max_bad: float,
        identity: dict, progress: Callable, counting: Counting | None = None,
        scratch: Path | None = None, near: Near | None = None, drop_same: bool = False) -> dict:  # fmt: skip
    """Assembles `plan` into the TFDS folder `out` and returns its manifest.

    `scratch`: where unfinished work lies, if `out` is in a bucket. `near`: pictures of an evaluation set. `drop_same`:
    whether pictures with the bytes of an earlier one are dropped. `progress(total, what)` gives a tqdm bar. Raises
    UserError when `out` is being written by another process, was begun with other options or from another source, or
    when more than `max_bad` (a share) of the records are bad.
    """
    folder = building(out, name, scratch)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / "final"
    to = outlet.Bucket(str(out), final) if scratch else outlet.Folder(out, final)
    with _alone(folder):
        to.check(fresh=not (folder / "identity.json").exists())
        place = {"out": str(out)} if scratch else {}  # beside the data set it may move, with all
        _claim(folder / "identity.json", {**identity, "options": identity["options"] | place})
        to.begin()
        states = {path: unit_folder.state(plan.reading, path) for path in plan.files}
        job = Job(plan.reading, storing, str(folder / "units"), counting, near, states)
        Path(job.folder).mkdir(exist_ok=True)
        for leftover in Path(job.folder).glob("*.tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        _read_units(plan, job, workers, max_bad, progress)
        same = repeats.settle(job, plan.units, drop_same)
        shown = sample.taken(job, plan.units, repeats.dropped(job, plan.units, drop_same))
        finished = _assemble(plan, job, to, name, workers, max_bad, identity, progress, same, shown)
    shutil.rmtree(folder)
    return finished


def building(out: Path, name: str, scratch: Path | None = None) -> Path:
    """The folder of the unfinished work on `out`: beside it, or in `scratch`."""
    return scratch / f"{name}-{out.name}.incomplete" if scratch else out.with_name(f"{out.name}.incomplete")


def _read_units(plan: Plan, job: Job, workers: int, max_bad: float, progress: Callable) -> None:
    done = [u for u in plan.units if job.unit_folder(u).exists()]
    tally = Tally.sum(Tally.from_json(job.summary(u)["tally"]) for u in done)
    todo = [u for u in plan.units if not job.unit_folder(u).exists()]
    with progress(_expected(plan.units), "prepare") as bar:
        bar.update(tally.seen)
        for unit in _finished(functools.partial(unit_folder.work, job), todo, workers, bar):
            tally = Tally.sum((tally, Tally.from_json(job.summary(unit)["tally"])))
            done.append(unit)
            if _expected(plan.units) is None:
                _estimate(bar, tally.seen, done, plan.units)
            if tally.records >= _EARLY:
                _check_share(tally, max_bad, job, done)


def _check_share(tally: Tally, max_bad: float, job: Job, done: Sequence[Unit]) -> None:
    """As `manifest.check_share`; the account of what was read so far is written first, for the message names it."""
    path = Path(job.folder).with_name(manifest.ACCOUNT)
    if tally.bad > max_bad * tally.records or not tally.kept.total():
        _write_account(job, done, path)
    manifest.check_share(tally, max_bad, path)


def _write_account(job: Job, units: Sequence[Unit], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for unit in units:
            file.write((job.unit_folder(unit) / "account.jsonl").read_text(encoding="utf-8"))


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


def _expected(units: tuple[Unit, ...]) -> int | None:
    counts = [u.records for u in units]
    return None if None in counts else sum(counts)


def _estimate(bar, records: int, done: list[Unit], units: tuple[Unit, ...]) -> None:
    """If the source does not give its number of records, it is estimated from bytes, once the first units are read."""
    share = sum(u.size for u in done) / max(1, sum(u.size for u in units))
    bar.total = round(records / share) if share else None


def _finished(work: Callable, todo: Sequence, workers: int, bar) -> Iterator[Any]:
    """Calls `work(item, pulse)` for all of `todo`, in several processes, and yields items as they are finished."""
    if workers == 1 or len(todo) <= 1:
        for item in todo:
            work(item, bar.update)
            yield item
        return
    # Not fork: OpenCV and ArrayRecord have threads of their own by now.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    count_of = counter.get_obj()  # without its lock, which a worker that is killed may hold
    count = min(workers, len(todo))
    with concurrent.futures.ProcessPoolExecutor(count, context, _start, (work, counter)) as pool:
        waiting = {pool.submit(_work, item): item for item in todo}
        seen = 0
        try:
            while waiting:
                ready = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_COMPLETED).done
                now = count_of.value
                bar.update(now - seen)
                seen = now
                for future in ready:
                    item = waiting.pop(future)
                    future.result()
                    yield item
        except concurrent.futures.process.BrokenProcessPool:
            raise errors.UserError(
                f"one of {count} workers was killed (out of memory?); valid: the same command again, which continues, "
                "perhaps with fewer --workers"
            ) from None
        finally:
            if waiting:  # work is thrown away: the others are told to stop, and leave before their semaphores do
                count_of.value = _STOPPED
            pool.shutdown(wait=True, cancel_futures=True)


_STOPPED = -(1 << 62)
_worker: tuple = ()


class _Stop(Exception):
    """Another unit has failed: this one need not be finished."""


def _start(work: Callable, counter) -> None:
    global _worker
    _worker = (work, counter)
    # A pool's workers wait forever when their parent process is killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(item) -> None:
    work, counter = _worker

    def pulse(records: int) -> None:
        with counter.get_lock():
            if counter.value < 0:
                raise _Stop
            counter.value += records

    work(item, pulse)


def _assemble(plan: Plan, job: Job, to, name: str, workers: int, max_bad: float, identity: dict,
              progress: Callable, same: int, shown: dict[str, list]) -> dict:  # fmt: skip
    """Puts all shards where they belong, with their metadata for TFDS and for readers; returns the manifest."""
    summaries = {u: job.summary(u) for u in plan.units}
    tally = Tally.sum(Tally.from_json(s["tally"]) for s in summaries.values())
    tally.suspects[suspects.SAME] += same
    _check_share(tally, max_bad, job, plan.units)
    planned = {}
    for split in sorted(tally.kept):
        found = [(u, s["shards"][split]) for u, s in summaries.items() if split in s["shards"]]
        parts = [packing.Part(str(job.unit_folder(u) / f"{split}.array_record"), **shard) for u, shard in found]
        planned[split] = packing.shards(name, split, parts)
    final = to.building
    final.mkdir(exist_ok=True)
    entries = _pack([s for split in planned.values() for s in split], to, workers, progress)
    shards = {split: [entries[s.file] for s in found] for split, found in planned.items()}
    _write_account(job, plan.units, final / manifest.ACCOUNT)
    repeats.write_suspects(job, plan.units, final / suspects.FILE)
    image_text.write_metadata(final, plan, shards)
    tree = manifest.build(name, identity, tally, shards, img2dataset.upstream_total(plan))
    (final / "report.txt").write_text(manifest.report(tree), encoding="utf-8")
    (final / sheet.FILE).write_text(sheet.page(tree, shown), encoding="utf-8")
    (final / "manifest.json").write_text(manifest.dump(tree), encoding="utf-8")
    to.finish()
    return tree


def _pack(shards: list[packing.Shard], to, workers: int, progress: Callable) -> dict[str, dict]:
    """Writes the shards that are not there yet, and removes what is in them: file -> {file, records, bytes, sha256}."""
    notes = to.building.with_name("packed")
    notes.mkdir(exist_ok=True)
    for leftover in notes.glob("*.tmp*"):
        leftover.unlink()
    entries = {}
    for shard in shards:
        note = notes / f"{shard.file}.json"
        entry = json.loads(note.read_text()) if note.exists() else None
        if entry and to.holds(entry["file"], entry["bytes"]):
            entries[shard.file] = entry
    waiting = Counter(path for shard in shards for path, _, _ in shard.pieces)

    def done(shard: packing.Shard) -> None:
        for path, _, _ in shard.pieces:
            waiting[path] -= 1
            if not waiting[path]:
                Path(path).unlink(missing_ok=True)

    for shard in shards:
        if shard.file in entries:
            done(shard)
    todo = [shard for shard in shards if shard.file not in entries]
    lost = [shard.file for shard in todo if not all(Path(path).exists() for path, _, _ in shard.pieces)]
    if lost:
        raise errors.UserError(f"{lost[0]} was finished and is gone, and its records with it; valid: --overwrite")
    with progress(sum(shard.records for shard in todo), "pack") as bar:
        for shard in _finished(functools.partial(_deliver, to, notes), todo, workers, bar):
            entries[shard.file] = json.loads((notes / f"{shard.file}.json").read_text())
            done(shard)
    return entries


def _deliver(to, notes: Path, shard: packing.Shard, pulse: Callable[[int], None]) -> None:
    """Writes one shard to its place, and then the note that it is there."""
    path = notes / f"{shard.file}.tmp{os.getpid()}"
    packing.write(shard, path)
    size, digest = os.path.getsize(path), manifest.sha256(path)
    entry = {"file": shard.file, "records": shard.records, "bytes": size, "sha256": digest}
    to.place(path, shard.file)
    partial = notes / f"{shard.file}.json.tmp{os.getpid()}"
    partial.write_text(json.dumps(entry))
    os.rename(partial, notes / f"{shard.file}.json")
    pulse(shard.records)
