"""CC3M's and CC12M's own lists of URLs, beside the files that were downloaded of them.

The lists have no header: a caption and a web address a line, in either order. Files have the CRC-32 of their address as
a name, alone or behind the number of the line, as the usual scripts of these sets write them. Other names do not tell
which address they are of, and are not read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import zlib
from collections.abc import Iterator

from etils import epath

from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats import captions, names, pictures, remote
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import FAILED, Raw, printable
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit, splits_of, unit_goal, unit_split

NAME = "url_list"
SAID = "CC3M's or CC12M's tsv beside the downloads, whose names are CRC-32 of the addresses"

_DOWNLOAD = re.compile(r"(?:\d+_)?\d{1,10}$")
_ADDRESS = re.compile(rb"https?://", re.IGNORECASE)
_LOOKED_AT = 1000  # lines
_CHANGED = 16  # letters of a mark


def find(look: Listing, wanted: dict, forced: bool) -> list[str]:
    del wanted, forced
    downloads = {os.path.basename(path).rpartition("_")[2] for path in look.files if _is_download(path)}
    if not downloads:
        return []
    found = []
    for path in look.with_suffix(".tsv"):
        with remote.opened(look.root / path, remote.SHORT) as file:
            heads = [_parsed(line) for line, _ in zip(file, range(_LOOKED_AT))]
        if heads and heads[0] and any(row and _crc(row[1]) in downloads for row in heads):
            found.append(path)
    look.refusals[:] = [said for said in look.refusals if not said.startswith(tuple(found))] if found else look.refusals
    return found


def described(look: Listing, plan: Plan) -> str:
    count = sum(map(_is_download, look.files))
    return f"list of URLs with {count:,} downloads beside it: {', '.join(list(plan.files)[:4])}"


def divide(reading: Reading, look: Listing, paths: list[str], wanted: dict, unit_records: int) -> Plan:
    size = sum(size for path, size in look.files.items() if _is_download(path))
    scanned = []
    for path in paths:
        sums, starts, stop = hashlib.sha256(f"{sorted(look.files)} {size}".encode()), [], 0
        with remote.opened(look.root / path) as file:
            for line in file:
                sums.update(line)
                starts.append(stop)
                stop += len(line)
        scanned.append((path, sums.hexdigest()[:_CHANGED], starts, stop))
    total = sum(len(starts) for _, _, starts, _ in scanned)
    goal = unit_goal(total, unit_records)
    units: list[Unit] = []
    for path, mark, starts, stop in scanned:
        for first in range(0, len(starts), goal):
            last = min(first + goal, len(starts))
            end = starts[last] if last < len(starts) else stop
            share, split = size * (last - first) // max(1, total), unit_split(path, wanted)
            place = {"start": starts[first], "stop": end, "row": first, "split": split}
            units.append(Unit(len(units), path, mark, share, last - first, **place))
    return Plan(reading, tuple(units), splits_of(reading, units))


def fields(reading: Reading, unit: Unit) -> dict:
    with remote.opened(epath.Path(reading.root) / unit.path, remote.SHORT) as file:
        row = _parsed(file.readline())
    return dict(zip(("caption", "url"), row)) if row else {}


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    root = epath.Path(reading.root)
    folders = (reading.root, *(str(p) for p in sorted(root.iterdir()) if p.is_dir()))
    folders = (reading.image_dir,) if reading.image_dir else folders
    with remote.opened(root / unit.path) as file:
        file.seek(unit.start)
        waiting: list[tuple[int, tuple[str, str, int] | None]] = []
        number = unit.row
        while file.tell() < unit.stop:
            waiting.append((number, _parsed(file.readline())))
            number += 1
            if len(waiting) == pictures.TOGETHER:
                yield from _filled(waiting, folders, reading, unit)
                waiting = []
        yield from _filled(waiting, folders, reading, unit)


def _filled(rows: list, folders: tuple[str, ...], reading: Reading, unit: Unit) -> Iterator[Raw]:
    sums = {number: _crc(row[1]) for number, row in rows if row}
    data = dict(zip(sums, pictures.fetched(list(sums.values()), folders)))
    lacking = [number for number in sums if isinstance(data[number], BadRecord)]
    again = pictures.fetched([f"{number}_{sums[number]}" for number in lacking], folders)
    data |= {number: found for number, found in zip(lacking, again) if not isinstance(found, BadRecord)}
    for number, row in rows:
        raw = Raw(f"{printable(unit.path)}:row {number + 1}", unit.path, unit.split or reading.split)
        if row is None:
            yield dataclasses.replace(
                raw, error=BadRecord("unreadable_row", "no caption and address, with a tab between")
            )
            continue
        caption, address, extras = row
        raw = dataclasses.replace(raw, texts=captions.texts(caption), url=printable(address), extras=extras)
        found = data[number]
        if isinstance(found, bytes):
            yield dataclasses.replace(raw, image=found)
        else:
            error = BadRecord(FAILED, f"no file {sums[number]} among the downloads")
            yield dataclasses.replace(raw, status="not_downloaded", error=error)


def _is_download(path: str) -> bool:
    return bool(_DOWNLOAD.match(os.path.basename(path))) and not names.is_hidden(path)


def _parsed(line: bytes) -> tuple[str, str, int] | None:
    """(caption, address, how many cells behind them hold something); None if a line is not of that form."""
    first, *others = line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf").split(b"\t")
    cells, further = [first, *others[:1]], others[1:]
    if len(cells) < 2 or sum(bool(_ADDRESS.match(cell)) for cell in cells) != 1:
        return None
    pair = cells if _ADDRESS.match(cells[1]) else cells[::-1]
    caption, address = (cell.decode("utf-8", errors="surrogateescape") for cell in pair)
    return caption, address, sum(bool(cell.strip()) for cell in further)


def _crc(address: str) -> str:
    return str(zlib.crc32(address.encode("utf-8", errors="surrogateescape")))
