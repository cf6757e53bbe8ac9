"""Tables of picture paths and captions: jsonl, csv, tsv, json arrays (LLaVA), COCO's captions, metadata of folders."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from array import array
from collections.abc import Iterator

from etils import epath

from maeclip_jax import errors
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats import captions, img2dataset, json_arrays, names, pictures, remote, table_rows
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import Raw, printable
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit, group_of, split_of, unit_goal, unit_split

NAME = "table"
SAID = "jsonl, csv, tsv or a json array with picture paths and captions; COCO's captions"

_SUFFIXES = (".jsonl", ".csv", ".tsv")
_USUAL = ("captions", "metadata")
_ADDRESS = re.compile(r"(https?|ftp)://", re.IGNORECASE)


def find(look: Listing, wanted: dict, forced: bool) -> list[str]:
    """Tables in the source itself; if there are none, `metadata` and `captions` tables in the folders below it."""
    found = [path for path in look.with_suffix(*_SUFFIXES) if "/" not in path or names.stem(path) in _USUAL]
    here = [path for path in found if "/" not in path]
    candidates = here or found
    if not candidates:
        jsons = [p for p in look.with_suffix(".json") if _may_be_table(p) and not img2dataset.is_side(look, p)]
        told = [path for path in jsons if names.stem(path).startswith("captions")]  # COCO has boxes and poses beside
        candidates = [path for path in told or jsons if _is_json_table(look, path)]
    good, reasons = [], []
    for path in candidates:
        reason = _reason(look.root / path, wanted)
        if reason:
            reasons.append(reason)
        else:
            good.append(path)
    if not good:
        several = len(candidates) > 1 and not any("list of URLs" in r for r in reasons)
        look.refusals += [_several(look, candidates)] if several else reasons
        return []
    look.refusals += [reason for reason in reasons if "list of URLs" in reason]
    usual = [path for path in good if names.stem(path) in _USUAL]
    splits = [names.split(path) for path in good]
    if len(good) == 1 or (all(splits) and len(set(splits)) == len(good)) or not here:
        return good
    if len(usual) == 1:
        return usual
    raise errors.UserError(_several(look, good))


def _several(look: Listing, paths: list[str]) -> str:
    source = str(look.root)
    return f"source {source!r} holds several tables; valid: point --src at one of {', '.join(paths)}"


def _may_be_table(path: str) -> bool:
    """Whether a json may be one by its place: in the source itself, or captions in COCO's `annotations/`."""
    folder, _, base = path.rpartition("/")
    return not folder or (folder == "annotations" and base.startswith("captions"))


def _is_json_table(look: Listing, path: str) -> bool:
    try:
        json_arrays.syntax(look.root / path)
    except errors.UserError:
        return False
    return True


def _reason(path: epath.Path, wanted: dict) -> str:
    """Why a table cannot be read, with what to do; "" if it can."""
    try:
        syntax = table_rows.syntax(path)
        row = table_rows.first_row(path, syntax)
        cells = [*map(str, row), *(v for v in row.values() if isinstance(v, str))]
        kind = {"": "jsonl", "\t": "tsv"}.get(syntax, "csv")
        if syntax not in json_arrays.SYNTAXES and syntax and any(_ADDRESS.match(name) for name in map(str, row)):
            return _headless(path, row, kind)
        columns = {}
        if any(_ADDRESS.match(cell) for cell in cells) and not wanted["image"]:
            columns = {n: v for n, v in row.items() if isinstance(v, str) and _ADDRESS.match(v)}
            if not _paths(row, columns):
                return _addresses(path, next(iter(columns)), captions.usual(row) or "caption", kind)
        found = table_rows.columns(wanted, row, path.name)
        value = row.get(found["image_column"])
        if isinstance(value, str) and _ADDRESS.match(value):
            return _addresses(path, found["image_column"], found["caption_column"], kind)
    except errors.UserError as error:
        return str(error)
    return ""


def _paths(row: dict, addresses: dict) -> bool:
    """Whether a usual column of a row with addresses holds a path all the same."""
    small = {str(name).lower(): name for name in row if name not in addresses}
    return any(isinstance(row[small[c]], str) and row[small[c]] for c in table_rows.IMAGE_COLUMNS if c in small)


def addresses_said(name: str, path: object, url: str, caption: str, kind: str) -> str:
    """What is said of a list of URLs."""
    command = img2dataset.DOWNLOAD.format(list=path, format=kind, url=url, caption=caption)
    what = f"{name} is a list of URLs: its column {url!r} holds web addresses and no pictures"
    return f"{what}; valid: the output of: {command}"


def _addresses(path: epath.Path, url: str, caption: str, kind: str) -> str:
    return addresses_said(path.name, path, url, caption, kind)


def _headless(path: epath.Path, row: dict, kind: str) -> str:
    """Of tsv files as CC3M and CC12M have them: their first line is a record."""
    heads = ["url" if _ADDRESS.match(name) else "caption" for name in list(row)[:2]]
    mark = "\\t" if kind == "tsv" else ","
    command = img2dataset.DOWNLOAD.format(list=f"urls.{kind}", format=kind, url="url", caption="caption")
    return (
        f"{path.name} is a list of URLs without a header; valid: the output of: "
        f"sed '1i {mark.join(heads)}' {path} > urls.{kind} && {command}"
    )


