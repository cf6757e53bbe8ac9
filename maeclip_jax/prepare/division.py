"""How a source of each format is divided into units of work.

A divider takes `(reading, files, wanted, unit_records)`, where `wanted` holds the column names that were asked for by
role (image, caption, split; "" where none was), and returns a `crawl.Plan` whose reading is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare import remote, tables
from maeclip_jax.prepare.crawl import (
    Plan,
    Reading,
    Unit,
    formats,
    group_of,
    is_member,
    is_split_name,
    key_and_extension,
    split_of,
)

Wanted = dict[str, str]


def _tars(reading: Reading, files: list[epath.Path], wanted: Wanted, unit_records: int) -> Plan:
    del unit_records
    reading = _members(reading, wanted)
    with ThreadPoolExecutor(32) as threads:  # a remote file system answers slowly, but many at a time
        sizes = threads.map(_size, files)
        counts = threads.map(upstream, files)
        units = [
            Unit(index, _relative(path, reading), f"{size}", size, count.get("successes"))
            for index, (path, size, count) in enumerate(zip(files, sizes, counts))
        ]
    return Plan(reading, tuple(units), () if reading.split_column else (reading.split,))


def _members(reading: Reading, wanted: Wanted) -> Reading:
    """Tars and loose files name picture and caption by extension; other captions and a split may stand in the json."""
    if wanted["image"]:
        choice = "leave it out, or --format table or parquet"
        raise errors.UserError(f"image_column has no meaning for {reading.format}; valid: {choice}")
    return dataclasses.replace(reading, caption_column=wanted["caption"], split_column=wanted["split"] or "")


def upstream(shard: epath.Path) -> dict[str, int]:
    """The counts in img2dataset's `00000_stats.json` of this shard ({} if missing): count, successes, failed_*."""
    try:
        found = json.loads(remote.read(shard.parent / f"{shard.stem}_stats.json") or b"{}")
    except (OSError, ValueError) as error:
        if isinstance(error, errors.UserError):  # which is a ValueError
            raise
        return {}
    names = ("count", "successes", "failed_to_download", "failed_to_resize")
    return {n: int(found[n]) for n in names if isinstance(found.get(n), int | float)} if isinstance(found, dict) else {}


def upstream_total(plan: Plan) -> Counter[str]:
    """The sum of `upstream` over all shards."""
    root, total = epath.Path(plan.reading.root), Counter()
    with ThreadPoolExecutor(32) as threads:
        for counts in threads.map(upstream, [root / path for path in plan.files]):
            total.update(counts)
    return total


def _folders(reading: Reading, files: list[epath.Path], wanted: Wanted, unit_records: int) -> Plan:
    reading = _members(reading, wanted)
    listings = [[(e.name, e.stat().st_size) for e in os.scandir(f) if e.is_file()] for f in files]
    keys = [sorted({key_and_extension(name)[0] for name, _ in listing if is_member(name)}) for listing in listings]
    goal = _goal(sum(map(len, keys)), unit_records)
    units = []
    for folder, listing, names in zip(files, listings, keys):
        lines = "\n".join(f"{name} {size}" for name, size in sorted(listing))
        mark = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]
        size = sum(size for _, size in listing) // len(names)
        for start in range(0, len(names), goal):
            stop = min(start + goal, len(names))
            count = stop - start
            units.append(Unit(len(units), _relative(folder, reading), mark, size * count, count, start, stop))
    return Plan(reading, tuple(units), () if reading.split_column else (reading.split,))


