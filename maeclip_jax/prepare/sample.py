"""The records of units that the contact sheet shows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.prepare import image_text, sheet
from maeclip_jax.prepare.formats.units import Unit
from maeclip_jax.prepare.unit_folder import Job


def taken(job: Job, units: tuple[Unit, ...], left_out: Mapping[int, np.ndarray]) -> dict[str, list]:
    """{"kept": [...], "dropped": [...]} for `sheet.page`, taken once, before the units give their records away.

    `left_out`: unit -> the rows that are not in it any more.
    """
    path = Path(job.folder).with_name("shown.json")
    if not path.exists():
        dropped = sheet.Dropped()
        for unit in units:
            dropped.update(sheet.Dropped(json.loads((job.unit_folder(unit) / "shown.json").read_text())))
        found = {"kept": _kept(job, units, left_out), "dropped": dropped.chosen()}
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(found))
        os.rename(partial, path)
    return json.loads(path.read_text())


def _kept(job: Job, units: tuple[Unit, ...], left_out: Mapping[int, np.ndarray]) -> list[dict]:
    from array_record.python import array_record_module

    best = np.empty((0, 3), np.uint64)  # hash, unit, row
    for number, unit in enumerate(units):
        hashes = np.ascontiguousarray(job.rows(unit)["hash"])
        rows = np.delete(np.arange(len(hashes)), left_out.get(number, ()))
        rows = rows[np.argsort(hashes[rows], kind="stable")[: sheet.MOST]]
        here = np.stack([hashes[rows], np.full(len(rows), number, np.uint64), rows.astype(np.uint64)], axis=1)
        best = np.concatenate([best, here])
        best = best[np.argsort(best[:, 0], kind="stable")[: sheet.MOST]]
    found = []
    for _, number, row in best.tolist():
        unit, splits = units[number], job.rows(units[number])["split"]
        name = job.summary(unit)["splits"][splits[row]]
        before = np.delete(np.arange(row), [r for r in left_out.get(number, ()) if r < row])
        place = int((splits[before] == splits[row]).sum())
        path = str(job.unit_folder(unit) / f"{name}.array_record")
        reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
        found.append(sheet.kept(image_text.parse(reader.read([place])[0]), name))
        reader.close()
    return found
