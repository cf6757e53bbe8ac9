"""gcsfs that waits for a storage that is away: as long as `remote.patience` says, and says what for.

gcsfs itself tries six times, half a minute in all, and then prints a traceback for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
import urllib.parse
from collections.abc import Iterator

import fsspec.asyn
import gcsfs
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError, is_retriable

from maeclip_jax import remote
from maeclip_jax.remote import traffic

_STALL_SECONDS = 120.0  # after which a request without an answer is sent again
_LONGEST_PAUSE = 8.0
_ACCEPTED_TRIES = 3  # with credentials that are refused: a token may just have run out
# Support of hierarchical and zonal buckets is an experiment of gcsfs that asks, and warns, more; it can be asked for.
_PLAIN = os.environ.get("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false").lower() not in ("true", "1")
# What is never the name of a folder, so that one question says whether it is there: files of runs, of orbax, and the
# compiled programs of jax.
_FILE = re.compile(r"(\.(json|jsonl|txt|png|ocdbt|array_record-[-\w]+)|_METADATA|/_sharding|-cache)$")
_once = getattr(GCSFileSystem._request, "__wrapped__", None)  # without gcsfs's own retries


class Gcs(GCSFileSystem if _PLAIN else gcsfs.GCSFileSystem):
    """See the module. Registered for gs:// by `remote.register`."""

    # A folder and what is in it, see `known`: of the process, since fsspec has a file system for each thread.
    _known: tuple[str, dict[str, dict]] | None = None

    async def _request(self, method, path, *args, **kwargs):
        name = _named(path, args, kwargs.get("json"), kwargs.get("data"))
        bucket, _, key = name.removeprefix("gs://").partition("/")
        if method != "GET" and (not key or self._listed(f"{bucket}/{key}") is not None):
            Gcs._known = None  # a deletion of many, or a part of a large file, names no object
        wait, error, tries = remote.Wait(name), None, 0
        while True:
            left = remote.patient() - wait.seconds()
            if left <= 0 and tries:
                raise error
            tries += 1
            try:
                return await self._answer(wait, min(max(left, 1.0), _STALL_SECONDS), method, path, *args, **kwargs)
            except Exception as e:
                if not (is_retriable(e) or isinstance(e, TimeoutError)):
                    raise
                if isinstance(e, HttpError) and str(e.code) == "401" and tries >= _ACCEPTED_TRIES:
                    raise
                error = e
            pause = min(random.random() + 2.0 ** (tries - 1) / 2, _LONGEST_PAUSE)
            await asyncio.sleep(max(0.0, min(pause, remote.patient() - wait.seconds())))
            wait.look(" ".join(str(error).split())[:120] or type(error).__name__)

    async def _info(self, path, generation=None, **kwargs):
        """One question for a file, two for a folder or for nothing; gcsfs asks one of them twice."""
        bare = self._strip_protocol(path).rstrip("/")
        if "/" not in bare or generation or not _PLAIN:
            return await super()._info(path, generation=generation, **kwargs)
        with contextlib.suppress(FileNotFoundError):
            return await self._get_object(bare)
        found = () if _FILE.search(bare) else await self._do_list_objects(bare, max_results=1)
        if not any(found):
            raise FileNotFoundError(bare)
        return {"bucket": bare.partition("/")[0], "name": bare, "size": 0, "type": "directory"}

    def inside(self, folder: str) -> list[str]:
        """The names of what is in a folder, a request a thousand; `ls` asks once more for one that is empty."""
        found, folders = fsspec.asyn.sync(self.loop, self._do_list_objects, self._strip_protocol(folder))
        names = [one["name"] for one in found if not one["name"].endswith("/")]
        return sorted({name.rstrip("/").rpartition("/")[2] for name in (*names, *folders)})

    def below(self, folder: str) -> dict[str, dict]:
        """{path: what is told of it} of the files in a folder and those below; `find` fills a cache, too."""
        path = self._strip_protocol(folder)
        found, _ = fsspec.asyn.sync(self.loop, self._do_list_objects, path, delimiter="")
        return {one["name"]: one for one in found if not one["name"].endswith("/")}

    @contextlib.contextmanager
    def known(self, folder: str) -> Iterator[None]:
        """Inside, one listing says what there is in `folder` and below, until something of it is written or removed."""
        path = self._strip_protocol(folder).rstrip("/")
        found, _ = fsspec.asyn.sync(self.loop, self._do_list_objects, path, delimiter="")
        Gcs._known = f"{path}/", {one["name"]: one for one in found}
        try:
            yield
        finally:
            Gcs._known = None

    def _listed(self, path: str) -> dict[str, dict] | None:
        """Everything that is known of the folder in which `path` is; None where nothing is."""
        return self._known[1] if self._known and f"{path}/".startswith(self._known[0]) else None

    async def _get_object(self, path):
        listed = self._listed(path)
        if listed is None:
            return await super()._get_object(path)
        if path not in listed:
            raise FileNotFoundError(path)
        return listed[path]

    async def _do_list_objects(self, path, max_results=None, delimiter="/", prefix="", versions=False, **kwargs):
        path = path.rstrip("/")
        listed = None if versions else self._listed(path)
        if listed is None:
            return await super()._do_list_objects(
                path, max_results=max_results, delimiter=delimiter, prefix=prefix, versions=versions, **kwargs
            )
        start = f"{path}/{prefix}"
        rest = {name: name.removeprefix(f"{path}/").partition("/") for name in listed if name.startswith(start)}
        folders = {f"{path}/{first}/".partition("/")[2] for first, slash, _ in rest.values() if slash and delimiter}
        return [listed[name] for name, (_, slash, _) in rest.items() if not (slash and delimiter)], sorted(folders)

    async def _answer(self, wait: remote.Wait, seconds: float, method, path, *args, **kwargs):
        """One request, whose answer is waited for aloud."""
        if _once is None:
            request = super()._request(method, path, *args, **kwargs)
        else:
            request = _once(self, method, path, *args, **kwargs)
        task, end = asyncio.ensure_future(request), time.monotonic() + seconds
        try:
            while not task.done():
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no answer for {seconds:.0f} s")
                await asyncio.wait({task}, timeout=min(left, 5.0))
                if not task.done():
                    wait.look("no answer")
            return task.result()
        finally:
            task.cancel()
            done = task.done() and not task.cancelled() and not task.exception()
            data = kwargs.get("data")
            sent = data.getbuffer().nbytes if hasattr(data, "getbuffer") else len(data) if data else 0
            traffic.count(sent if done else 0, len(task.result()[-1]) if done else 0)


def _named(path: str, args: tuple, json, data) -> str:
    """`gs://bucket/object` of a request: the bucket stands in its path, the object there or in its body."""
    if len(args) > 1:
        return f"gs://{args[0]}/{args[1]}"
    if args:
        return f"gs://{args[0]}"
    found = re.search(r"/b/([^/?]+)(?:/o/([^?]+))?", path)
    if not found:
        return path.partition("?")[0]
    head = data.getvalue()[:4096] if hasattr(data, "getvalue") else data[:4096] if isinstance(data, bytes) else b""
    inside = re.search(rb'"name"\s*:\s*"([^"]+)"', head)
    name = found[2] or (json or {}).get("name", "") or (inside[1].decode(errors="replace") if inside else "")
    return f"gs://{found[1]}/{urllib.parse.unquote(name)}".rstrip("/")