def _table(reading: Reading, files: list[epath.Path], wanted: Wanted, unit_records: int) -> Plan:
    """Units of whole groups of rows; consecutive rows that name the same picture are one record (Flickr8k's csv)."""
    path = files[0]
    delimiter = "" if path.suffix.lower() == ".jsonl" else tables.delimiter(path)
    with remote.opened(path) as file:
        mark = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    names = tables.column_names(path, delimiter)
    reading = dataclasses.replace(reading, delimiter=delimiter, **tables.columns(wanted, names, path.name))
    starts, rows, splits, previous = array("q"), array("q"), set(), None
    stop = 0
    for number, start, stop, row in tables.rows(path, delimiter):  # noqa: B007 (the last one ends the last unit)
        if not starts:
            _refuse_addresses(row, reading)
        group = group_of(row, reading)
        if group is None or group != previous:
            starts.append(start)
            rows.append(number)
        previous = group
        splits.add(split_of(row, reading))
    goal = _goal(len(starts), unit_records)
    units = []
    for index, first in enumerate(range(0, len(starts), goal)):
        last = min(first + goal, len(starts))
        begin, end = starts[first], starts[last] if last < len(starts) else stop
        units.append(Unit(index, path.name, mark, end - begin, last - first, begin, end, rows[first]))
    return Plan(reading, tuple(units), tuple(sorted(s for s in splits if is_split_name(s))))


def _refuse_addresses(row: dict | str, reading: Reading) -> None:
    image = row.get(reading.image_column) if isinstance(row, dict) else None
    if isinstance(image, str) and re.match(r"https?://", image):
        raise errors.UserError(
            f"column {reading.image_column!r} holds web addresses; valid: picture paths "
            "(download first, for example with img2dataset, and give its output as --src)"
        )


def _parquet(reading: Reading, files: list[epath.Path], wanted: Wanted, unit_records: int) -> Plan:
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups, splits, schema = [], set(), None  # groups: for each file, the number of rows of each row group
    for path in files:
        try:
            with remote.opened(path, remote.SHORT) as file, pq.ParquetFile(file) as table:
                if schema is None:
                    schema = table.schema_arrow
                    reading = dataclasses.replace(reading, **_parquet_columns(wanted, schema, path.name))
                if reading.split_column in table.schema_arrow.names:
                    column = table.read(columns=[reading.split_column]).column(0)
                    splits.update(split_of({reading.split_column: v}, reading) for v in column.unique().to_pylist())
                else:
                    splits.add(reading.split)
                groups.append([table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)])
        except (pa.ArrowException, OSError):
            groups.append([])  # counted as unreadable_shard when it is read
    if schema is None:
        raise errors.UserError(f"no parquet file in {reading.root!r} opens; valid: {formats()}")
    goal = _goal(sum(map(sum, groups)), unit_records)
    units = []
    for path, counts in zip(files, groups):
        relative, size = _relative(path, reading), _size(path)
        if not counts:
            units.append(Unit(len(units), relative, f"{size}", size))
        first = row = held = 0
        for group, count in enumerate(counts):
            held += count
            if held >= goal or (group == len(counts) - 1 and held):
                share = size * held // sum(counts)
                units.append(Unit(len(units), relative, f"{size}", share, held, first, group + 1, row))
                first, row, held = group + 1, row + held, 0
    return Plan(reading, tuple(units), tuple(sorted(s for s in splits if is_split_name(s))))


def _parquet_columns(wanted: Wanted, schema, where: str) -> dict[str, str]:
    """As `tables.columns`, but the picture column must hold bytes (or Hugging Face's struct with a field `bytes`)."""
    import pyarrow as pa

    def holds_bytes(kind) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)

    pictures = [f.name for f in schema if holds_bytes(f.type)]
    if wanted["image"] and wanted["image"] not in pictures:
        raise errors.unknown("image_column", wanted["image"], pictures or ("none: no column holds bytes",))
    if not pictures:
        raise errors.UserError(f"{where} has no column of encoded pictures; valid: {formats()}")
    usual = [c for c in tables.IMAGE_COLUMNS if c in pictures]
    return tables.columns({**wanted, "image": wanted["image"] or (usual or pictures)[0]}, schema.names, where)


def _goal(records: int, unit_records: int) -> int:
    """Records in a unit: of 64 units each, but neither so few that overhead counts nor so many that a loss hurts."""
    return unit_records or min(10_000, max(100, -(-records // 64)))


def _relative(path: epath.Path, reading: Reading) -> str:
    return path.relative_to(reading.root).as_posix()


def _size(path: epath.Path) -> int:
    return path.stat().length


DIVIDERS = {"webdataset": _tars, "table": _table, "files": _folders, "parquet": _parquet}
