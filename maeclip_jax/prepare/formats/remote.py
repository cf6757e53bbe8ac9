"""Files in buckets, through fsspec: long reads, many small files at a time, listings, uploads.

What a bucket refuses, or does not answer after the repetitions of the client, is a UserError that names the file: it
must not be taken for damage of the data, which is dropped and counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from etils import epath

from maeclip_jax.errors import UserError
from maeclip_jax.errors.storage import is_remote

LONG = 32 << 20  # bytes of a read where all of a file is needed; gcsfs makes 4 requests of it, at the same time
SHORT = 1 << 20  # where a part is


def _system(path):
    from etils.epath import backend

    return backend.fsspec_backend.fs(str(path))


@contextlib.contextmanager
def _said(what: str, path: object, *passed: type[Exception]) -> Iterator[None]:
    """Turns errors of a client into UserErrors, but for those of the kinds `passed`."""
    try:
        yield
    except (*passed, UserError):
        raise
    except Exception as e:  # clients raise what they like
        raise _error(what, path, e) from e


def _error(what: str, path: object, error: BaseException) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"cannot {what} {path}: there is no such bucket or file")
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"cannot {what} {path}: {why}; the same command continues when it can")


class _Reader(io.RawIOBase):
    """A file of a bucket whose reads ask for at least `block` bytes more than they need."""

    def __init__(self, path, block: int):
        self._path = path
        with _said("read", path, FileNotFoundError):
            # Without a kind of cache gcsfs 2026.10 makes a request of every other member of a tar.
            self._file = _system(path).open(str(path), "rb", block_size=block, cache_type="readahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer) -> int:
        with _said("read", self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def opened(path, block: int = LONG) -> BinaryIO:
    """A file, local or in a bucket, for reading. `block`: bytes that a bucket is asked for at a time."""
    if not is_remote(path):
        return open(path, "rb")
    return io.BufferedReader(_Reader(path, block), 1 << 20)


def read(path) -> bytes | None:
    """All of a small file, local or in a bucket; None if it is not there."""
    if is_remote(path):
        return fetch([str(path)])[0]
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def fetch(paths: Sequence[str]) -> list[bytes | None]:
    """All of many files of one bucket, by many requests at a time; None for each that is not there."""
    if not paths:
        return []
    with _said("read", paths[0]):
        found = _system(paths[0]).cat_ranges(list(paths), None, None, on_error="return")
    for path, data in zip(paths, found):
        if isinstance(data, BaseException) and not _absent(data):
            raise _error("read", path, data) from data
    return [None if isinstance(data, BaseException) else bytes(data) for data in found]


def _absent(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or getattr(error, "code", None) in (400, "400")  # no valid name


def join(folder: object, name: str) -> str:
    """The address of the file that a table names, relative to a folder of a bucket or as a whole address."""
    return name if is_remote(name) else f"{folder}/{posixpath.normpath(name)}"


def exists(path) -> bool:
    """Whether the file or folder exists. ImportError where the client of its file system is not installed."""
    with _said("reach", path, ImportError):
        _fresh(path)
        return epath.Path(path).exists() or bool(names(path))  # the name of a folder may look like that of a file


def is_folder(path) -> bool:
    """Whether a folder, local or in a bucket, exists."""
    if not is_remote(path):
        return Path(path).is_dir()
    with _said("reach", path), contextlib.suppress(FileNotFoundError):
        found = _fresh(path).ls(str(path), detail=False)
        return any(
            name.rstrip("/") != str(path).partition("://")[2].rstrip("/") for name in found
        )  # a file lists itself
    return False


def names(folder) -> dict[str, int | None]:
    """What lies directly in a folder of a bucket: name -> bytes, or None for a folder."""
    found = {}
    with _said("list", folder), contextlib.suppress(FileNotFoundError):  # of a bucket too: `upload` names it
        for entry in _fresh(folder).ls(str(folder), detail=True):
            name = posixpath.basename(entry["name"].rstrip("/"))
            found[name] = None if entry["type"] == "directory" else entry["size"]
    return found


def files(folder) -> dict[str, int]:
    """All files in a folder of a bucket, at any depth: path below it -> bytes."""
    with _said("list", folder):
        found = _fresh(folder).find(str(folder), detail=True)
        _fresh(folder)  # gcsfs takes what it found for all that is in the folders above
    base = str(folder).partition("://")[2].rstrip("/") + "/"
    return {
        p.partition("://")[2].removeprefix(base) or p.removeprefix(base): e["size"] for p, e in sorted(found.items())
    }


def _fresh(folder):
    system = _system(folder)
    system.invalidate_cache()
    return system


def upload(path: Path, to) -> None:
    """Copies a local file to a bucket, where it is whole or not there."""
    with _said("write", to):
        system = _system(to)
        system.put_file(str(path), str(to))
        system.invalidate_cache()
        arrived, size = system.info(str(to))["size"], os.path.getsize(path)
    if arrived != size:
        raise UserError(f"cannot write {to}: {arrived} of {size} bytes arrived; the same command continues")


def write(path, text: str) -> None:
    """A small file."""
    with _said("write", path):
        _system(path).pipe_file(str(path), text.encode())


def remove_file(path) -> None:
    with _said("remove", path):
        epath.Path(path).unlink(missing_ok=True)


def remove(folder) -> None:
    """Removes a data set from a bucket; from the first request on it is none."""
    with _said("remove", folder):
        epath.Path(folder, "dataset_info.json").unlink(missing_ok=True)
        epath.Path(folder).rmtree(missing_ok=True)
