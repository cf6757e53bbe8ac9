"""Pictures that a table names by their paths, local or in a bucket, many at a time."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterator
from pathlib import Path

from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats import names, remote
from maeclip_jax.prepare.formats.raw import LARGEST, Raw, key_prefix
from maeclip_jax.prepare.formats.units import Reading, Unit

TOGETHER = 128  # pictures that are read at a time, as many as gcsfs asks for at once


def folders(reading: Reading, unit: Unit) -> tuple[str, ...]:
    """Where pictures are looked for: beside their table and in `images/` there, or where `image_dir` says.

    Those of `annotations/captions_val2017.json` are also looked for in `val2017/` beside that folder, as COCO has it.
    """
    if reading.image_dir:
        return (reading.image_dir,)
    here = f"{reading.root}/{key_prefix(unit.path)}".rstrip("/")
    found = [here, f"{here}/images"]
    told = names.stem(unit.path).removeprefix("captions_")
    if told != names.stem(unit.path):
        above = here.rpartition("/")[0]
        found += [f"{folder}/{told}" for folder in (here, f"{here}/images", above, f"{above}/images")]
    return tuple(found)


def filled(rows: list[tuple[Raw, str]], folders: tuple[str, ...]) -> Iterator[Raw]:
    """The records with the pictures of these names; a record that has an error or a picture stays as it is."""
    wanted = [name for raw, name in rows if not raw.error and not raw.image]
    found = iter(fetched(wanted, folders))
    for raw, _ in rows:
        if not raw.error and not raw.image:
            data = next(found)
            bad = isinstance(data, BadRecord)
            raw = dataclasses.replace(raw, error=data) if bad else dataclasses.replace(raw, image=data)
        yield raw


def fetched(wanted: list[str], folders: tuple[str, ...]) -> list[bytes | BadRecord]:
    """The bytes of pictures, or what is wrong with them."""
    found: list[bytes | BadRecord | None] = [None] * len(wanted)
    for folder in folders:
        missing = [i for i, data in enumerate(found) if data is None]
        if remote.is_remote(folder):
            data = remote.fetch([remote.join(folder, wanted[i]) for i in missing])
        else:
            data = [_local(folder, wanted[i]) for i in missing]
        for i, one in zip(missing, data):
            found[i] = one
    where = " or ".join(folders)
    return [
        BadRecord("missing_image", f"no file {name!r} in {where}") if data is None else data
        for name, data in zip(wanted, found)
    ]


def _local(folder: str, name: str) -> bytes | BadRecord | None:
    try:
        return local(Path(folder, name))
    except BadRecord as bad:
        return bad
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return None
    except OSError as error:
        return BadRecord("unreadable_image", f"{name}: {error.strerror or error}")


def local(path: Path) -> bytes:
    """The bytes of a plain file. BadRecord for a folder, a pipe or a device, and for a file that is too large."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise BadRecord("missing_image", f"{path.name} is {what}")
    if found.st_size > LARGEST:
        raise BadRecord("unreadable_image", f"{path.name} has {found.st_size:,} bytes; at most {LARGEST:,} are read")
    return path.read_bytes()
