"""Parquet files with a column of encoded pictures, or of their paths: img2dataset's, and Hugging Face's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare.formats import batches, captions, columnar, img2dataset, names, pictures, remote, table
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import Raw, lost_records
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit, split_field, unit_goal, unit_split

NAME = "parquet"
SAID = "with a column of pictures or of their paths"

_BATCH = 100


def find(look: Listing, wanted: dict, forced: bool) -> list[str]:
    del wanted
    found = [path for path in look.with_suffix(".parquet") if forced or not img2dataset.is_side(look, path)]
    if not found:
        return []
    opened, refused = 0, []
    for path in found:
        schema = _schema(look, path)
        opened += schema is not None
        reason = _reason(look, len(found), *schema) if schema else ""
        if reason:
            refused.append(path)
            look.refusals.append(reason)
        elif schema:
            return [path for path in found if path not in refused]
    if not opened:
        look.refusals.append(f"no parquet file in {str(look.root)!r} opens; valid: a source of files that are whole")
    return []


def _reason(look: Listing, count: int, path: str, schema, row: dict) -> str:
    """Why a file cannot be read, with what to do; "" if it can."""
    encoded, paths = columnar.image_columns(schema)
    links = [n for n, v in row.items() if isinstance(v, str) and v.lower().startswith(("http://", "https://"))]
    if encoded or [p for p in paths if p not in links]:
        return ""
    if links or "url" in [n.lower() for n in row]:
        url = links[0] if links else next(n for n in row if n.lower() == "url")
        caption = captions.usual(n for n in row if n != url) or "caption"
        return table.addresses_said(path, look.root if count > 1 else look.root / path, url, caption, "parquet")
    return (
        f"{path} has no column of encoded pictures and none of picture paths (columns: {', '.join(schema.names)}); "
        "valid: a file that has, or --image_column"
    )


def _schema(look: Listing, path: str):
    """(path, schema, first row) of a file; None if it does not open."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with remote.opened(look.root / path, remote.SHORT) as file, pq.ParquetFile(file) as table:
            encoded, _ = columnar.image_columns(table.schema_arrow)
            columns = [n for n in table.schema_arrow.names if n not in encoded]
            first = next(table.iter_batches(batch_size=1, columns=columns), None)
            rows = batches.rows(first) if first is not None else []
            return path, table.schema_arrow, (rows or [dict.fromkeys(columns)])[0]
    except (pa.ArrowException, OSError, UnicodeDecodeError):  # the names of columns too
        return None


def described(look: Listing, plan: Plan) -> str:
    return img2dataset.described(look, list(plan.files), NAME)


def divide(reading: Reading, look: Listing, paths: list[str], wanted: dict, unit_records: int) -> Plan:
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups, splits, complete = [], set(), False  # groups: for each file, the number of rows of each row group
    for path in paths:
        told = unit_split(path, wanted)
        try:
            with remote.opened(look.root / path, remote.SHORT) as file, pq.ParquetFile(file) as table:
                schema = table.schema_arrow
                if not complete:
                    reading = dataclasses.replace(reading, **_columns(look, path, wanted))
                    complete = True
                    _check_paths(table, reading, path)
                if reading.image_column not in schema.names and _lists_addresses(schema):
                    groups.append(None)
                    continue
                _check_columns(schema, reading, path, paths[0])
                field = split_field(reading)
                if field and field in schema.names:
                    splits |= columnar.splits(table.read(columns=[field]).column(0), reading, told)
                else:
                    splits.add(told or reading.split)
                groups.append([table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)])
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            groups.append([])  # counted as unreadable_shard when it is read
    goal = unit_goal(sum(sum(counts or ()) for counts in groups), unit_records)
    units: list[Unit] = []
    lists = [path for path, counts in zip(paths, groups) if counts is None]
    notes = tuple(f"Left out: {path} is a list of URLs." for path in lists)
    for path, counts in zip(paths, groups):
        if counts is None:
            continue
        size, split = look.files[path], unit_split(path, wanted)
        if not counts:
            units.append(Unit(len(units), path, f"{size}", size, split=split))
        first = row = held = 0
        for group, count in enumerate(counts):
            held += count
            if held >= goal or (group == len(counts) - 1 and held):
                share = size * held // sum(counts)
                units.append(Unit(len(units), path, f"{size}", share, held, first, group + 1, row, split))
                first, row, held = group + 1, row + held, 0
    found = tuple(sorted(s for s in splits if names.is_split(s)))
    notes += img2dataset.notes(look, [path for path in paths if path not in lists])
    return Plan(reading, tuple(units), found, notes)


def _columns(look: Listing, path: str, wanted: dict) -> dict[str, str]:
    _, schema, row = _schema(look, path)
    encoded, paths = columnar.image_columns(schema)
    return columnar.columns(wanted, schema.names, encoded, paths, row, path)


def _lists_addresses(schema) -> bool:
    """Whether a file without the pictures of the others is what they were downloaded from."""
    return not columnar.image_columns(schema)[0] and any(name.lower() == "url" for name in schema.names)


def _check_columns(schema, reading: Reading, path: str, first: str) -> None:
    """A column that some files lack is an error, and not a loss of their records."""
    caption = reading.caption_column.partition(".")[0].removesuffix("[]")
    caption = reading.caption_column if reading.caption_column in schema.names else caption
    for name, role in ((reading.image_column, "image"), (caption, "caption")):
        if name not in schema.names:
            wrong = errors.unknown(f"{role}_column", name, schema.names)
            raise errors.UserError(f"{path} has other columns than {first}: {wrong}")


def _check_paths(table, reading: Reading, path: str) -> None:
    names = columnar.needed(reading, table.schema_arrow.names)
    first = next(table.iter_batches(batch_size=20, columns=names), None)
    columnar.check_paths(batches.rows(first) if first is not None else [], reading, Unit(0, path, "", 0))


def fields(reading: Reading, unit: Unit) -> dict:
    found = _schema(Listing(epath.Path(reading.root), False), unit.path)
    return found[2] if found else {}


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = epath.Path(reading.root) / unit.path
    done, problem = 0, ""
    folders = pictures.folders(reading, unit)
    try:
        with remote.opened(path) as file, pq.ParquetFile(file) as table:
            columns = columnar.needed(reading, table.schema_arrow.names)
            for group in range(unit.start, unit.stop):
                for batch in table.read_row_group(group, columns=columns).to_batches(max_chunksize=_BATCH):
                    rows = batches.rows(batch)
                    found = [columnar.raw(row, unit.row + done + i, reading, unit) for i, row in enumerate(rows)]
                    yield from pictures.filled(found, folders)
                    done += len(rows)
            if not unit.stop:
                problem = "could not be opened when the work was planned"
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        lost = max(1, (unit.records or 0) - done)
        yield lost_records(reading, unit, f"{unit.path}:row {unit.row + done + 1}", problem, lost)
