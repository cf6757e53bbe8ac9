"""A source divided: how it is read, its units of work, and the splits and groups of their rows."""

from __future__ import annotations

import dataclasses

from maeclip_jax.prepare.formats import names

SPLIT = "split"  # the field that tells the split of a record


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read a source. A column that does not exist is ""; `split` is the split of records that name none.

    Where the first records have no split column, any later one may still name its split in the field `SPLIT`.
    """

    format: str
    root: str
    image_column: str = ""
    caption_column: str = ""
    split_column: str = ""
    image_dir: str = ""
    split: str = "train"
    named_splits: bool = True  # False: all splits are ignored, those that names or a field `SPLIT` tell


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
    syntax: str = ""  # of a table: see `table_rows.rows`


@dataclasses.dataclass(frozen=True)
class Plan:
    """A source divided. It depends on the source and the options alone, never on the number of workers: the records
    of the units, in order, are those of the data set, so two plans that agree give the same bytes."""

    reading: Reading
    units: tuple[Unit, ...]
    splits: tuple[str, ...]  # those that were found; () if a field that not all was read of tells them
    notes: tuple[str, ...] = ()  # what the source is, and what was found odd about it, a sentence each

    @property
    def files(self) -> dict[str, str]:
        """Path -> mark: what must not change between a run and its continuation."""
        return {u.path: u.mark for u in self.units}


def unit_goal(records: int, unit_records: int) -> int:
    """Records in a unit: of 64 units each, but neither so few that overhead counts nor so many that a loss hurts."""
    return unit_records or min(10_000, max(100, -(-records // 64)))


def unit_split(path: str, wanted: dict) -> str:
    """The split that names tell for a unit, unless splits are to be ignored."""
    return "" if wanted["split"] is None else names.split(path)


def splits_of(reading: Reading, units: list[Unit]) -> tuple[str, ...]:
    """Every split that the units tell; () where a field of the records names others."""
    return () if reading.split_column else tuple(sorted({u.split or reading.split for u in units}))


def split_field(reading: Reading) -> str:
    """The field in which a record may name its split; "" where splits are ignored."""
    return reading.split_column or (SPLIT if reading.named_splits else "")


def split_of(row: dict | str, reading: Reading, told: str = "") -> str:
    """The split that a row names; rows that name none (or cannot be read) go to the split of their unit (`told`)."""
    field = split_field(reading)
    value = row.get(field) if field and isinstance(row, dict) else None
    if not reading.split_column and not isinstance(value, str):
        value = None
    return (told or reading.split) if value is None or not str(value).strip() else str(value).strip()


def group_of(row: dict | str, reading: Reading) -> tuple[str, str] | None:
    """Consecutive rows with the same group are one record with several captions; None groups with nothing."""
    image = row.get(reading.image_column) if isinstance(row, dict) else None
    return (image.strip(), split_of(row, reading)) if isinstance(image, str) and image.strip() else None
