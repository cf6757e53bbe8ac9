"""Files of a workdir or a data set wherever they lie: a folder, gs://, s3://. Few requests, deadlines, one line.

A file system of a bucket asks several questions for one answer (`exists` is two requests, a read three). Here a read, a
write or a listing is one. A storage that is away is waited for, and after 15 seconds it is said what for: for as long
as `patience` says, which is short while a program starts and long while it runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import threading
import time
from collections.abc import Iterator

from etils import epath

from maeclip_jax.errors import UserError, storage

SCHEMES = ("gs", "s3", "az", "hf")  # which etils.epath reaches, through fsspec
START_SECONDS = 20.0  # how long a start waits for a storage that does not answer
RUN_SECONDS = 900.0  # how long a run does
SAID_AFTER, SAID_EVERY = 15.0, 60.0  # seconds of waiting after which it is said what for

_patience: float | None = None  # None: that of a start
pending: dict[str, bytes] = {}  # what `outbox` has not written yet, by path: what `read` gives


def is_remote(path: object) -> bool:
    """Whether `path` names something in a bucket; if so, it can be used from now on: see `register`."""
    found = storage.is_remote(path)
    if found:
        register()
    return found


def check_scheme(path: object, what: str, google: str = "") -> None:
    """UserError if `path` begins with a scheme that no library here knows, or whose library is not installed.

    google: what of Google's libraries (orbax, array_record) is to lie there, which know gs:// and folders alone.
    """
    scheme, found, _ = str(path).partition("://")
    if not found:
        return
    register()
    valid = f"valid: {', '.join(f'{s}://' for s in SCHEMES)} or a folder"
    if scheme not in SCHEMES:
        raise UserError(f"{what}: unknown scheme {scheme}:// in {str(path)!r}; {valid}")
    if google and scheme != "gs":
        raise UserError(f"{what}: {google} lie in gs:// or a folder, not in {str(path)!r}; valid: gs://bucket/folder")
    package = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what}: {str(path)!r} needs the package {package}: pip install {package}; {valid}")
    if not str(path).partition("://")[2].strip("/"):
        raise UserError(f"{what}: {str(path)!r} names no bucket; valid: {scheme}://bucket/folder")


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Inside, every request of this process to a bucket may wait so long for a storage that is away."""
    global _patience
    before, _patience = _patience, seconds
    try:
        yield
    finally:
        _patience = before


def patient() -> float:
    """How many seconds a request may wait, at the moment."""
    return START_SECONDS if _patience is None else _patience


def read(path: epath.PathLike) -> bytes | None:
    """The content of a file; None if it is not there. StorageError if the storage does not give it."""
    if not is_remote(path):
        try:
            return epath.Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    if (waiting := pending.get(str(path))) is not None:
        return waiting
    with failing("read", path):
        try:
            return system(path).cat_file(str(path))
        except FileNotFoundError:
            return None


def read_text(path: epath.PathLike) -> str | None:
    """As `read`, of UTF-8 text."""
    found = read(path)
    return None if found is None else found.decode()


def write(path: epath.PathLike, data: bytes) -> None:
    """Writes an object of a bucket whole. StorageError if it cannot be."""
    with failing("write", path):
        system(path).pipe_file(str(path), data)


def delete(path: epath.PathLike) -> None:
    """Removes a file, if it is there."""
    if not is_remote(path):
        epath.Path(path).unlink(missing_ok=True)
        return
    pending.pop(str(path), None)
    with failing("delete", path), contextlib.suppress(FileNotFoundError):
        system(path).rm_file(str(path))


