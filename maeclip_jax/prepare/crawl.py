"""Inspects a source of image-text pairs: its format, its columns, and the units of work that it divides into.

The formats are in `formats`, one a file. All but `files` are also read from gs:// and other remote file systems
(`formats.remote`).
"""

from __future__ import annotations

import dataclasses

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare import formats
from maeclip_jax.prepare.formats import listing, names, remote
from maeclip_jax.prepare.formats.units import Plan, Reading


def plan(
    src: str,
    *,
    format: str = "auto",
    image_column: str = "",
    caption_column: str = "",
    split_column: str | None = "",
    image_dir: str = "",
    split: str = "train",
    unit_records: int = 0,
) -> Plan:
    """Looks at `src` (a folder or one file) and divides it into units.

    `split_column`: "" = the usual one, if there is one; None = none, and names of files and folders tell none.
    `unit_records`: records in a unit; 0 chooses 1/64 of the source, between 100 and 10,000. A tar is always one unit.
    Raises UserError when there is nothing to read.
    """
    if format not in ("auto", *formats.FORMATS):
        raise errors.unknown("format", format, ("auto", *formats.FORMATS))
    path = located(src)
    if not exists(path):
        raise errors.UserError(f"source {src!r} does not exist; valid: {formats.valid()}")
    if not names.is_split(split):
        raise errors.UserError(f"split {split!r} is not a TFDS split name; valid: letters, digits and _, but not 'all'")
    if image_dir and not remote.is_folder(located(image_dir)):
        raise errors.UserError(f"image_dir {image_dir!r} is not a folder; valid: the folder where picture paths start")
    wanted = {"image": image_column, "caption": caption_column, "split": split_column}
    look = listing.look(path)
    kind, found = formats.find(look, format, wanted, path)
    directory = str(located(image_dir)) if image_dir else ""
    named = split_column is not None
    reading = Reading(kind, str(look.root), image_dir=directory, split=split, named_splits=named)
    result = formats.FORMATS[kind].divide(reading, look, found, wanted, unit_records)
    if not result.units:
        raise errors.UserError(f"source {src!r} holds no record as {kind}; valid: {formats.valid()}")
    said = (f"{formats.FORMATS[kind].described(look, result)}.", *result.notes, *look.notes)
    return dataclasses.replace(result, notes=(*said, *_split_notes(result, path)))


def _split_notes(plan: Plan, path: epath.Path) -> list[str]:
    """What is said about the splits where names tell them, and where a name was not heeded."""
    told = sorted(
        {u.path.rpartition("/")[0] or u.path for u in plan.units if u.split and u.split != plan.reading.split}
    )
    notes = []
    if plan.reading.split_column:
        notes.append(f"The field {plan.reading.split_column!r} tells the split of a record; --ignore_split ignores it.")
    if told:
        some = ", ".join(told[:4]) + (", ..." if len(told) > 4 else "")
        notes.append(
            f"Names tell the splits {', '.join(plan.splits) or 'of files'} ({some}); --ignore_split ignores them."
        )
    own = names.split(path.name)
    if own and own != plan.reading.split and not any(u.split for u in plan.units) and not plan.reading.split_column:
        notes.append(f"{path.name} goes to split {plan.reading.split}; --split={own} puts it there.")
    return notes


def located(path: str) -> epath.Path:
    """`path` absolute, with ~ filled in; remote ones (gs://...) are absolute as they are."""
    if not remote.is_remote(path):
        return epath.Path(path).expanduser().resolve()
    try:
        return epath.Path(path)
    except KeyError as error:
        raise errors.UserError(f"no file system {error} for {path!r}; valid: gs://, s3://, az:// or a folder") from None


def exists(path: epath.Path) -> bool:
    """Whether the file or folder exists. UserError if a missing package or a bucket prevents the check."""
    try:
        return remote.exists(path) if remote.is_remote(path) else path.exists()
    except ImportError as error:  # etils.epath reaches gs:// through fsspec
        choice = "a local or mounted folder, or pip install gcsfs (s3fs, adlfs) first"
        raise errors.UserError(f"{str(path)!r} cannot be reached ({error}); valid: {choice}") from None
