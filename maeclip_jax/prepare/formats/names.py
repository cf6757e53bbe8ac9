"""What the names of files say: which make a sample, which lie beside the data, of which split they are."""

from __future__ import annotations

import os
import re

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".heic", ".heif",
            ".jxl", ".jfif", ".jpe", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".ico")  # fmt: skip
TEXTS = (".txt", ".json")
MEMBERS = (*PICTURES, *TEXTS)
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst")

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
           "test": "test", "testing": "test"}  # fmt: skip
_SPLIT = re.compile(rf"(?:^|[-_.])({'|'.join(_SPLITS)})(?:\d{{4}})?(?=$|[-_.])", re.IGNORECASE)


def key_and_extension(name: str) -> tuple[str, str]:
    """('a/0007', '.jpg') of 'a/0007.JPG'."""
    key, extension = os.path.splitext(name)
    return key, extension.lower()


def is_member(name: str) -> bool:
    return key_and_extension(name)[1] in MEMBERS and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a path has a part that tools keep for themselves: `._0.jpg` of a Mac, `.cache`, `_tmp`, `__MACOSX`."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return any(part.startswith((".", "__MACOSX")) or part == "_tmp" for part in parts)


def suffix(name: str) -> str:
    """The extension in small letters, both of `.tar.gz` and `.tar.zst`."""
    low = name.lower()
    return next((s for s in (".tar.gz", ".tar.zst") if low.endswith(s)), os.path.splitext(low)[1])


def stem(name: str) -> str:
    """The base name without its `suffix`."""
    base = os.path.basename(name)
    return base[: len(base) - len(suffix(base))]


def split(path: str) -> str:
    """The split that the folders and the name of a file tell: train, val or test; "" if they tell none.

    `validation`, `valid` and `dev` are val. A part tells it as a whole word: `train-00000.parquet`, `val2017`. The part
    nearest to the file wins.
    """
    folder, base = os.path.split(path)
    for part in (stem(base), *reversed(folder.split("/"))):
        found = {_SPLITS[word.lower()] for word in _SPLIT.findall(part)}
        if len(found) == 1:
            return found.pop()
    return ""


def is_split(name: str) -> bool:
    """Whether TFDS takes `name` for a split ('all' means all splits there, and file names hold it as a word)."""
    return bool(re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)) and name.lower() != "all"
