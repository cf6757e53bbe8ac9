"""Rows of jsonl, csv and tsv tables with their byte positions, and what the columns of a row mean.

Quotes of csv and tsv. A quoted cell may hold delimiters and lines, with quotes in it doubled. But captions also begin
with a quote that is only text, and then the cell would last until the next quote, rows further down. So a row that is
not well formed (no end of the line or delimiter behind the closing quote; no closing quote in 1000 lines) is its first
line alone. Quotes are text there: always in a tsv; elsewhere, if the cell does not close in its line. The same goes for
a well-formed row if each of its lines would be a row by itself: of a tsv, by as many cells as the header has;
elsewhere, if one of them names a picture besides. A row with more cells than the header says so, unless they are empty.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare.formats import captions, json_arrays, remote
from maeclip_jax.prepare.formats.names import PICTURES

IMAGE_COLUMNS = ("image", "image_path", "image_name", "filepath", "file_path", "file_name", "filename", "file",
                 "path", "img", "jpg", "png", "webp", "image_bytes", "bytes")  # fmt: skip
_MOST_LINES = 1000  # of a row; beyond, a quote was not meant to open a cell
csv.field_size_limit(1 << 24)


def columns(wanted: Mapping[str, str | None], row: Mapping, where: str) -> dict[str, str]:
    """`image_column`, `caption_column`, `split_column`: those wanted, else the first usual name that occurs in `row`.

    A wanted caption may be a path (`captions.pick`). Only a split column may be missing (""), or be ignored (None); for
    the others UserError lists the columns of `where`.
    """
    names = list(row)
    small: dict[str, str] = {}
    for name in names:
        small.setdefault(str(name).lower(), name)
    usual = {
        "image": next((small[c] for c in IMAGE_COLUMNS if c in small), ""),
        "caption": captions.usual(names),
        "split": small.get("split", ""),
    }
    if wanted["image"] and wanted["image"] not in names:
        raise errors.unknown("image_column", wanted["image"], names)
    if wanted["split"] and wanted["split"] not in names:
        raise errors.unknown("split_column", wanted["split"], names)
    if wanted["caption"]:
        captions.check(wanted["caption"], row, where)
    found = {}
    for role in usual:
        name = "" if wanted[role] is None else wanted[role] or usual[role]
        if not name and role != "split":
            shown = captions.described(row) if role == "caption" else ", ".join(map(str, names))
            choices = shown or "none: it has no columns"
            raise errors.UserError(f"{where} has no usual {role} column; valid: --{role}_column with one of {choices}")
        found[f"{role}_column"] = name
    return found


def syntax(path: epath.Path) -> str:
    """How a table is written, as `rows` wants it: a delimiter, "" for jsonl, "[" for a json array, "coco"."""
    low = path.suffix.lower()
    if low == ".jsonl":
        return ""
    if low == ".json":
        return json_arrays.syntax(path)
    return delimiter(path)


def delimiter(path: epath.Path) -> str:
    """The delimiter that splits the header into most columns (open_clip's csv files use tabs, Flickr30k's bars)."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with _text(path) as file:
        header = file.readline()
    return max(",\t;|", key=header.count)


def has_cells(syntax: str) -> bool:
    """Whether rows of a syntax are cells of text, as those of csv and tsv are."""
    return bool(syntax) and syntax not in json_arrays.SYNTAXES


def first_row(path: epath.Path, delimiter: str) -> dict:
    """The first readable row; of a csv without rows, its header with empty values."""
    if has_cells(delimiter):
        with _text(path) as file:
            reader = csv.reader(file, delimiter=delimiter)
            try:
                names = [n.strip() for n in next(reader, [])]
                values = next((row for row in reader if row), [])
            except csv.Error as error:
                raise errors.UserError(
                    f"{path.name} does not parse as csv ({error}); valid: lines that end in \\n"
                ) from None
        return {name: values[i] if i < len(values) else "" for i, name in enumerate(names)}
    for _, _, _, row in rows(path, delimiter):
        if isinstance(row, dict):
            return row
    wanted = "one object a line, with a picture path and captions"
    raise errors.UserError(f"no line of {str(path)!r} is a JSON object; valid: {wanted}")


def rows(path: epath.Path, delimiter: str, start: int = 0, stop: int | None = None) -> Iterator[tuple]:
    """(row number from `start`, first byte, last byte + 1, row) with row a dict, or a str that describes the error."""
    if delimiter in json_arrays.SYNTAXES:
        yield from json_arrays.rows(path, delimiter, start, stop)
        return
    with remote.opened(path, remote.SHORT if start or stop else remote.LONG) as file:
        if delimiter:
            header = _header(file, delimiter, path)
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


def _header(file, delimiter: str, path: epath.Path) -> list[str]:
    try:
        return [n.strip() for n in next(csv.reader(_lines(file), delimiter=delimiter), [])]
    except csv.Error as error:
        raise errors.UserError(f"{path.name} has no header of csv ({error}); valid: lines that end in \\n") from None


def _text(path) -> io.TextIOWrapper:
    return io.TextIOWrapper(remote.opened(path, remote.SHORT), encoding="utf-8-sig", errors="replace", newline="")


def _lines(file) -> Iterator[str]:
    """Text lines of a binary file, so that `file.tell()` stands behind the last line handed out."""
    while line := file.readline():
        yield line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")


def _csv_rows(file, header: list[str], delimiter: str) -> Iterator[dict | str | None]:
    for line in _lines(file):
        row = _quoted(line, file, header, delimiter) if '"' in line else _plain(line, delimiter)
        if isinstance(row, list) and any(cell.strip() for cell in row[len(header) :]):
            row = f"not csv: {len(row)} cells where the header has {len(header)}; valid: quotes around {delimiter!r}"
        yield dict(zip(header, row)) if row and isinstance(row, list) else row or None


def _plain(line: str, delimiter: str) -> list[str] | str:
    try:
        return next(csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_NONE))
    except csv.Error as error:
        return f"not csv: {error}"


def _quoted(line: str, file, header: list[str], delimiter: str) -> list[str] | str:
    """The cells of the row that begins with `line`; `file` stands behind it, and is left behind the row."""
    lines, end = [line], file.tell()
    try:
        row = next(csv.reader(_and_more(lines, file), delimiter=delimiter, strict=True))
        if len(lines) == 1 or not _are_rows(lines, header, delimiter):
            return row
    except csv.Error:
        pass
    file.seek(end)
    plain, reader = _plain(line, delimiter), csv.reader([line, ""], delimiter=delimiter)
    try:
        row = next(reader)
    except csv.Error:
        return plain
    closed = reader.line_num == 1
    return plain if not closed or (delimiter == "\t" and len(plain) == len(header)) else row


def _and_more(lines: list[str], file) -> Iterator[str]:
    """The line in `lines`, then those of `file`, which are added to it."""
    yield lines[0]
    for line in itertools.islice(_lines(file), _MOST_LINES - 1):
        lines.append(line)
        yield line


def _are_rows(lines: list[str], header: list[str], delimiter: str) -> bool:
    """Whether the lines of one quoted row would be a row each."""
    rows = [line.split(delimiter) for line in lines if line.strip()]
    return all(
        len(row) >= len(header)
        and (delimiter == "\t" or any(cell.strip(' "\r\n').lower().endswith(PICTURES) for cell in row))
        for row in rows
    )


def _json_rows(file) -> Iterator[dict | str | None]:
    for line in _lines(file):
        if not line.strip():
            yield None
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"not JSON: {error}"
            continue
        yield row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"
