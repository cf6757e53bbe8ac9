"""One look at a source: the files in it with their sizes, and where loose pictures lie beside their texts."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable

from etils import epath

from maeclip_jax.prepare.formats import folders, names, remote


@dataclasses.dataclass
class Listing:
    """`files`: path below `root` -> bytes, without loose pictures and their texts, and without hidden ones.

    `single`: the source is one file. `loose`: folder ("." for `root`) -> how many loose pictures lie in it; `pairs`:
    those of them in which a picture and a text have one stem. `notes` and `refusals` are for formats to say what they
    left out, and why.
    """

    root: epath.Path
    single: bool
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    pairs: list[str] = dataclasses.field(default_factory=list)
    loose: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: list[str] = dataclasses.field(default_factory=list)
    refusals: list[str] = dataclasses.field(default_factory=list)

    @property
    def pictures(self) -> int:
        """How many loose pictures there are."""
        return self.loose.total()

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Sorted paths of the files with one of these suffixes."""
        return sorted(path for path in self.files if names.suffix(path) in suffixes)


def look(path: epath.Path) -> Listing:
    """What lies at `path`, a folder or a file, at any depth.

    In a bucket nothing below is looked at where a table lies beside no tar: what is below are its pictures, too many to
    list.
    """
    if remote.is_remote(path):
        return _look_at_bucket(path)
    if not path.is_dir():
        found = Listing(path.parent, True, {path.name: path.stat().length})
        beside = [e for e in folders.files(path.parent) if names.stem(e.name).startswith(names.stem(path.name))]
        return _with_side_files(found, {e.name: e.stat().st_size for e in beside})
    found = Listing(path, False)
    odd = []
    for folder, entries in folders.walk(path):
        _add(found, folder, filter(folders.is_file, entries))
        odd += [_join(folder, e.name) for e in entries if not folders.is_file(e) and not names.is_hidden(e.name)]
    if odd:
        some = ", ".join(odd[:4]) + (", ..." if len(odd) > 4 else "")
        found.notes.append(f"Left out: {some}: links to what is not there, pipes or devices.")
    return found


def _with_side_files(found: Listing, sizes: dict[str, int]) -> Listing:
    """Adds the counts and the table that img2dataset wrote beside the one file."""
    (name,) = found.files
    stem = names.stem(name)
    for side in (f"{stem}_stats.json", f"{stem}.parquet"):
        if side in sizes and side != name:
            found.files[side] = sizes[side]
    return found


def _add(found: Listing, folder: str, entries: Iterable[os.DirEntry]) -> None:
    pictures, texts = set(), []
    for entry in entries:
        if names.is_hidden(entry.name):
            continue
        key, extension = names.key_and_extension(entry.name)
        if extension in names.PICTURES:
            found.loose[folder or "."] += 1
            pictures.add(key)
        elif extension in names.TEXTS:
            texts.append((key, entry))
        else:
            found.files[_join(folder, entry.name)] = entry.stat().st_size
    paired = False
    for key, entry in texts:
        if key in pictures:
            paired = True
        elif not pictures or entry.name.endswith(".json"):
            found.files[_join(folder, entry.name)] = entry.stat().st_size
    if paired:
        found.pairs.append(folder or ".")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _tables_alone(here: list[str]) -> bool:
    suffixes = {names.suffix(name) for name in here}
    return bool(suffixes & {".jsonl", ".csv", ".tsv"}) and not suffixes & set(names.TARS)


def _look_at_bucket(path: epath.Path) -> Listing:
    here = {name: size for name, size in remote.names(path).items() if size is not None}
    if list(here) == [path.name]:  # a bucket lists a file as what lies in it
        near = {name: size for name, size in remote.names(path.parent).items() if size is not None}
        if path.name in near:
            return _with_side_files(Listing(path.parent, True, {path.name: near[path.name]}), near)
    found = Listing(path, False)
    sizes = here if _tables_alone(list(here)) else remote.files(path)
    for name, size in sizes.items():
        if names.is_hidden(name):
            continue
        if names.key_and_extension(name)[1] in names.PICTURES:
            found.loose[name.rpartition("/")[0] or "."] += 1
        else:
            found.files[name] = size
    return found
