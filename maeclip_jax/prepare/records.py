"""Reads the records of a source: a key, encoded picture bytes and captions, or the reason why they cannot be read.

`read(reading, unit)` yields every record of a unit in the order of the source, whatever its state: a record that
cannot be read comes out with `error` set, so that `read` yields as many outputs as the source has records.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare import crawl, division, remote, tables

KINDS = {
    "missing_image": "the record names no picture, or one that is not there",
    "unreadable_image": "the file system would not give the picture's bytes",
    "no_caption": "there is no caption at all, or it is not text",
    "empty_caption": "all captions are empty or white space",
    "garbled_caption": "a caption is not valid UTF-8",
    "bad_split": "the split column does not hold a valid TFDS split name",
    "duplicate_key": "an earlier record has the same key",
    "unreadable_row": "the row or json member cannot be parsed",
    "unreadable_shard": "the shard ends early or is damaged; its remaining records are lost",
}


_TOGETHER = 128  # pictures of a table that are read at a time, as many as gcsfs asks for at once


@dataclasses.dataclass(frozen=True)
class Raw:
    """`image`: encoded bytes. `rows`: table rows that were joined. `lost`: records this entry stands for if bad."""

    key: str
    source: str
    split: str
    image: bytes = b""
    texts: tuple[str, ...] = ()
    rows: int = 1
    lost: int = 1
    error: BadRecord | None = None


def read(reading: crawl.Reading, unit: crawl.Unit) -> Iterator[Raw]:
    """All records of a unit, in order."""
    return _READERS[reading.format](reading, unit)


def _tar(reading: crawl.Reading, unit: crawl.Unit) -> Iterator[Raw]:
    path = epath.Path(reading.root) / unit.path
    records, problem, where = 0, "", 0
    try:
        with remote.opened(path) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            for key, members in itertools.groupby((m for m in tar if m.isfile()), lambda m: _tar_key(m.name)[0]):
                found = {}
                for member in members:
                    where = member.offset
                    extension = _tar_key(member.name)[1]
                    if extension in crawl.MEMBERS:
                        found[extension] = tar.extractfile(member).read()
                if found:
                    records += 1
                    yield _joined(_prefix(unit.path) + key, found, reading, unit)
            where = tar.offset
            problem = _after_the_end(tar)
    except (tarfile.TarError, OSError, EOFError) as error:
        problem = str(error) or type(error).__name__
    expected = division.upstream(path).get("successes", 0)
    if problem or expected > records:
        problem = problem or f"holds {records} records where its _stats.json counts {expected}"
        yield _lost(reading, unit, f"{unit.path}@{where}", problem, max(1, expected - records))


def _tar_key(name: str) -> tuple[str, str]:
    """('a/0007', '.jpg') of 'a/0007.JPG': the key ends at the first dot of the base name, as webdataset has it."""
    folder, base = os.path.split(name)
    stem, dot, extension = base.partition(".")
    return os.path.join(folder, stem), (dot + extension).lower()


def _after_the_end(tar: tarfile.TarFile) -> str:
    """The damage after the last member, if any: tarfile stops silently at a damaged header and at a truncation."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        return "ends without an end-of-archive mark (cut short, or still being written)"
    while rest:
        if rest.strip(b"\0"):
            return "damaged header, or data behind the end-of-archive mark"
        rest = tar.fileobj.read(1 << 20)
    return ""


def _prefix(path: str) -> str:
    """Keys of img2dataset are unique in one output folder only; the folder makes them unique below the root."""
    folder = os.path.dirname(path)
    return f"{folder}/" if folder else ""


def _lost(reading: crawl.Reading, unit: crawl.Unit, key: str, problem: str, lost: int) -> Raw:
    return Raw(key, unit.path, reading.split, rows=0, lost=lost, error=BadRecord("unreadable_shard", problem))


