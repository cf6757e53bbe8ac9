"""What is asked of a bucket, estimated: requests and bytes of data in their order, of checkpoints, of other files.

The constants were counted by the storage server of `bench.bucket` (real clients, on loopback; see LOG.md); the rest is
arithmetic. Retries are not in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from maeclip_jax.data import blocks, shards

OPENING = 1 << 20  # bytes of the one request that opens a file
SPILLED = 230_000  # bytes, at most some such, that are sent beyond what a request is for, before its reader breaks off
BEAT = 8.0  # seconds between two signs of life in owner.json
FLUSH = 60.0  # seconds between two writings of the metrics


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Operations of class A and B, and bytes that are sent from the bucket."""

    a: float = 0.0
    b: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.a + other.a, self.b + other.b, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Traffic:
        return Traffic(self.a * times, self.b * times, self.bytes * times)


# What happens in a workdir in a bucket, each once. A save of any number of arrays, with an older one removed;
# costs.json; metrics.jsonl and TensorBoard's file; owner.json; evals/<step>.json and its items.
SAVE, SAVE_A_PROCESS = Traffic(41, 17), Traffic(3.5, 3)
COSTS = Traffic(1, 0)
METRICS = Traffic(2, 0)
SIGN = Traffic(1, 1)
RESULT = Traffic(2, 2)  # of one evaluator, with its items; pictures are not in it
RESTORE = Traffic(2, 10)  # of each process; large arrays take more requests
OPEN_DATA = Traffic(1, 3)  # dataset_info.json and what else describes a data set, of each process


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What a source has in storage. files: of its split. remote: whether that is a bucket. held: read once a start."""

    records: int
    record_bytes: float
    files: int
    remote: bool = True
    held: bool = False

    @classmethod
    def of(cls, source: Any) -> DataSet:
        """That of an opened source."""
        told = {"record_bytes": 0.0, "files": 1, "remote": False, "held": False}
        return cls(len(source), **{name: getattr(source, name, default) for name, default in told.items()})

    @property
    def kept(self) -> float:
        """The share of the files that a process can keep open: the others are opened again at nearly every read."""
        return min(1.0, shards.OPEN / self.files, shards.INDEX / 8 / self.records)

    def opened(self, reads: float) -> float:
        """Files that one process opens in so many reads all over the data set."""
        if self.kept < 1:
            return reads * (1 - self.kept)
        return self.files * (1 - (1 - 1 / self.files) ** reads)


def _reading(reads: float, used: float, opened: float = 0.0) -> Traffic:
    return Traffic(0, reads + opened, used + reads * SPILLED + opened * OPENING)


def _once(data: DataSet, processes: int = 1) -> Traffic:
    """What a data set that is held in memory asks for when it is first read."""
    return _reading(data.files, data.records * data.record_bytes, data.files) * processes


def training(data: DataSet, examples: float, plan: blocks.Settings | None, *, processes: int = 1) -> Traffic:
    """`examples` in the order of training, of all processes together; what is read ahead at the end is not in it.

    plan: as of `data.blocks`; None: record by record.
    """
    if not data.remote:
        return Traffic()
    if data.held:
        return _once(data, processes)
    if plan is None:
        reads = examples
    else:
        block = blocks.Blocks(data.records, size=plan.size, window=plan.window, lanes=plan.lanes).size
        # The borders of lanes and of files cut blocks in two.
        an_epoch = -(-data.records // block) + plan.lanes - 1 + (data.files - 1) * (1 - 1 / block)
        reads = examples * an_epoch / data.records
    if plan is not None and data.records > block * blocks.FLAT:
        regions = data.records / block / blocks.REGION
        files = 1 + blocks.REGION * block * data.files / data.records  # of a region
        cut = 1 + plan.lanes * blocks.POOL / regions  # a pool of regions that lies in two lanes is read by both
        opened = examples / data.records * regions * files * cut
    else:
        opened = processes * data.opened(reads / processes)
    return _reading(reads, examples * data.record_bytes, opened)


def ahead(data: DataSet, plan: blocks.Settings | None) -> Traffic:
    """What a start of training asks for and never uses, if it ends in the middle: the blocks that are being read."""
    if data.remote and data.held:
        return _once(data)
    if plan is None or not data.remote:
        return Traffic()
    size = blocks.Blocks(data.records, size=plan.size, window=plan.window, lanes=plan.lanes).size
    reads = min(plan.lanes * (plan.window + plan.ahead), data.records / size)
    return _reading(reads, reads * size * data.record_bytes)


def evaluation(data: DataSet, batch: int, plan: blocks.Settings | None, *, processes: int = 1) -> Traffic:
    """One pass in order, of all processes together; files are opened anew. Held data are not asked for again."""
    if not data.remote or data.held:
        return Traffic()
    if plan is None:
        reads = data.records
    else:
        rows = max(1, batch // processes)  # neighbours, of each process and batch
        if processes == 1:
            rows *= max(1, plan.size // rows)
        reads = data.records / rows * -(-rows // plan.size) + data.files - 1
    return _reading(reads, data.records * data.record_bytes, processes * data.files)


def workdir(*, saves: float, results: float, seconds: float, processes: int) -> Mapping[str, Traffic]:
    """What a run writes in a workdir in a bucket, by name. results: passes of evaluators."""
    return {
        "checkpoints": (SAVE + SAVE_A_PROCESS * processes + COSTS) * saves,
        "metrics": METRICS * (seconds / FLUSH + saves),
        "results of evaluations": RESULT * results,
        "signs of life": SIGN * (seconds / BEAT),
    }
