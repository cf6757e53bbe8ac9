"""What a run pays for requests to storage: estimated from its config, before it; with what was counted, after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maeclip_jax.data import blocks, source
from maeclip_jax.data.shards import Asked, asked
from maeclip_jax.errors import storage
from maeclip_jax.run import storage_traffic as traffic
from maeclip_jax.run.average import BOTH
from maeclip_jax.run.clock import Clock
from maeclip_jax.run.storage_prices import PRICES
from maeclip_jax.run.storage_traffic import DataSet, Traffic

PRICE = PRICES["gs"]
ESTIMATED, MEASURED = "estimated", "measured"
NOTHING = "nothing is paid for requests: the data and the workdir are on disks"
EPOCH, ALL = "training data, an epoch", "all"


class Meter:
    """What this process has asked of buckets for its data since the run began; `before`: until it was resumed."""

    def __init__(self, before: Sequence[int] = ()):
        self._before, self._begun = Asked(*before), asked()

    @property
    def sums(self) -> Asked:
        """Up to now."""
        return Asked(*(b + now - begun for b, now, begun in zip(self._before, asked(), self._begun)))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One data set of an evaluator. every: steps from one pass to the next; 0: after the last step alone."""

    data: DataSet
    every: int
    batch: int
    plan: blocks.Settings | None

    def passes(self, done: int, total: int) -> int:
        """In `done` steps; after the last step all evaluators run."""
        return (done // self.every if self.every else 0) + (
            done == total and not (self.every and done % self.every == 0)
        )


def evaluations(
    config: Any, every: Callable[[str, Mapping], int], find: Callable[[Mapping], DataSet]
) -> list[Evaluation]:
    """Those of a config. every: evaluator, its settings -> steps between passes; find: data config -> its data set."""
    found = []
    for name, entry in config.evals.items():
        settings = source.plain(entry)
        batch = settings.get("batch_size", 256)
        for data in settings.values():
            if isinstance(data, Mapping) and "source" in data:
                plan = None if data.get("order") == "records" else blocks.settings(data.get("blocks"), batch)
                passes = 2 if settings.get("params") == BOTH else 1
                found += [Evaluation(find(data), every(name, settings), batch, plan)] * passes
    return found