def _folder(reading: crawl.Reading, unit: crawl.Unit) -> Iterator[Raw]:
    folder = Path(reading.root, unit.path)
    members: dict[str, list[str]] = {}
    for name in sorted(e.name for e in os.scandir(folder) if e.is_file() and crawl.is_member(e.name)):
        members.setdefault(crawl.key_and_extension(name)[0], []).append(name)
    prefix = "" if unit.path == "." else _prefix(unit.path + "/")
    for key in sorted(members)[unit.start : unit.stop]:
        found, error = {}, None
        for name in members[key]:
            try:
                found[crawl.key_and_extension(name)[1]] = Path(folder, name).read_bytes()
            except OSError as problem:
                error = BadRecord("unreadable_image", problem.strerror or str(problem))
        raw = _joined(printable(prefix + key), found, reading, unit)
        yield dataclasses.replace(raw, error=error or raw.error)


def _joined(key: str, members: dict[str, bytes], reading: crawl.Reading, unit: crawl.Unit) -> Raw:
    """A record from the members (extension -> bytes) that share a key. Captions: the json's only where txt has none."""
    raw = Raw(printable(key), unit.path, reading.split)
    try:
        row = {}
        if ".json" in members and (".txt" not in members or reading.caption_column or reading.split_column):
            try:
                row = json.loads(members[".json"])
            except ValueError as error:
                raise BadRecord("unreadable_row", f"json member: {error}") from None
            if not isinstance(row, dict):
                raise BadRecord("unreadable_row", f"json member: a {type(row).__name__}, not an object")
        raw = dataclasses.replace(raw, split=crawl.split_of(row, reading))
        image = next((members[e] for e in crawl.PICTURES if e in members), None)
        if image is None:
            raise BadRecord("missing_image", f"only {', '.join(sorted(members))}")
        raw = dataclasses.replace(raw, image=image)
        columns = (reading.caption_column,) if reading.caption_column else tables.CAPTION_COLUMNS
        caption = next((row[c] for c in columns if row.get(c) is not None), None)
        if caption is None and ".txt" in members:
            caption = members[".txt"].decode("utf-8", errors="surrogateescape")
        return dataclasses.replace(raw, texts=captions(caption))
    except BadRecord as error:
        return dataclasses.replace(raw, error=error)


