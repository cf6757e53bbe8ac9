"""Records that came before: with the same key in their shard, or the same bytes of picture in any shard.

What is repeated is decided once, when all units are there as they were read, and is written down; so a preparation that
was killed while units were changed decides the same. Bytes are compared by 64 bits of their SHA-256.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maeclip_jax.prepare import suspects, unit_folder
from maeclip_jax.prepare.formats.raw import printable
from maeclip_jax.prepare.formats.units import Unit
from maeclip_jax.prepare.unit_folder import Job

_REPEATED = np.dtype([("unit", "u4"), ("row", "u4"), ("first_unit", "u4"), ("first_row", "u4"), ("key", "?")])
_COMPARED = 1 << 22  # rows at a time; about 0.2 GB
_NAMED = 1 << 17  # at a time


def settle(job: Job, units: tuple[Unit, ...], drop: bool) -> int:
    """Drops repeated keys from later units, and pictures with the same bytes if `drop`; else it names these.

    Returns the number of kept pictures whose bytes came before.
    """
    found = _found(job, units)
    for numbers in _blocks(found):
        mine = found[numbers]
        names, rows, keys = _names(job, units, mine), mine["row"].tolist(), mine["key"].tolist()
        begins = np.flatnonzero(np.diff(mine["unit"].astype(np.int64), prepend=-1)).tolist()
        for begin, end in zip(begins, [*begins[1:], len(mine)]):
            unit, here = units[mine["unit"][begin]], range(begin, end)
            repeated = {rows[i]: "" for i in here if keys[i]}
            same = {rows[i]: names[i] for i in here if not keys[i]}
            leaving = repeated | same if drop else repeated
            if leaving and not job.summary(unit)["settled"]:
                unit_folder.settle(job, unit, leaving)
            if same and not drop:
                _note(job, unit, same)
    return 0 if drop else int((~found["key"]).sum())


def dropped(job: Job, units: tuple[Unit, ...], drop: bool) -> dict[int, np.ndarray]:
    """Unit -> the rows that `settle` has dropped from it."""
    found = _found(job, units)
    found = found if drop else found[found["key"]]
    first = np.flatnonzero(np.diff(found["unit"], prepend=np.uint32(2**32 - 1)))
    return {int(part["unit"][0]): part["row"] for part in np.split(found, first[1:]) if len(part)}


def _found(job: Job, units: tuple[Unit, ...]) -> np.ndarray:
    """`_REPEATED` in the order of units and rows."""
    path = Path(job.folder).with_name("repeated.npy")
    if not path.exists():
        starts = np.cumsum([0, *(len(job.rows(unit)) for unit in units)])
        keys = _repeated(job, units, starts, "hash", np.empty((0, 2), np.int64))
        same = _repeated(job, units, starts, "digest", keys)
        both = np.concatenate([keys, same])
        found = np.empty(len(both), _REPEATED)
        for column, (unit, row) in enumerate((("unit", "row"), ("first_unit", "first_row"))):
            place = np.searchsorted(starts, both[:, column], "right") - 1
            found[unit], found[row] = place, both[:, column] - starts[place]
        found["key"] = np.arange(len(both)) < len(keys)
        partial = path.with_suffix(".tmp.npy")
        np.save(partial, found[np.argsort(both[:, 0], kind="stable")])
        os.rename(partial, path)
    return np.load(path)


def _repeated(job: Job, units: tuple[Unit, ...], starts: np.ndarray, field: str, without: np.ndarray) -> np.ndarray:
    """[n,2]: the places of rows whose `field` came before, and of the first row that has it.

    A place counts the rows of all units. `without`: rows, in the same form, that do not count. Values are compared in
    parts by their first bits, so that memory does not grow with the rows.
    """
    bits = max(0, math.ceil(math.log2(max(1, starts[-1]) / _COMPARED)))
    skipped, found = np.sort(without[:, 0]), []
    for part in range(1 << bits):
        values, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for unit, start in zip(units, starts):
            column = np.ascontiguousarray(job.rows(unit)[field])
            mine = column >> np.uint64(64 - bits) == part if bits else np.ones(len(column), bool)
            first, last = np.searchsorted(skipped, (start, start + len(column)))
            mine[skipped[first:last] - start] = False
            here = np.flatnonzero(mine)
            values.append(column[here])
            places.append(start + here)
        values, places = np.concatenate(values), np.concatenate(places)
        order = np.argsort(values, kind="stable")
        values, places = values[order], places[order]
        again = np.flatnonzero(values[1:] == values[:-1]) + 1
        begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        firsts = begins[np.searchsorted(begins, again, "right") - 1] if len(again) else again
        found.append(np.stack([places[again], places[firsts]], axis=1))
    return np.concatenate(found)


def _blocks(found: np.ndarray) -> Iterator[slice]:
    """Parts of whole units, of about `_NAMED` rows or one unit."""
    ends = np.append(np.flatnonzero(np.diff(found["unit"])) + 1, len(found))
    begin = 0
    for number, end in enumerate(ends):
        if end > begin and (end - begin >= _NAMED or number == len(ends) - 1):
            yield slice(begin, int(end))
            begin = int(end)


def _names(job: Job, units: tuple[Unit, ...], found: np.ndarray) -> list[str]:
    """What the first of each is called; "" where the key is what is repeated."""
    names = [""] * len(found)
    order = np.flatnonzero(~found["key"])
    order = order[np.argsort(found["first_unit"][order], kind="stable")]
    firsts = zip(order.tolist(), found["first_unit"][order].tolist(), found["first_row"][order].tolist())
    unit, keys, where = -1, [], ""
    for i, number, row in firsts:
        if number != unit:
            unit, keys, where = number, job.keys(units[number]), printable(units[number].path)
        names[i] = f"{keys[row]} in {where}"
    return names


def _note(job: Job, unit: Unit, same: dict[int, str]) -> None:
    path = job.unit_folder(unit) / f"{suspects.SAME}.jsonl"
    if path.exists():
        return
    keys = job.keys(unit)
    partial = path.with_suffix(f".tmp{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        for row, first in sorted(same.items()):
            entry = {"key": keys[row], "source": printable(unit.path), "kind": suspects.SAME}
            file.write(json.dumps(entry | {"detail": f"the same bytes as {first}"}, ensure_ascii=False) + "\n")
    os.rename(partial, path)


def write_suspects(job: Job, units: tuple[Unit, ...], path: Path) -> None:
    """Names all suspects, in the order of units."""
    with open(path, "w", encoding="utf-8") as file:
        for unit in units:
            for entry in unit_folder.lines(job.unit_folder(unit) / suspects.FILE):
                del entry["row"]
                file.write(json.dumps({k: v for k, v in entry.items() if v}, ensure_ascii=False) + "\n")
            same = job.unit_folder(unit) / f"{suspects.SAME}.jsonl"
            if same.exists():
                file.write(same.read_text(encoding="utf-8"))
