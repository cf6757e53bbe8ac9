"""Inspects a source of image-text pairs: its format, its columns, and the units of work that it divides into.

Four formats are read, all but `files` also from gs:// and other remote file systems (`remote`):

- `webdataset`: tar shards with `KEY.jpg|png|webp`, `KEY.txt` and/or `KEY.json` (img2dataset's default output);
- `table`: a jsonl, csv or tsv file with a column of picture paths and one of captions;
- `files`: folders that hold the members of a webdataset as loose files (img2dataset's `--output_format files`);
- `parquet`: files with a column of encoded pictures (img2dataset's `--output_format parquet`, Hugging Face).
"""

from __future__ import annotations

import dataclasses
import os
import re

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare import remote

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".heic", ".heif")
MEMBERS = (*PICTURES, ".txt", ".json")
TABLES = (".jsonl", ".csv", ".tsv")
FORMATS = ("webdataset", "table", "files", "parquet")  # in this order when the format is to be found


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read a source. A column that does not exist is ""; `split` is the split of records that name none."""

    format: str
    root: str
    image_column: str = ""
    caption_column: str = ""
    split_column: str = ""
    delimiter: str = ""
    image_dir: str = ""
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of work.

    `start`/`stop` count bytes of a table, row groups of a parquet file, or keys (sorted) of a folder.
    """

    index: int
    path: str  # relative to the root
    mark: str  # changes when the file or folder does
    size: int  # bytes
    records: int | None = None  # None: not known before it is read
    start: int = 0
    stop: int = 0
    row: int = 0  # number of the first row in its file


