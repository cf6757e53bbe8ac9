"""Folders with the members of a webdataset as loose files, as img2dataset's `--output_format files` writes them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats import folders, img2dataset, members, names, pictures, remote
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import Raw, printable
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit, splits_of, unit_goal, unit_split

NAME = "files"
SAID = "KEY.jpg with KEY.txt or KEY.json"


def find(look: Listing, wanted: dict, forced: bool) -> list[str]:
    del wanted, forced
    return [] if remote.is_remote(look.root) else sorted(look.pairs)


def described(look: Listing, plan: Plan) -> str:
    return img2dataset.described(look, list(plan.files), NAME)


def divide(reading: Reading, look: Listing, paths: list[str], wanted: dict, unit_records: int) -> Plan:
    root = Path(reading.root)
    reading = members.reading(reading, wanted, _first_samples(root / paths[0]), paths[0])
    listings = [[(e.name, e.stat().st_size) for e in folders.files(root / p)] for p in paths]
    keys = [sorted({names.key_and_extension(n)[0] for n, _ in found if names.is_member(n)}) for found in listings]
    goal = unit_goal(sum(map(len, keys)), unit_records)
    units = []
    for path, listing, found in zip(paths, listings, keys):
        side = img2dataset.beside(look, path)[0]
        lines = [f"{name} {size}" for name, size in sorted(listing)] + ([f"{side} {look.files[side]}"] if side else [])
        mark = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]
        size = sum(size for _, size in listing) // len(found)
        split = unit_split(path, wanted)
        for start in range(0, len(found), goal):
            stop = min(start + goal, len(found))
            here = side if stop == len(found) else ""  # the failed downloads are named once
            count = stop - start
            units.append(Unit(len(units), path, mark, size * count, count, start, stop, split=split, side=here))
    for path, side in _failed_alone(look, paths):
        mark, split = f"{look.files[side]}", unit_split(path, wanted)
        units.append(Unit(len(units), path, mark, 0, 0, split=split, side=side))
    return Plan(reading, tuple(units), splits_of(reading, units), img2dataset.notes(look, paths))


def _failed_alone(look: Listing, paths: list[str]) -> list[tuple[str, str]]:
    """(folder, table) of img2dataset's shards none of whose downloads gave a picture."""
    stems = [path.removesuffix("_stats.json") for path in look.files if path.endswith("_stats.json")]
    return [(s, f"{s}.parquet") for s in sorted(stems) if s not in paths and f"{s}.parquet" in look.files]


def _first_samples(folder: Path) -> list[dict[str, bytes]]:
    found = [e.name for e in folders.files(folder) if names.is_member(e.name)][:12]
    samples: dict[str, dict[str, bytes]] = {}
    for name in found:
        key, extension = names.key_and_extension(name)
        if extension not in names.PICTURES:
            samples.setdefault(key, {})[extension] = Path(folder, name).read_bytes()
    return list(samples.values())[:4]


def fields(reading: Reading, unit: Unit) -> dict:
    return members.fields(_first_samples(Path(reading.root, unit.path)) if unit.stop else [])


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    if unit.stop:
        yield from _pairs(reading, unit)
    yield from img2dataset.failures(reading, unit)


def _pairs(reading: Reading, unit: Unit) -> Iterator[Raw]:
    folder = Path(reading.root, unit.path)
    found: dict[str, list[str]] = {}
    for name in filter(names.is_member, (e.name for e in folders.files(folder))):
        found.setdefault(names.key_and_extension(name)[0], []).append(name)
    prefix = "" if unit.path == "." else f"{unit.path}/"
    lacking = 0
    for key in sorted(found)[unit.start : unit.stop]:
        parts, further, error = {}, 0, None
        for name in found[key]:
            extension = names.key_and_extension(name)[1]
            if extension in parts:  # a.JPG and a.jpg
                further += 1
                continue
            try:
                parts[extension] = pictures.local(Path(folder, name))
            except BadRecord as problem:
                error = problem
            except OSError as problem:
                error = BadRecord("unreadable_image", problem.strerror or str(problem))
        raw = members.joined(printable(prefix + key), parts, [], reading, unit)
        extras = further + max(0, sum(extension in names.PICTURES for extension in parts) - 1)
        lacking += raw.error is not None and raw.error.detail == members.absent(reading)
        yield dataclasses.replace(raw, extras=extras, error=error or raw.error)
    members.check_shard(lacking, unit.stop - unit.start, reading, unit)