def described(look: Listing, plan: Plan) -> str:
    del look
    return f"table: {', '.join(list(plan.files)[:4])}"


def divide(reading: Reading, look: Listing, paths: list[str], wanted: dict, unit_records: int) -> Plan:
    """Units of whole groups of rows; consecutive rows that name the same picture are one record (Flickr8k's csv)."""
    found, splits = [], set()
    for path in paths:
        full = look.root / path
        syntax = table_rows.syntax(full)
        columns = table_rows.columns(wanted, table_rows.first_row(full, syntax), path)
        if not found:
            reading = dataclasses.replace(reading, **columns)
        elif columns != {name: getattr(reading, name) for name in columns}:
            raise errors.UserError(f"{path} has other columns than {paths[0]}; valid: the same, or each as --src")
        found.append(_scan(full, path, syntax, reading, unit_split(path, wanted), splits))
    goal = unit_goal(sum(len(starts) for starts, *_ in found), unit_records)
    units: list[Unit] = []
    for path, (starts, rows, stop, mark, syntax, split) in zip(paths, found):
        for first in range(0, len(starts), goal):
            last = min(first + goal, len(starts))
            begin, end = starts[first], starts[last] if last < len(starts) else stop
            place = {"start": begin, "stop": end, "row": rows[first]}
            size = end - begin
            units.append(Unit(len(units), path, mark, size, last - first, **place, split=split, syntax=syntax))
    return Plan(reading, tuple(units), tuple(sorted(s for s in splits if names.is_split(s))))


def _scan(full: epath.Path, path: str, syntax: str, reading: Reading, split: str, splits: set[str]) -> tuple:
    """(first byte of each group, its first row, last byte, mark, syntax, split), and adds the splits to `splits`."""
    del path
    with remote.opened(full) as file:
        mark = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    starts, rows, previous, stop = array("q"), array("q"), None, 0
    for number, start, stop, row in table_rows.rows(full, syntax):  # noqa: B007 (the last one ends the last unit)
        group = group_of(row, reading)
        if group is None or group != previous:
            starts.append(start)
            rows.append(number)
        previous = group
        splits.add(split_of(row, reading, split))
    return starts, rows, stop, mark, syntax, split


def fields(reading: Reading, unit: Unit) -> dict:
    return table_rows.first_row(epath.Path(reading.root) / unit.path, unit.syntax)


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    """Records of a table: consecutive rows that name the same picture (and split) are one record."""
    path = epath.Path(reading.root) / unit.path
    found = table_rows.rows(path, unit.syntax, unit.start, unit.stop)
    # A row without a picture is a record of its own: its number keeps it from joining with the next.
    groups = itertools.groupby(found, lambda item: group_of(item[3], reading) or item[0])
    folders = pictures.folders(reading, unit)
    waiting: list[tuple[Raw, str]] = []
    for _, group in groups:
        rows = [(f"{unit.path}:row {unit.row + number + 1}", row) for number, _, _, row in group]
        whole = [item for item in rows if not _is_short(item[1], reading, unit)] or rows[:1]
        short = [item for item in rows if item not in whole] if len(whole) < len(rows) else []
        waiting.append(_row(whole[0][0], [row for _, row in whole], reading, unit))
        waiting += [(_short(name, row, reading, unit), "") for name, row in short]
        if len(waiting) >= pictures.TOGETHER:
            yield from pictures.filled(waiting, folders)
            waiting = []
    yield from pictures.filled(waiting, folders)


def _is_short(row: dict | str, reading: Reading, unit: Unit) -> bool:
    """Whether a row of cells ends before its caption."""
    cells = table_rows.has_cells(unit.syntax) and isinstance(row, dict)
    return cells and not captions.holds(row, reading.caption_column)


def _short(name: str, row: dict, reading: Reading, unit: Unit) -> Raw:
    """What stands for a row without a caption among others of its picture."""
    said = f"not csv: {len(row)} cells, and none for {reading.caption_column!r}; valid: as many as the header has"
    return Raw(name, unit.path, split_of(row, reading, unit.split), error=BadRecord("unreadable_row", said))


def _row(name: str, rows: list, reading: Reading, unit: Unit) -> tuple[Raw, str]:
    """The record of these rows without its picture, and the name of that."""
    raw = Raw(name, unit.path, split_of(rows[0], reading, unit.split), rows=len(rows))
    try:
        if isinstance(rows[0], str):
            raise BadRecord("unreadable_row", rows[0])
        image = rows[0].get(reading.image_column)
        if not isinstance(image, str) or not image.strip():
            raise BadRecord("missing_image", f"{reading.image_column} is {image!r}")
        raw = dataclasses.replace(raw, key=printable(image.strip()))
        texts: list[str | None] = []
        for row in rows:
            value = captions.pick(row, reading.caption_column)
            value = captions.of_cell(value) if table_rows.has_cells(unit.syntax) else value
            texts += (None,) if value is None or value == [] else captions.texts(value)
        return dataclasses.replace(raw, texts=captions.texts(texts)), image.strip()
    except BadRecord as error:
        return dataclasses.replace(raw, error=error), ""