@dataclasses.dataclass(frozen=True)
class Plan:
    """A source divided. It depends on the source and the options alone, never on the number of workers: the records
    of the units, in order, are those of the data set, so two plans that agree give the same bytes."""

    reading: Reading
    units: tuple[Unit, ...]
    splits: tuple[str, ...]  # every split that occurs; () if this is unknown before all is read

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

    `split_column`: "" = the usual one, if there is one; None = none. `unit_records`: records in a unit; 0 chooses 1/64
    of the source, between 100 and 10,000. A tar is always one unit. Raises UserError when there is nothing to read.
    """
    from maeclip_jax.prepare import division

    if format not in ("auto", *FORMATS):
        raise errors.unknown("format", format, ("auto", *FORMATS))
    path = located(src)
    if not exists(path):
        raise errors.UserError(f"source {src!r} does not exist; valid: {formats()}")
    if not is_split_name(split):
        raise errors.UserError(f"split {split!r} is not a TFDS split name; valid: letters, digits and _, but not 'all'")
    if image_dir and not located(image_dir).is_dir():
        raise errors.UserError(f"image_dir {image_dir!r} is not a folder; valid: the folder where picture paths start")
    kind, files = _find(path, format)
    root = path if path.is_dir() else path.parent
    image_dir = str(located(image_dir)) if image_dir else ""
    reading = Reading(kind, str(root), image_dir=image_dir, split=split)
    wanted = {"image": image_column, "caption": caption_column, "split": split_column}
    result = division.DIVIDERS[kind](reading, files, wanted, unit_records)
    if not result.units:
        raise errors.UserError(f"source {src!r} holds no record as {kind}; valid: {formats()}")
    return result


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


def is_split_name(name: str) -> bool:
    """Whether TFDS takes `name` for a split ('all' means all splits there, and file names hold it as a word)."""
    return bool(re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)) and name.lower() != "all"


def formats() -> str:
    return (
        "a folder or file of webdataset (*.tar of img2dataset), table (jsonl, csv or tsv with picture paths and "
        "captions), files (KEY.jpg with KEY.txt), parquet (with a column of pictures)"
    )


def key_and_extension(name: str) -> tuple[str, str]:
    """('a/0007', '.jpg') of 'a/0007.JPG'."""
    key, extension = os.path.splitext(name)
    return key, extension.lower()


def is_member(name: str) -> bool:
    return key_and_extension(name)[1] in MEMBERS


def split_of(row: dict | str, reading: Reading) -> str:
    """The split that a row names; rows that name none (or cannot be read) go to the default split."""
    value = row.get(reading.split_column) if reading.split_column and isinstance(row, dict) else None
    return reading.split if value is None or not str(value).strip() else str(value).strip()


def group_of(row: dict | str, reading: Reading) -> tuple[str, str] | None:
    """Consecutive rows with the same group are one record with several captions; None groups with nothing."""
    image = row.get(reading.image_column) if isinstance(row, dict) else None
    return (image.strip(), split_of(row, reading)) if isinstance(image, str) and image.strip() else None


def _find(path: epath.Path, format: str) -> tuple[str, list[epath.Path]]:
    """(format, files or folders of that format in order). The first format with anything to read wins.

    In a bucket a table wins that lies beside no tar: what else is below are its pictures, too many to look through.
    """
    kinds = FORMATS if format == "auto" else (format,)
    if format == "auto" and remote.is_remote(path) and path.suffix.lower() not in (*TABLES, ".tar", ".parquet"):
        suffixes = {os.path.splitext(name)[1].lower() for name in remote.names(path)}
        kinds = ("table",) if suffixes & set(TABLES) and ".tar" not in suffixes else kinds
    for kind in kinds:
        found = _FINDERS[kind](path)
        if found:
            return kind, found
    if remote.is_remote(path) and format in ("auto", "files"):
        raise errors.UserError(
            f"source {str(path)!r} holds nothing that can be read from a bucket; valid: webdataset, table or parquet "
            f"there, or a local copy of loose files: gcloud storage cp -r {path} ."
        )
    valid = formats() if format == "auto" else f"a source of {format}, or --format auto, {', '.join(FORMATS)}"
    what = "is empty" if path.is_dir() and not any(path.iterdir()) else "holds nothing that can be read"
    raise errors.UserError(f"source {str(path)!r} {what}; valid: {valid}")


def _find_tables(path: epath.Path) -> list[epath.Path]:
    if path.suffix.lower() in TABLES and path.is_file():
        return [path]
    if remote.is_remote(path):
        found = [path / name for name, size in sorted(remote.names(path).items()) if size is not None]
    else:
        found = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else []
    found = [p for p in found if p.suffix.lower() in TABLES]
    usual = [p for p in found if p.stem in ("captions", "metadata")]
    if len(found) > 1 and len(usual) != 1:
        names = ", ".join(p.name for p in found)
        raise errors.UserError(f"source {str(path)!r} holds several tables; valid: point --src at one of {names}")
    return usual or found


def _find_folders(path: epath.Path) -> list[epath.Path]:
    """Folders, the path itself or below it, with at least one picture and one text of the same stem."""
    if remote.is_remote(path) or not path.is_dir():
        return []
    found = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        pairs = [key_and_extension(n) for n in names]
        pictures = {key for key, extension in pairs if extension in PICTURES}
        if any(key in pictures for key, extension in pairs if extension in (".txt", ".json")):
            found.append(epath.Path(folder))
    return sorted(found)


def _find_by_extension(path: epath.Path, extension: str) -> list[epath.Path]:
    """The path itself, or all files with this extension in it and up to two levels below (hidden ones left out)."""
    if path.suffix.lower() == extension:
        return [path] if path.is_file() else []
    if remote.is_remote(path):
        found = [p for p in remote.files(path, levels=2) if p.suffix == extension]
    else:
        found = [p for pattern in ("*", "*/*", "*/*/*") for p in path.glob(pattern + extension)]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts))


_FINDERS = {
    "webdataset": lambda path: _find_by_extension(path, ".tar"),
    "table": _find_tables,
    "files": _find_folders,
    "parquet": lambda path: _find_by_extension(path, ".parquet"),
}