def captions(value: object) -> tuple[str, ...]:
    """The unchanged captions from one text or a list of texts. BadRecord(no_caption) for anything else."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise BadRecord("no_caption", "none given" if value is None or value == [] else f"{value!r:.60} is not text")


def printable(key: str) -> str:
    """`key` as valid UTF-8: file names need not be."""
    return key.encode("utf-8", errors="backslashreplace").decode()


def _rows(reading: crawl.Reading, unit: crawl.Unit) -> Iterator[Raw]:
    """Records of a table: consecutive rows that name the same picture (and split) are one record."""
    path = epath.Path(reading.root) / unit.path
    found = tables.rows(path, reading.delimiter, unit.start, unit.stop)
    # A row without a picture is a record of its own: its number keeps it from joining with the next.
    groups = itertools.groupby(found, lambda item: crawl.group_of(item[3], reading) or item[0])
    waiting = []
    for _, group in groups:
        number, _, _, row = next(group)
        rows = [row, *(item[3] for item in group)]
        waiting.append(_row(f"{unit.path}:row {unit.row + number + 1}", rows, reading, unit))
        if len(waiting) == _TOGETHER:
            yield from _with_pictures(waiting, reading)
            waiting = []
    yield from _with_pictures(waiting, reading)


def _row(name: str, rows: list, reading: crawl.Reading, unit: crawl.Unit) -> tuple[Raw, str]:
    """The record of these rows without its picture, and the name of that."""
    raw = Raw(name, unit.path, crawl.split_of(rows[0], reading), rows=len(rows))
    try:
        if isinstance(rows[0], str):
            raise BadRecord("unreadable_row", rows[0])
        image = rows[0].get(reading.image_column)
        if not isinstance(image, str) or not image.strip():
            raise BadRecord("missing_image", f"{reading.image_column} is {image!r}")
        raw = dataclasses.replace(raw, key=printable(image.strip()))
        texts = []
        for row in rows:
            value = row.get(reading.caption_column)
            if value is not None or len(rows) == 1:
                texts += captions(value)
        return dataclasses.replace(raw, texts=captions(texts)), image.strip()
    except BadRecord as error:
        return dataclasses.replace(raw, error=error), ""


def _with_pictures(rows: list[tuple[Raw, str]], reading: crawl.Reading) -> Iterator[Raw]:
    found = iter(_pictures([name for raw, name in rows if not raw.error], reading))
    for raw, _ in rows:
        if not raw.error:
            data = next(found)
            bad = isinstance(data, BadRecord)
            raw = dataclasses.replace(raw, error=data) if bad else dataclasses.replace(raw, image=data)
        yield raw


def _pictures(names: list[str], reading: crawl.Reading) -> list[bytes | BadRecord]:
    """The bytes of pictures, which are looked for beside the table and in its folder `images/`, or what is wrong."""
    folders = (reading.image_dir,) if reading.image_dir else (reading.root, f"{reading.root}/images")
    found: list[bytes | BadRecord | None] = [None] * len(names)
    for folder in folders:
        missing = [i for i, data in enumerate(found) if data is None]
        if remote.is_remote(folder):
            data = remote.fetch([remote.join(folder, names[i]) for i in missing])
        else:
            data = [_local(folder, names[i]) for i in missing]
        for i, one in zip(missing, data):
            found[i] = one
    where = " or ".join(folders)
    return [
        BadRecord("missing_image", f"no file {name!r} in {where}") if data is None else data
        for name, data in zip(names, found)
    ]


def _local(folder: str, name: str) -> bytes | BadRecord | None:
    try:
        return Path(folder, name).read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return None
    except IsADirectoryError:
        return BadRecord("missing_image", f"{name} is a folder")
    except OSError as error:
        return BadRecord("unreadable_image", f"{name}: {error.strerror or error}")


def _parquet(reading: crawl.Reading, unit: crawl.Unit) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = epath.Path(reading.root) / unit.path
    read_rows, problem = 0, ""
    try:
        with remote.opened(path) as file, pq.ParquetFile(file) as table:
            wanted = {reading.image_column, reading.caption_column, reading.split_column, "key"}
            columns = [c for c in table.schema_arrow.names if c in wanted]
            for group in range(unit.start, unit.stop):
                for batch in table.read_row_group(group, columns=columns).to_batches(max_chunksize=100):
                    for row in batch.to_pylist():
                        yield _parquet_row(row, unit.row + read_rows, reading, unit)
                        read_rows += 1
            if not unit.stop:
                problem = "could not be opened when the work was planned"
    except (pa.ArrowException, OSError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        lost = max(1, (unit.records or 0) - read_rows)
        yield _lost(reading, unit, f"{unit.path}:row {unit.row + read_rows + 1}", problem, lost)


def _parquet_row(row: dict, number: int, reading: crawl.Reading, unit: crawl.Unit) -> Raw:
    key = row.get("key") if "key" not in (reading.image_column, reading.caption_column) else None
    key = f"{_prefix(unit.path)}{key}" if key is not None else f"{unit.path}:row {number + 1}"
    raw = Raw(printable(key), unit.path, crawl.split_of(row, reading))
    image = row.get(reading.image_column)
    image = image.get("bytes") if isinstance(image, dict) else image
    try:
        if not isinstance(image, bytes):
            raise BadRecord("missing_image", f"{reading.image_column} is {image!r:.60}")
        return dataclasses.replace(raw, image=image, texts=captions(row.get(reading.caption_column)))
    except BadRecord as error:
        return dataclasses.replace(raw, error=error)


_READERS = {"webdataset": _tar, "table": _rows, "files": _folder, "parquet": _parquet}
