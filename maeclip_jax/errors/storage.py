"""Storage that fails: full, over a quota, read-only or closed to the writer; said in one line that names the path."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from maeclip_jax.errors import UserError

# What ails a file system and not the program that writes: trying again alone does not cure it, a person does.
ERRNOS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE,
    errno.EMFILE, errno.ENFILE,
)  # fmt: skip
ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of these, what more room cures


class StorageError(UserError):
    """Something could not be written. `room`: whether more room is what it takes."""

    def __init__(self, text: str, room: bool = False):
        super().__init__(text)
        self.room = room


def number(error: BaseException) -> int | None:
    """The errno, one of ERRNOS, that is behind `error`; None if it is of another kind."""
    return _source(error, ERRNOS)[0]


def _source(error: BaseException, known: tuple[int, ...]) -> tuple[int | None, str]:
    """(errno, name of the file if that is told).

    Libraries written in C++ (tensorstore, ArrayRecord) raise errors of their own: there, it is read from their text.
    """
    seen, here = set(), error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        if isinstance(here, OSError):
            if here.errno in known:
                return here.errno, str(here.filename or "")
        else:
            code = re.search(r"os_error_code='(\d+)'", str(here))
            if code and int(code[1]) in known:
                return int(code[1]), ""
            named = [n for n in known if os.strerror(n) in str(here)]
            if named:
                return named[0], ""
        here = here.__cause__ or here.__context__
    return None, ""


def failure(path: object, error: BaseException, need: int = 0, then: str = "") -> StorageError | None:
    """What `error`, raised while `path` was being written, says of storage; None if it says nothing of it.

    `need`: bytes that were to be written, where they are known. `then`: what can be done once it can be written.
    """
    found, file = _source(error, (*ERRNOS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR))
    if found is None:
        return None
    one, other = sorted((os.path.abspath(file), os.path.abspath(str(path))), key=len)
    if file and not other.startswith(one):
        return StorageError(f"{os.strerror(found)}: {file}", found in ROOM)  # one that was read, or lies elsewhere
    facts = [f"{size(need)} are needed"] if need and found in ROOM else []
    if found == errno.ENOSPC:
        facts += _free(path)
    said = f" ({', '.join(facts)})" if facts else ""
    said += f"; {then}" if then else ""
    return StorageError(f"cannot write {path}: {os.strerror(found)}{said}", found in ROOM)


@contextlib.contextmanager
def writing(path: object, need: int = 0, then: str = "") -> Iterator[None]:
    """Turns what storage does to the writing of `path` inside into a StorageError; anything else passes unchanged.

    `need`, `then`: see `failure`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        said = failure(path, e, need, then)
        if said is None:
            raise
        raise said from e


def _free(path: object) -> list[str]:
    """What the file system of a local `path` has left, in words."""
    if "://" in str(path):
        return []
    here = Path(str(path)).absolute()
    with contextlib.suppress(OSError):
        found = os.statvfs(next(p for p in (here, *here.parents) if p.exists()))
        if found.f_files and not found.f_favail:
            return ["no further file can be made there"]
        return [f"{size(found.f_bavail * found.f_frsize)} are free"]
    return []


def size(count: int) -> str:
    """`3400000` -> `3.4 MB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"
