"""How fast training rows come from a bucket and from a disk: blocks of neighbours beside record by record.

    python -m maeclip_jax.bench storage [--latency_ms=0,50] [--records=60000] [--json=FILE]

A data set of random records (`--bytes` each, in `--shards` files) is written and uploaded to a real storage server on
loopback, which adds a latency before the first byte of each answer. Then one process reads it by `data.pipeline`,
without decoding, on each of these ways:

- as before     array_record's own data source, record by record: what this project did until it had blocks
- records       record by record, by this project's readers
- blocks        blocks of K neighbours, windows of W blocks, L lanes (`data.blocks`)

Every row is measured for `--seconds` after its first batch. Requests and bytes are counted by the server, those before
the first batch apart: they fill the windows. CPU is that of the reading process. The server and a real bucket differ:
compare ratios.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from maeclip_jax import cli
from maeclip_jax.bench import bucket
from maeclip_jax.bench.figures import add_json, processor, write
from maeclip_jax.data import pipeline, source

NAME = "bytes"
BATCH = 1024
FASTER = 20  # at 50 ms, blocks are to be at least so many times faster than what was before


def make(root: str, records: int, size: int, shards: int) -> None:
    """Writes the data set: random pictures of `size` bytes (which nothing decodes), each with a key."""
    import tensorflow_datasets as tfds

    class Bytes(tfds.core.GeneratorBasedBuilder):
        VERSION, name = tfds.core.Version("1.0.0"), NAME

        def _info(self):
            kept = {"key": tfds.features.Text(), "image": tfds.features.Image(encoding_format="jpeg")}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(kept))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            random = np.random.default_rng(0)
            for i in range(records):
                yield i, {"key": f"{i:09}", "image": b"\xff\xd8" + random.bytes(size - 2)}

    tfds.disable_progress_bar()
    how = tfds.download.DownloadConfig(num_shards=shards)
    Bytes(data_dir=root, file_format="array_record").download_and_prepare(download_config=how)


class AsBefore(source.TfdsSource):
    """Reads as this project did until it had readers of its own."""

    def __init__(self, **config):
        super().__init__(**config)
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        pieces = [f"{shard.path}[{shard.skip}:{shard.skip + shard.take}]" for shard in self._shards.shards]
        self._before = ArrayRecordDataSource(pieces)

    def __getitem__(self, index: int) -> dict:
        return self.record(self._before[index], index)


def passes(threads: int, sizes: list[int], lanes: list[int]) -> Iterator[tuple[str, dict]]:
    """(name, data config without its source) of each way."""
    told = {"num_threads": threads, "ops": _row}
    yield "as before", {**told, "order": "records"}
    yield "records", {**told, "order": "records"}
    for size in sizes:
        for count in lanes:
            # A window has as many rows, however many lanes share them.
            window = max(1, 65536 // (size * count))
            blocks = {"size": size, "window": window, "lanes": count}
            yield f"blocks K={size} W={window} L={count}", {**told, "order": "blocks", "blocks": blocks}


def _row(record: dict, _) -> dict:
    return {"bytes": np.int32(len(record["image"]))}


def measure(kind: type, where: dict, config: dict, seconds: float, server: Any = None) -> dict[str, float]:
    """One pass: images/s after the first batch, seconds until it, CPU-ms an image, and what `server` has counted."""
    if server:
        server.reset()
    begun = time.perf_counter()
    data = pipeline.open({"source": where, **config}, lambda of: kind(**{k: v for k, v in of.items() if k != "kind"}))
    with data.train(batch_size=BATCH, seed=0) as batches:
        next(batches)
        first, cpu, images, used = time.perf_counter(), time.process_time(), 0, 0
        before = server.counts() if server else None
        while time.perf_counter() < first + seconds:
            images, used = images + BATCH, used + int(next(batches)["bytes"].sum())
        end, spent = time.perf_counter(), time.process_time() - cpu
        after = server.counts() if server else None
    found = {"images_per_s": images / (end - first), "first_s": first - begun, "cpu_ms": 1e3 * spent / images}
    if server:
        found["first_requests"] = before.requests
        found["requests"] = (after.requests - before.requests) / images
        found["bytes_of_used"] = (after.bytes_sent - before.bytes_sent) / used
    return found


def run(argv) -> None:
    """Prints the table."""
    parser = cli.Parser("maeclip_jax.bench storage", __doc__)
    parser.add_argument("--latency_ms", default="0,50", help="before the first byte, of each table (0,50)")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=9_900, help="of a record (9900: a small photograph)")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--sizes", default="64,256", help="K: records of a block")
    parser.add_argument("--lanes", default="1,64")
    parser.add_argument("--seconds", type=float, default=10.0)
    add_json(parser)
    args = parser.parse_args(argv)
    sizes, lanes = ([int(n) for n in text.split(",")] for text in (args.sizes, args.lanes))
    ways, figures = list(passes(args.threads, sizes, lanes)), {}
    with tempfile.TemporaryDirectory() as folder:
        make(folder, args.records, args.bytes, args.shards)
        print(f"{args.records} records of {args.bytes} bytes in {args.shards} files, batches of {BATCH}, "
              f"{args.threads} threads; {processor()}, {os.cpu_count()} cores")  # fmt: skip
        print("measured; requests and bytes by the server on loopback")
        where = {"kind": "tfds", "dir": folder, "name": NAME}
        figures["disk"] = {name: measure(_kind(name), where, config, args.seconds) for name, config in ways}
        _table("disk", figures["disk"])
        with bucket.serve("storage-bench") as served:
            os.environ.update(served.env)
            served.upload(folder, "data")
            for latency in args.latency_ms.split(","):
                served.latency(float(latency) / 1e3)
                where, found = {"kind": "tfds", "dir": served.url("data"), "name": NAME}, {}
                for name, config in ways:
                    found[name] = measure(_kind(name), where, config, args.seconds, served)
                figures[f"gs:// {latency} ms"] = found
                _table(f"gs://, {latency} ms", found)
    write("storage", figures, args.json)


def _kind(name: str) -> type:
    return AsBefore if name == "as before" else source.TfdsSource


def _table(title: str, rows: dict[str, dict]) -> None:
    print(
        f"\n{title:26} images/s   ratio  first batch  CPU ms/image  requests/image  bytes/used  before the first batch"
    )
    for name, row in rows.items():
        counted = ""
        if "requests" in row:
            counted = f"{row['requests']:14.4f}  {row['bytes_of_used']:10.2f} {row['first_requests']:14} requests"
        ratio = row["images_per_s"] / rows["as before"]["images_per_s"]
        print(
            f"{name:26} {row['images_per_s']:8.0f} {ratio:7.2f} {row['first_s']:10.2f} s {row['cpu_ms']:13.3f}", counted
        )
