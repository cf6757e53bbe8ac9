"""What a run will ask of storage, from its config alone: nothing is read, so sizes of data sets are assumed or told."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from typing import Any

from maeclip_jax.config import to_steps
from maeclip_jax.data import blocks, source
from maeclip_jax.errors.storage import is_remote
from maeclip_jax.parallel.chips import NETWORK
from maeclip_jax.run import storage_bill
from maeclip_jax.run.storage_traffic import DataSet

RECORD = 10_000  # bytes; a small photograph and its caption
FILE = 256_000_000  # bytes; the largest that `maeclip_jax.prepare` writes
EVALUATION = 5_000  # records, as in the usual sets of retrieval
SECONDS = "compiler-estimated step time"


def bill(config: Any, args: argparse.Namespace, *, epoch: int, total: int, processes: int) -> storage_bill.Bill:
    """That of `config` on so many hosts. args: `record_bytes`, `data_files` (0: assumed), `workdir` ("": a bucket)."""
    batch, data = config.batch_size, source.plain(config.data)
    steps = functools.partial(to_steps, batch_size=batch, epoch=epoch, total=total)
    mix = data.get("mix") or [("", 1.0, data)]
    whole = sum(weight for _, weight, _ in mix)
    parts = []
    for _, weight, part in mix:
        records = max(1, round(epoch * weight / whole))
        parts.append((weight / whole, data_set(source.plain(part), records, args.record_bytes, args.data_files)))
    order, plan = data.get("order", "auto"), blocks.settings(data.get("blocks"), batch)
    if order == "records" or (order == "auto" and not any(of.remote for _, of in parts)):
        plan = None

    def find(of: Mapping) -> DataSet:
        return data_set(of, EVALUATION, args.record_bytes)

    saves = max(1, steps(config.checkpoint.every, "checkpoint.every"))

    def every(name: str, settings: Mapping) -> int:
        return steps(settings.get("every", "0 steps"), f"evals.{name}.every")

    made = storage_bill.evaluations(config, every, find)
    return storage_bill.Bill(
        parts, plan, made, epoch, batch, total, saves, processes, is_remote(args.workdir or "gs://")
    )


def data_set(part: Mapping, records: int, record_bytes: int, files: int = 0) -> DataSet:
    """What the source of a data config has in storage. Drawn records have nothing there."""
    of = source.plain(part.get("source") or {})
    while isinstance(of, Mapping) and "of" in of:  # questions of another source
        of = source.plain(of["of"])
    told = isinstance(of, Mapping) and of.get("kind") == "tfds"
    remote = told and is_remote(source.data_dir(of.get("dir")))
    return DataSet(records, record_bytes, files or max(1, -(-records * record_bytes // FILE)), bool(remote))


def figures(config: Any, args: argparse.Namespace, found: Mapping, epoch: int) -> dict:
    """The estimate of a pre-flight's run as JSON; with bytes a second and host, if its step time is known."""
    made = bill(config, args, epoch=epoch, total=found["steps"], processes=found["processes"])
    out = made.whole(3600 * found.get("hours", 0.0))
    remote = [of for _, of in made.data if of.remote]
    if "note" in out:
        return out
    out["data"] = "in a bucket" if remote else "on a disk"
    out["order"] = str(made.plan or "record by record")
    count = sum(of.files for of in remote or [of for _, of in made.data])
    files = f"{count:,} files" if count > 1 else "1 file"
    out["assumed"] = (
        f"records of {args.record_bytes:,} bytes, {files}, evaluations of {EVALUATION:,} records; "
        "--record_bytes and --data_files to set them"
    )
    if remote and found["fits"]:
        rate = made.rate(found["step seconds"])
        out["bytes per second and host"] = {"value": rate, "known": f"estimated bytes, {SECONDS}"}
        network = NETWORK.get(found["chip"], 0.0) * found["chips"] / found["processes"]
        if network and rate > network:
            out["network"] = (
                f"more than the {storage_bill.size(network)}/s of its share of the pod's network (data sheet)"
            )
    return out


def text(found: Mapping) -> list[str]:
    """The section of a pre-flight."""
    lines = storage_bill.text(found)
    if "note" in found:
        return lines
    if found["data"] == "in a bucket":
        lines.append(f"  data: {found['order']}; assumed: {found['assumed']}")
    else:
        lines.append(
            "  data: on a disk, for which nothing is paid; MAECLIP_DATA_DIR=gs://BUCKET/data shows those of a bucket"
        )
    if rate := found.get("bytes per second and host"):
        network = f", {found['network']}" if "network" in found else ""
        lines.append(f"  each host reads {storage_bill.size(rate['value'])}/s of its data ({rate['known']}){network}")
    return lines