def names(folder: epath.PathLike) -> list[str]:
    """The names of the files and folders in `folder`, in order; [] if it is not there."""
    if not is_remote(folder):
        here = epath.Path(folder)
        return sorted(p.name for p in here.iterdir()) if here.is_dir() else []
    with failing("list", folder):
        here = system(folder)
        try:
            if hasattr(here, "inside"):
                return here.inside(str(folder))
            found = here.ls(str(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
    prefix = str(folder).partition("://")[2].rstrip("/")
    return sorted(n for path in found if (n := path.removeprefix(prefix).strip("/")))


@contextlib.contextmanager
def failing(operation: str, path: object) -> Iterator[None]:
    """Turns what a bucket's library raises inside into a StorageError of one line, which says what to check.

    `operation`: read, write, list or delete. FileNotFoundError of a read passes unchanged, since a file that is not
    there is mostly none; anything that says nothing of storage passes, too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if isinstance(e, FileNotFoundError) and operation != "write":
            raise
        said = storage.remote_failure(operation, path, e)
        if said is None:
            raise
        raise said from e


def files(folder: epath.PathLike) -> dict[str, dict]:
    """{name below `folder`: what its storage tells of it} of all files in a folder of a bucket and those below.

    Of each, `size` in bytes; the rest has the names that its fsspec file system gives. A request a thousand.
    """
    prefix = str(folder).partition("://")[2].rstrip("/") + "/"
    with failing("list", folder):
        here = system(folder)
        if hasattr(here, "below"):
            found = here.below(str(folder))
        else:
            here.invalidate_cache(str(folder))
            all_of_it = here.find(str(folder), detail=True)
            found = {name: info for name, info in all_of_it.items() if info["type"] == "file"}
    return {name.removeprefix(prefix): info for name, info in found.items()}


def sizes(folder: epath.PathLike) -> dict[str, int]:
    """{name below `folder`: bytes}, as `files`."""
    return {name: int(info["size"] or 0) for name, info in files(folder).items()}


@contextlib.contextmanager
def known(folder: epath.PathLike) -> Iterator[None]:
    """Inside, one request says what is in a folder of a bucket, instead of one or two for each file that is looked for.

    Until this process writes there, or removes something. For folders that nobody else writes into meanwhile.
    """
    here = system(folder) if is_remote(folder) else None
    with contextlib.ExitStack() as stack:
        if hasattr(here, "known"):
            with failing("list", folder):
                stack.enter_context(here.known(str(folder)))
        yield


def remove_folder(folder: epath.PathLike) -> None:
    """Removes a folder of a bucket and what is below."""
    with failing("delete", folder), contextlib.suppress(FileNotFoundError):
        system(folder).rm(str(folder), recursive=True)


def system(path: object):
    """The file system of a `path` in a bucket, as fsspec has it."""
    import fsspec

    register()
    return fsspec.filesystem(str(path).partition("://")[0])


_registered = False


def register() -> None:
    """Makes all libraries of this process that reach gs:// through fsspec (etils.epath, orbax, TFDS) wait as told."""
    global _registered
    if _registered or importlib.util.find_spec("gcsfs") is None:
        return
    import fsspec
    from etils.epath import backend

    _registered = True
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, "maeclip_jax.remote.gcs.Gcs", clobber=True)
        if name in fsspec.registry:  # somebody has used it already
            from maeclip_jax.remote.gcs import Gcs

            fsspec.register_implementation(name, Gcs, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()  # etils keeps the file systems that it has made
    for name in ("gcsfs", "fsspec"):  # which print the traceback of every error that they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)


_told = float("-inf")  # when it was last said that a storage is waited for


def tell() -> None:
    """It is being said that a storage is waited for."""
    global _told
    _told = time.monotonic()


def is_waiting() -> bool:
    """Whether that was said lately: a process that makes no progress then has its reason."""
    return time.monotonic() - _told < SAID_EVERY + SAID_AFTER


class Wait:
    """Says what is waited for, at most one line at a time for all requests of the process."""

    _lock = threading.Lock()
    _said: dict[str, float] = {}

    def __init__(self, path: str):
        self.path, self.begun, self.told = path, time.monotonic(), 0.0

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    def look(self, reason: str = "") -> None:
        """Says it if it is time to."""
        now = time.monotonic()
        if now - self.begun < SAID_AFTER or (self.told and now - self.told < SAID_EVERY):
            return
        self.told = now
        with self._lock:
            if any(now - then < SAID_AFTER for then in self._said.values()):  # said of another object just now
                return
            self._said[re.sub(r"/[^/]*$", "", self.path)] = now
        tell()
        logging.getLogger("maeclip_jax").warning(
            "waiting for %s: %.0f s%s", self.path, now - self.begun, f" ({reason})" if reason else ""
        )
