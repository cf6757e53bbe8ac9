"""Storage that fails: full, read-only, closed to the caller, not there, away; said in one line that names the path."""

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
    """Something could not be read or written. room: whether more room is what it takes. passes: whether it may pass by
    itself, as a bucket that is away does and one that denies access does not.
    """

    def __init__(self, text: str, room: bool = False, passes: bool = False):
        super().__init__(text)
        self.room, self.passes = room, passes


class Away(StorageError):
    """A run ends because its storage has been away for long. The same command goes on later; see `cli.guarded`."""

    def __init__(self, text: str):
        super().__init__(text, passes=True)


def of_a_run(failure: StorageError, safe: str, under_way: bool) -> StorageError:
    """What ends a run, with what is `safe` and how to go on; `Away` if it was under way and the failure may pass."""
    when = "there is room" if failure.room else "it can be reached" if failure.passes else "it can be written"
    text = f"{failure}; {safe}; run the same command when {when}"
    return Away(text) if failure.passes and under_way else StorageError(text, failure.room)


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
    if is_remote(path) and (said := remote_failure("write", path, error, then)):
        return said
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


# Buckets: their libraries (gcsfs, aiohttp, tensorstore, Google's C++ client) raise errors of many kinds, which are told
# apart by the status of HTTP where they know it, and by their words.

_STATUS = re.compile(r"HTTP response code: (\d{3})|(?:status|code|, )\W{0,3}(401|403|404|408|429|50[0-4])\b")
_WORDS = (
    (401, r"Unauthorized|Invalid Credentials|Anonymous caller|DefaultCredentials|RefreshError"
     r"|Unable to locate credentials|could not be refreshed|Reauthentication"),
    (403, r"Forbidden|AccessDenied|does not have \S+ access"),
    (404, r"NoSuchBucket|bucket does not exist"),
    (429, r"Too Many Requests|SlowDown"),
    (503, r"Backend error|Service Unavailable|Retry policy exhausted|Retry loop gave up|no answer for"
     r"|Connect call failed|Cannot connect to host|Connection reset|ServerDisconnected|Server disconnected"
     r"|Name or service not known|Temporary failure in name resolution|Connection refused|Connection aborted"),
)  # fmt: skip
_PLACE = re.compile(
    r"\b(?:gs|s3|az|hf)://[^\s'\",;]+|\b(?:storage|www|oauth2)\.googleapis\.com|127\.0\.0\.1:\d+/\S*storage/v1"
)
# What else C++ libraries say, jax's own among them: of a bucket only where they name one.
_CODES = (
    (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (404, "NOT_FOUND"), (429, "RESOURCE_EXHAUSTED"),
    (503, "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED"),
)  # fmt: skip
_CHECK = {
    401: "the credentials are missing or refused (401); check them with `gcloud auth application-default login`, or "
    "the service account of this machine",
    403: "access is denied (403); check that this account may {operation} objects of bucket {bucket!r}",
    404: "bucket {bucket!r} is not there (404); check its name",
    429: "the bucket takes no more requests for now (429); check its quota and how many jobs use it",
    503: "the storage does not answer; check the network, and that bucket {bucket!r} can be reached from here",
}


def is_remote(path: object) -> bool:
    """Whether `path` names something in a bucket."""
    return "://" in str(path)


def remote_status(error: BaseException) -> int | None:
    """What a bucket said, in `error` or in one that it came from: 401, 403, 404, 429, or 503 for whatever passes.

    None for errors of another kind.
    """
    seen, here = set(), error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        if (status := _remote_status(here)) is not None:
            return status
        here = here.__cause__ or here.__context__
    return None


def _remote_status(error: BaseException) -> int | None:
    for name in ("code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdigit() and 400 <= int(value) < 600:
            return _of_class(int(value))
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, FileNotFoundError):
        return 404 if "://" in text or error.errno is None else None
    found = _STATUS.search(text)
    if found:
        return _of_class(int(found[1] or found[2]))
    known = next((status for status, words in _WORDS if re.search(words, text)), None)
    if known is None and _PLACE.search(text):
        known = next((status for status, words in _CODES if re.search(words, text)), None)
    if known is None and (isinstance(error, TimeoutError | ConnectionError) or _of_network(error)):
        return 503
    return known


def _of_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("aiohttp", "gcsfs", "requests", "urllib3", "botocore")


def met(error: BaseException) -> StorageError | None:
    """What `error`, which nobody expected, says of a bucket; None if it is of another kind."""
    seen, here = set(), error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        place = _PLACE.search(str(here))
        if (place or _of_network(here)) and _remote_status(here) is not None:
            return remote_failure("use", place[0] if place else "a bucket", here)
        here = here.__cause__ or here.__context__
    return None


def _of_class(status: int) -> int | None:
    if status in (401, 403, 404, 429):
        return status
    return 503 if status >= 500 or status == 408 else None


def remote_failure(operation: str, path: object, error: BaseException, then: str = "") -> StorageError | None:
    """What `error`, raised while `path` in a bucket was used, says of the storage; None if it says nothing of it.

    `operation`: read, write, list or delete. `then`: see `failure`.
    """
    if isinstance(error, StorageError):
        return error
    status = remote_status(error)
    if status is None:
        return None
    bucket = str(path).partition("://")[2].partition("/")[0]
    said = _CHECK[status].format(operation=operation, bucket=bucket)
    return StorageError(f"cannot {operation} {path}: {said}{f'; {then}' if then else ''}", passes=status in (429, 503))


def no_answer(operation: str, path: object, seconds: float) -> StorageError:
    """The error of an `operation` on `path` that has not ended after so many `seconds`."""
    bucket = str(path).partition("://")[2].partition("/")[0]
    where = f"bucket {bucket!r}" if bucket else "it"
    return StorageError(
        f"cannot {operation} {path}: no answer for {seconds:.0f} s; check the network, the credentials, and that "
        f"{where} can be reached from here",
        passes=True,
    )


def _free(path: object) -> list[str]:
    """What the file system of a local `path` has left, in words."""
    if is_remote(path):
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
