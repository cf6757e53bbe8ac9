"""Files inside a folder, a tar or a zip, read by their path inside, without unpacking."""

from __future__ import annotations

import functools
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.formats import folders

# What the libraries raise for bytes that do not decompress, which is not all under one name.
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)


class Archive:
    """`paths`: every file in `path` (a folder, .tar, .tar.gz, .tgz or .zip), relative, with "/", in stored order.

    Raises UserError for anything else and for a truncated archive. Only one thread may read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            if self.path.is_dir():
                self._open = None
                self._members = dict(_files(self.path))
            elif zipfile.is_zipfile(self.path):
                self._open = zipfile.ZipFile(self.path)
                self._members = {m.filename: m for m in self._open.infolist() if not m.is_dir()}
            else:
                self._open = tarfile.open(self.path)  # noqa: SIM115 (lives as long as this object)
                self._members = {m.name.removeprefix("./"): m for m in self._open if m.isfile()}
        except _DAMAGE as error:
            raise UserError(f"{self.path} is not a folder, tar or zip that can be read whole ({error})") from None
        self._place = {path: n for n, path in enumerate(self._members)}

    @property
    def paths(self) -> list[str]:
        return list(self._members)

    def __contains__(self, path: str) -> bool:
        return path in self._members

    def read(self, path: str) -> bytes:
        """The bytes of a file; KeyError if it is not in `paths`, UserError if the archive is damaged there."""
        member = self._members[path]
        try:
            if self._open is None:
                return Path(member).read_bytes()
            if isinstance(self._open, zipfile.ZipFile):
                return self._open.read(member)
            return self._open.extractfile(member).read()
        except _DAMAGE as error:
            raise UserError(f"{path} in {self.path} cannot be read ({error}); download it again") from None

    @functools.cached_property
    def places(self) -> dict[str, list[str]]:
        """File name without folders -> the paths of all files of that name, in stored order."""
        found: dict[str, list[str]] = {}
        for path in self._members:
            found.setdefault(os.path.basename(path), []).append(path)
        return found

    @functools.cached_property
    def named(self) -> dict[str, str]:
        """File name without folders -> the first path."""
        return {name: paths[0] for name, paths in self.places.items()}

    def pictures(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of the files with these names, wherever they lie, in stored order (a tar.gz reads forwards).

        Raises UserError, before the first one, if any is not there.
        """
        names = list(names)
        missing = [n for n in names if n not in self.named]
        if missing:
            raise UserError(f"{len(missing)} of {len(names)} pictures are not in {self.path}, the first: {missing[0]}")
        for name in sorted(names, key=lambda n: self._place[self.named[n]]):
            yield name, self.read(self.named[name])


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """(relative path, path) of every file below a folder that is not hidden, sorted."""
    for below, entries in folders.walk(root, hidden=_is_hidden):
        for entry in entries:
            if not _is_hidden(entry.name):
                yield f"{below}/{entry.name}" if below else entry.name, entry.path


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
