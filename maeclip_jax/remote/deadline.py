"""Looks at a storage that may not answer, and does not wait for longer than it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import storage


def within(seconds: float, operation: str, path: object, action: Callable[[], Any]) -> Any:
    """What `action` returns. StorageError if it has not after `seconds`: its thread is left behind.

    For libraries that retry for a quarter of an hour without a word.
    """
    result: dict[str, Any] = {}

    def work() -> None:
        try:
            result["value"] = action()
        except BaseException as e:
            result["error"] = e

    thread = threading.Thread(target=work, name=f"{operation} {path}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise storage.no_answer(operation, path, seconds)
    if "error" in result:
        with remote.failing(operation, path):
            raise result["error"]
    return result["value"]


def answers(path: epath.PathLike, seconds: float) -> bool:
    """Whether the storage of `path` answers within so many seconds: one request for that file, there or not."""
    try:
        with remote.patience(seconds):
            return within(seconds + 1, "read", path, lambda: _there(path))
    except storage.StorageError:
        return False


def _there(path: epath.PathLike) -> bool:
    with contextlib.suppress(FileNotFoundError), remote.failing("read", path):
        remote.system(path).cat_file(str(path))
    return True


def look(sources: Iterable[Any]) -> None:
    """Reads one record of each source of data that lies in a bucket. StorageError if it does not come in time.

    Google's C++ client, which reads records, tries for a quarter of an hour without a word.
    """
    for source in sources:
        if getattr(source, "remote", False):
            within(
                remote.START_SECONDS, "read", getattr(source, "folder", source.name), lambda source=source: source[0]
            )
