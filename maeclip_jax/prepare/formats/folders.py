"""Every folder of a source, those behind links too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.formats import names

_OF_THE_DISK = "lost+found"  # in the topmost folder of one; only root may read it


def walk(root: os.PathLike, hidden: Callable[[str], bool] = names.is_hidden) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """(path below `root`, what lies there but folders) of every folder, `root` itself first, as ""; all by name.

    Links are followed, but for one to a folder that it lies in itself, at whatever depth. `hidden`: whether folders of
    a name are passed over. UserError where a folder cannot be read: what lies in it would be missing without a word.
    """
    yield from _walk(str(root), "", hidden, ())


def is_file(entry: os.DirEntry) -> bool:
    """False also for a link that leads nowhere or to itself."""
    return _holds(entry.is_file)


def files(folder: os.PathLike) -> list[os.DirEntry]:
    """The files that lie in a folder, by name."""
    with os.scandir(folder) as entries:
        return sorted(filter(is_file, entries), key=lambda entry: entry.name)


def _walk(path: str, below: str, hidden: Callable, above: tuple) -> Iterator[tuple[str, list[os.DirEntry]]]:
    try:
        found = os.stat(path)
        place = found.st_dev, found.st_ino
        if place in above:
            return
        with os.scandir(path) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror or error}; valid: folders that can all be "
                        "read") from None  # fmt: skip
    folders, files = [], []
    for entry in entries:
        (folders if _holds(entry.is_dir) else files).append(entry)
    yield below, files
    for entry in folders:
        if entry.name != _OF_THE_DISK and not hidden(entry.name):
            yield from _walk(entry.path, f"{below}/{entry.name}" if below else entry.name, hidden, (*above, place))


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:
        return False
