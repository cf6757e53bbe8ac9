"""A record as it comes from its source: a key, encoded picture bytes and captions, or why they cannot be read."""

from __future__ import annotations

import dataclasses

from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats.units import Reading, Unit

LARGEST = 1 << 28  # bytes of a picture that is read
FAILED = "failed_download"
KINDS = {
    "missing_image": "the record names no picture, or one that is not there",
    "unreadable_image": "the file system would not give the picture's bytes",
    "several_images": "several pictures share a key, and nothing says which of them the caption describes",
    "no_caption": "there is no caption at all, or it is not text",
    "empty_caption": "all captions are empty or white space",
    "garbled_caption": "a caption is not valid UTF-8",
    "bad_split": "the split column does not hold a valid TFDS split name",
    "duplicate_key": "an earlier record of the shard has the same key",
    "unreadable_row": "the row or json member cannot be parsed",
    "unreadable_shard": "the shard ends early or is damaged; its remaining records are lost",
    "unsafe_member": "a link, a device, a name that leads out of the archive, or a member that is too large",
    FAILED: "the tool that downloaded the source could not get or store the picture; not counted as bad",
}


@dataclasses.dataclass(frozen=True)
class Raw:
    """`image`: encoded bytes. `rows`: table rows that were joined. `lost`: records this entry stands for if bad.

    `orientation`: 1 to 8 where the source tells how the picture was stored, in EXIF's numbers; 0 where it does not.
    `extras`: further pictures and texts of the sample, which are left out. `url` and `status`: of the download.
    """

    key: str
    source: str
    split: str
    image: bytes = b""
    texts: tuple[str, ...] = ()
    rows: int = 1
    lost: int = 1
    orientation: int = 0
    extras: int = 0
    url: str = ""
    status: str = ""
    error: BadRecord | None = None


def lost_records(reading: Reading, unit: Unit, key: str, problem: str, count: int) -> Raw:
    """What stands for the `count` records of a shard that cannot be read."""
    error = BadRecord("unreadable_shard", problem)
    return Raw(key, unit.path, unit.split or reading.split, rows=0, lost=count, error=error)


def printable(key: str) -> str:
    """`key` as valid UTF-8: file names need not be."""
    return key.encode("utf-8", errors="backslashreplace").decode()


def key_prefix(path: str) -> str:
    """Keys of img2dataset are unique in one output folder only; the folder makes them unique below the root."""
    folder = path.rpartition("/")[0]
    return f"{folder}/" if folder else ""
