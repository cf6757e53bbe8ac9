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
_once = getattr(GCSFileSystem._request, "__wrapped__", None)  # without gcsfs's own retries


class Gcs(GCSFileSystem if _PLAIN else gcsfs.GCSFileSystem):
    """See the module. Registered for gs:// by `remote.register`."""

    async def _request(self, method, path, *args, **kwargs):
        wait, error, tries = remote.Wait(_named(path, args, kwargs.get("json"), kwargs.get("data"))), None, 0
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
        """One question for a file, two for a folder or for nothing; gcsfs asks both at once, and one of them twice."""
        bare = self._strip_protocol(path).rstrip("/")
        if "/" not in bare or generation or not _PLAIN:
            return await super()._info(path, generation=generation, **kwargs)
        with contextlib.suppress(FileNotFoundError):
            return await self._get_object(bare)
        bucket, key, _ = self.split_path(bare)
        return await self._get_directory_info(bare, bucket, key, None)

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