@dataclasses.dataclass(frozen=True)
class Bill:
    """What a run asks for. data: (share of the examples, data set) of each component; plan: see `storage_traffic`.

    epoch: examples (None: endless data). total, save_every: steps. workdir: whether that is in a bucket.
    """

    data: Sequence[tuple[float, DataSet]]
    plan: blocks.Settings | None
    evaluations: Sequence[Evaluation]
    epoch: int | None
    batch: int
    total: int
    save_every: int
    processes: int
    workdir: bool

    @property
    def free(self) -> bool:
        """Whether no bucket is asked for anything."""
        sets = [data for _, data in self.data] + [e.data for e in self.evaluations]
        return not self.workdir and not any(data.remote for data in sets)

    def training(self, examples: float) -> Traffic:
        """The data of so many examples."""
        parts = [traffic.training(d, examples * share, self.plan, processes=self.processes) for share, d in self.data]
        return sum(parts, Traffic())

    def rows(self, done: int, seconds: float) -> dict[str, Traffic]:
        """What `done` steps ask for that take `seconds`, by what it is for; a start anew is not in it."""
        found = {"training data": self.training(done * self.batch)}
        passes = [(e, e.passes(done, self.total)) for e in self.evaluations]
        kinds = [traffic.evaluation(e.data, e.batch, e.plan, processes=self.processes) * n for e, n in passes]
        found["data of evaluations"] = sum(kinds, Traffic())
        opened = sum(data.remote for _, data in self.data) + sum(e.data.remote for e in self.evaluations)
        found["descriptions of data sets"] = traffic.OPEN_DATA * (opened * self.processes)
        if self.workdir:
            saves = done // self.save_every + (done == self.total and done % self.save_every > 0)
            told = {"saves": saves, "results": sum(n for _, n in passes), "seconds": seconds}
            found |= traffic.workdir(**told, processes=self.processes)
        return {name: of for name, of in found.items() if of != Traffic()}

    def start(self) -> Traffic:
        """What one start anew costs beyond an uninterrupted run: the state and open files of all processes."""
        found = (traffic.RESTORE * self.processes) if self.workdir else Traffic()
        for _, data in self.data:
            if data.remote:
                opened = self.processes * (data.files if data.kept == 1 else 0)
                found += traffic.ahead(data, self.plan) + Traffic(0, opened, opened * traffic.OPENING)
        return found

    def rate(self, step_seconds: float) -> float:
        """Bytes a second that each host reads of its training data."""
        examples = 1e6 * self.batch  # so many that opening files for the first time is nothing
        return self.training(examples).bytes / 1e6 / step_seconds / self.processes

    def whole(self, seconds: float) -> dict:
        """The estimate of the whole run, as JSON."""
        if self.free:
            return {"note": NOTHING}
        rows = self.rows(self.total, seconds)
        epoch = {EPOCH: self.training(self.epoch)} if self.epoch and "training data" in rows else {}
        found = {
            name: _line(of, ESTIMATED) for name, of in {**epoch, **rows, ALL: sum(rows.values(), Traffic())}.items()
        }
        return {
            "price": dataclasses.asdict(PRICE) | {"text": str(PRICE)},
            "whole run": found,
            "a start anew": _line(self.start(), ESTIMATED),
        }

    def so_far(self, asked: Asked, done: int, clock: Clock, workers: int = 0) -> dict:
        """costs.json: what this process has asked its data for, the rest of what was done, and the whole run.

        workers: processes that read for this one and count for themselves; then nothing is measured.
        """
        spent = clock.seconds
        seconds, step_seconds = sum(spent[name] for name in Clock.PHASES if name != "input_wait"), 0.0
        if done:
            step_seconds = spent["train"] / done
        found = self.whole(seconds / done * self.total if done else 0.0)
        if self.free:
            return found
        rows = {name: _line(of, ESTIMATED) for name, of in self.rows(done, seconds).items()}
        data = any(of.remote for _, of in self.data) or any(e.data.remote for e in self.evaluations)
        if data and not workers:
            counted = Traffic(0, asked.ranges + asked.opened, asked.bytes + asked.opened * traffic.OPENING)
            for name in ("training data", "data of evaluations"):
                rows.pop(name, None)
            beyond = {BEYOND: asked.ranges * traffic.SPILLED}
            rows = {"data, this process": _line(counted, MEASURED) | beyond} | rows
            if self.processes > 1:
                others = f"data, the other {self.processes - 1} processes, as this one"
                rows[others] = _line(counted * (self.processes - 1), ESTIMATED)
        every = sum((Traffic(*(row[k] for k in KEYS)) for row in rows.values()), Traffic())
        rows[ALL] = _line(
            every, "measured and estimated" if any(r["known"] == MEASURED for r in rows.values()) else ESTIMATED
        )
        rate = (
            {"value": self.rate(step_seconds), "known": f"estimated bytes, {MEASURED} time"} if step_seconds else None
        )
        return found | {"so far": rows} | ({"bytes per second and host": rate} if rate else {})


BEYOND = "bytes sent beyond those used, estimated"
KEYS = ("class A operations", "class B operations", "bytes read")


def _line(of: Traffic, known: str) -> dict:
    counts = [round(n) for n in dataclasses.astuple(of)]
    return dict(zip(KEYS, counts)) | {"dollars": PRICE.dollars(*dataclasses.astuple(of)), "known": known}


def of_run(config: Any, data: Any, built: Any, runner: Any, save_every: int, *, processes: int, workdir: Any) -> Bill:
    """The bill of a run: `data` opened, `built` and `runner` made, saved every so many steps in `workdir`."""
    whole = sum(weight for weight, _ in data.sources)
    parts = [(weight / whole, DataSet.of(made)) for weight, made in data.sources]
    runs = config.copy_and_resolve_references()
    runs.evals = {name: entry for name, entry in config.evals.items() if name in runner.evaluators}
    made = evaluations(runs, lambda name, _: runner.every[name], lambda of: DataSet.of(runner.context.source(of)))
    return Bill(
        parts, data.plan(built.batch_size), made, data.length, built.batch_size, built.total_steps, save_every,
        processes, storage.is_remote(workdir),
    )  # fmt: skip


def text(found: Mapping) -> list[str]:
    """The estimate of a whole run as lines of a table."""
    if "note" in found:
        return [f"storage: {found['note']}"]
    lines = ["storage, requests of the whole run (estimated)"]
    head = ("", *KEYS, "dollars")
    rows = dict(found["whole run"]) | {"each start anew": found["a start anew"]}
    cells = [head] + [(name, *(f"{row[k]:,}" for k in KEYS[:2]), size(row[KEYS[2]]), f"{row['dollars']:,.2f}")
                      for name, row in rows.items()]  # fmt: skip
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for name, *numbers in cells:
        lines.append("  ".join(["", name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:]))]))
    return [*lines, f"  dollars at {found['price']['text']}"]


def size(count: float) -> str:
    """`14.0 TB`: bytes, in powers of 1,000."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:.0f} B"
