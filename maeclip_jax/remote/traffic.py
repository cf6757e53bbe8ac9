"""How much this process sent to buckets and had from them, as far as its own libraries count it."""

from __future__ import annotations

import dataclasses
import sys

from maeclip_jax.errors import storage


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Requests of this process to buckets, and the bytes of their bodies; those of Google's C++ client do not count."""

    requests: int = 0
    written: int = 0
    read: int = 0

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(self.requests - before.requests, self.written - before.written, self.read - before.read)

    def __str__(self) -> str:
        parts = [f"{storage.size(n)} {what}" for n, what in ((self.written, "written"), (self.read, "read")) if n]
        return ", ".join([f"{self.requests} requests", *parts])


_through_fsspec = {"requests": 0, "written": 0, "read": 0}


def count(written: int, read: int) -> None:
    """One more request through fsspec."""
    for name, more in (("requests", 1), ("written", written), ("read", read)):
        _through_fsspec[name] += more


def so_far() -> Traffic:
    """What went over the network so far: through gcsfs (small files, folders) and tensorstore (arrays)."""
    found = dict(_through_fsspec)
    if "tensorstore" in sys.modules:
        folder = "/tensorstore/kvstore/gcs/"
        for metric in sys.modules["tensorstore"].experimental_collect_matching_metrics(folder):
            value = sum(one.get("value", 0) for one in metric["values"])
            name = metric["name"].removeprefix(folder)
            if name in ("read", "write", "list", "delete"):
                found["requests"] += value
            elif name in ("bytes_written", "bytes_read"):
                found[{"bytes_written": "written", "bytes_read": "read"}[name]] += value
    return Traffic(**found)
