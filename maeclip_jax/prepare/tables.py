"""Rows of jsonl, csv and tsv tables with their byte positions, and what the columns of a row mean."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare import remote

IMAGE_COLUMNS = ("image", "image_path", "image_name", "filepath", "file_path", "file_name", "filename", "file",
                 "path", "img", "jpg", "png", "webp", "image_bytes", "bytes")  # fmt: skip
CAPTION_COLUMNS = ("captions", "caption", "texts", "text", "txt", "sentences", "sentence", "title", "comment",
                   "description")  # fmt: skip
USUAL = {"image": IMAGE_COLUMNS, "caption": CAPTION_COLUMNS, "split": ("split",)}

csv.field_size_limit(1 << 24)


def columns(wanted: Mapping[str, str], names: list[str], where: str) -> dict[str, str]:
    """`image_column`, `caption_column`, `split_column`: those wanted, else the first usual name that occurs.

    Only a split column may be missing (""), or be ignored (None); for the others UserError lists the columns of
    `where`.
    """
    found = {}
    for role, candidates in USUAL.items():
        name = wanted[role]
        if name and name not in names:
            raise errors.unknown(f"{role}_column", name, names)
        if name is None:  # to be ignored, though there may be one
            found[f"{role}_column"] = ""
            continue
        name = name or next((c for c in candidates if c in names), "")
        if not name and role != "split":
            choices = ", ".join(map(str, names)) or "none: it has no columns"
            raise errors.UserError(f"{where} has no usual {role} column; valid: --{role}_column with one of {choices}")
        found[f"{role}_column"] = name
    return found


def delimiter(path: epath.Path) -> str:
    """The delimiter that splits the header into most columns (open_clip's csv files use tabs, Flickr30k's bars)."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with _text(path) as file:
        header = file.readline()
    return max(",\t;|", key=header.count)


def column_names(path: epath.Path, delimiter: str) -> list[str]:
    """Column names: the header of a csv, the keys of the first readable line of a jsonl."""
    if delimiter:
        with _text(path) as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
        return [n.strip() for n in names]
    for _, _, _, row in rows(path, delimiter):
        if isinstance(row, dict):
            return list(row)
    wanted = "one object a line, with a picture path and captions"
    raise errors.UserError(f"no line of {str(path)!r} is a JSON object; valid: {wanted}")


def rows(path: epath.Path, delimiter: str, start: int = 0, stop: int | None = None) -> Iterator[tuple]:
    """(row number from `start`, first byte, last byte + 1, row) with row a dict, or a str that describes the error."""
    with remote.opened(path, remote.SHORT if start or stop else remote.LONG) as file:
        if delimiter:
            header = [n.strip() for n in next(csv.reader(_lines(file), delimiter=delimiter), [])]
        if start:
            file.seek(start)
        found = _csv_rows(file, header, delimiter) if delimiter else _json_rows(file)
        begin = file.tell()
        number = 0
        for row in found:
            end = file.tell()
            if row is not None:
                yield number, begin, end, row
                number += 1
            begin = end
            if stop is not None and end >= stop:
                return


def _text(path) -> io.TextIOWrapper:
    return io.TextIOWrapper(remote.opened(path, remote.SHORT), encoding="utf-8-sig", errors="replace", newline="")


def _lines(file) -> Iterator[str]:
    """Text lines of a binary file, so that `file.tell()` stands behind the last line handed out."""
    while line := file.readline():
        yield line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")


def _csv_rows(file, header: list[str], delimiter: str) -> Iterator[dict | str | None]:
    reader = csv.reader(_lines(file), delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"not csv: {error}"
            continue
        yield dict(zip(header, row)) if row else None


def _json_rows(file) -> Iterator[dict | str | None]:
    for line in _lines(file):
        if not line.strip():
            yield None
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield f"not JSON: {error}"
            continue
        yield row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"
