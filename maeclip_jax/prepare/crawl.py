"""Inspects a source of image-text pairs: its format, its columns, and the units of work that it divides into.

The formats are in `formats`, one a file. All but `files` are also read from gs:// and other remote file systems
(`remote`).
"""

from __future__ import annotations

import dataclasses

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare import listing, names, remote


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read a source. A column that does not exist is ""; `split` is the split of records that name none."""

    format: str
    root: str
    image_column: str = ""
    caption_column: str = ""
    split_column: str = ""
    image_dir: str = ""
    split: str = "train"
    named_splits: bool = True  # whether names of files, folders and members tell splits


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of work.

    `start`/`stop` count bytes of a table, row groups of a parquet file, batches of an arrow file, or keys (sorted) of a
    folder.
    """

    index: int
    path: str  # relative to the root
    mark: str  # changes when the file or folder does
    size: int  # bytes
    records: int | None = None  # None: not known before it is read
    start: int = 0
    stop: int = 0
    row: int = 0  # number of the first row in its file
    split: str = ""  # told by the names of file and folders
    side: str = ""  # img2dataset's table of all downloads, where this unit names those that failed
    syntax: str = ""  # of a table: see `tables.rows`


@dataclasses.dataclass(frozen=True)
class Plan:
    """A source divided. It depends on the source and the options alone, never on the number of workers: the records
    of the units, in order, are those of the data set, so two plans that agree give the same bytes."""

    reading: Reading
    units: tuple[Unit, ...]
    splits: tuple[str, ...]  # every split that occurs; () if this is unknown before all is read
    notes: tuple[str, ...] = ()  # what the source is, and what was found odd about it, a sentence each

    @property
    def files(self) -> dict[str, str]:
        """Path -> mark: what must not change between a run and its continuation."""
        return {u.path: u.mark for u in self.units}


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
    from maeclip_jax.prepare import formats

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


def goal(records: int, unit_records: int) -> int:
    """Records in a unit: of 64 units each, but neither so few that overhead counts nor so many that a loss hurts."""
    return unit_records or min(10_000, max(100, -(-records // 64)))


def unit_split(path: str, wanted: dict) -> str:
    """The split that names tell for a unit, unless splits are to be ignored."""
    return "" if wanted["split"] is None else names.split(path)


def splits_of(reading: Reading, units: list[Unit]) -> tuple[str, ...]:
    """Every split of units whose records name none; () where a field of the records may name others."""
    return () if reading.split_column else tuple(sorted({u.split or reading.split for u in units}))


def located(path: str) -> epath.Path:
    """`path` absolute, with ~ filled in; remote ones (gs://...) are absolute as they are."""
    if "://" not in path:
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


def split_of(row: dict | str, reading: Reading, told: str = "") -> str:
    """The split that a row names; rows that name none (or cannot be read) go to the split of their unit (`told`)."""
    value = row.get(reading.split_column) if reading.split_column and isinstance(row, dict) else None
    return (told or reading.split) if value is None or not str(value).strip() else str(value).strip()


def group_of(row: dict | str, reading: Reading) -> tuple[str, str] | None:
    """Consecutive rows with the same group are one record with several captions; None groups with nothing."""
    image = row.get(reading.image_column) if isinstance(row, dict) else None
    return (image.strip(), split_of(row, reading)) if isinstance(image, str) and image.strip() else None
