"""The process between clients and fake-gcs-server: it counts, delays and fails requests. `bench.bucket` starts it.

It reads commands from stdin, one JSON object a line, answers each on stdout, and ends at the end of stdin. It imports
nothing of the project and nothing heavy, so that it is there in a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter, defaultdict

BUFFER = 64 * 1024  # of what is sent: loopback would swallow megabytes that a client never reads
CLASSES = ("list", "metadata", "media", "upload", "delete", "other")
OPERATIONS = {"get": ("metadata", "media"), "put": ("upload",), "*": CLASSES} | {name: (name,) for name in CLASSES}
STATUSES = {
    "401": ("Unauthorized", "Invalid Credentials"), "403": ("Forbidden", "the caller lacks the permission"),
    "404": ("Not Found", "No such object"), "429": ("Too Many Requests", "The rate of requests is too high"),
    "500": ("Internal Server Error", "Internal error"), "503": ("Service Unavailable", "Backend error"),
}  # fmt: skip
KINDS = (*STATUSES, "reset", "short", "stall", "freeze")
_KEPT = 200_000  # requests of the log


class Request:
    """One request as a client sent it: `head` without the blank line, `body` whole."""

    def __init__(self, head: bytes, body: bytes, uploads: dict[str, str]):
        self.head, self.body = head, body
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, target, _ = first.split(" ", 2)
        self.headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        self.agent = self.headers.get("user-agent", "").partition("/")[0] or "?"
        parts = urllib.parse.urlsplit(target)
        self._query = dict(urllib.parse.parse_qsl(parts.query))
        self.kind, self.billed, self.object = self._classify(parts.path, uploads)

    def _classify(self, path: str, uploads: dict[str, str]) -> tuple[str, str, str]:
        """(class, "a", "b" or "" as it is billed, object).

        A resumable upload is billed once, when it begins; deleting costs nothing.
        """
        if "upload_id" in self._query:
            return "upload", "", uploads.get(self._query["upload_id"], "")
        api = re.fullmatch(r"(?:/(upload|download|resumable/upload))?/storage/v1/b(?:/([^/]+)(?:/(.*))?)?", path)
        if not api:  # the older form, /bucket/object
            name = urllib.parse.unquote(path.lstrip("/").partition("/")[2])
            return {"HEAD": ("metadata", "b", name), "PUT": ("upload", "a", name), "DELETE": ("delete", "", name)}.get(
                self.method, ("media", "b", name)
            )
        how, _, rest = api.groups()
        if how and "upload" in how:
            return "upload", "a", self._query.get("name") or self._named()
        if not rest:
            return ("metadata", "b", "") if api[2] and self.method == "GET" else ("other", "a", "")
        of, _, name = rest.partition("/")
        name = urllib.parse.unquote(name)
        if of != "o":
            return "other", "b", ""
        if not name:
            return "list", "a", self._query.get("prefix", "")
        if self.method == "GET":
            media = how == "download" or self._query.get("alt") == "media"
            return ("media" if media else "metadata"), "b", name
        if self.method == "DELETE":
            return "delete", "", name
        return ("upload" if self.method == "POST" else "other"), "a", name  # a copy; new metadata

    def _named(self) -> str:
        """The name that the JSON in the body of an upload says."""
        found = re.search(rb'"name"\s*:\s*("(?:[^"\\]|\\.)*")', self.body[:4096])
        return json.loads(found[1]) if found else ""

    def forwarded(self) -> bytes:
        lines = [x for x in self.head.split(b"\r\n") if not x.lower().startswith((b"expect:", b"transfer-encoding:"))]
        if b"transfer-encoding:" in self.head.lower():
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


class Tally:
    """Counts of requests."""

    def __init__(self):
        self.requests, self.billed, self.sent, self.received = Counter(), Counter(), 0, 0
        self.objects, self.agents, self.log = defaultdict(Counter), defaultdict(Counter), []
        self.begun = time.monotonic()

    def add(self, request: Request, status: int) -> None:
        self.requests[request.kind] += 1
        self.billed[request.billed] += 1
        self.received += len(request.body)
        self.objects[request.object][request.kind] += 1
        self.agents[request.agent][request.kind] += 1
        if len(self.log) < _KEPT:
            seconds = round(time.monotonic() - self.begun, 4)
            self.log.append((seconds, request.kind, request.object, request.agent, status))

    def said(self) -> dict:
        return {
            "requests": self.requests, "a": self.billed["a"], "b": self.billed["b"], "sent": self.sent,
            "received": self.received, "objects": self.objects, "agents": self.agents, "log": self.log,
        }  # fmt: skip


class Fault:
    """See `bucket.Bucket.fault`."""

    def __init__(self, kind: str, match: str, operation: str, times: int | None, seconds: float):
        for what, name, valid in (("kind", kind, KINDS), ("operation", operation, OPERATIONS)):
            if name not in valid:
                raise ValueError(f"unknown {what} {name!r} of a fault; valid: {', '.join(valid)}")
        self.kind, self.match, self.seconds = kind, re.compile(match), seconds
        self.classes, self.left = OPERATIONS[operation], times

    def takes(self, request: Request) -> bool:
        if self.left == 0 or request.kind not in self.classes or not self.match.search(request.object):
            return False
        self.left = None if self.left is None else self.left - 1
        return True


class Proxy:
    """The server of clients, the process of fake-gcs-server behind it, and the commands of the parent."""

    def __init__(self, program: str, bucket: str, latency: float):
        self.program, self.bucket, self.latency = program, bucket, latency
        self.folder = tempfile.mkdtemp(prefix="bucket-")
        self.tally, self.faults, self.uploads = Tally(), [], {}
        self.clients: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None
        self.port, self.behind, self.process = 0, _free_port(), None

    # The server behind.

    def start_server(self) -> None:
        url = f"127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [
                self.program, "-scheme", "http", "-backend", "filesystem", "-filesystem-root", self.folder,
                "-host", "127.0.0.1", "-port", str(self.behind), "-external-url", f"http://{url}",
                "-public-host", url, "-log-level", "error",
            ],
            stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=_die_with_parent,
        )  # fmt: skip
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.behind}/storage/v1/b"):
                return
            time.sleep(0.02)
        raise RuntimeError("fake-gcs-server did not start")

    def stop_server(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def make_bucket(self) -> None:
        body = json.dumps({"name": self.bucket}).encode()
        url = f"http://127.0.0.1:{self.behind}/storage/v1/b?project=test"
        urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})).close()

    # Clients.

    async def listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self.server = await asyncio.start_server(self.client, sock=listener, limit=2**20, backlog=512)

    def leave(self) -> None:
        """Refuses new connections and breaks all there are."""
        self.server.close()
        for writer in list(self.clients):
            _reset(writer)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.add(writer)
        writer.transport.set_write_buffer_limits(BUFFER)
        behind = None
        try:
            while True:
                request = await self.request(reader, writer)
                if behind is None or behind[0].at_eof():
                    behind = await asyncio.open_connection("127.0.0.1", self.behind, limit=2**20)
                if not await self.answer(request, writer, *behind):
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # the client or the server left, or this process ends
        finally:
            self.clients.discard(writer)
            for one in (writer, behind[1] if behind else None):
                if one:
                    one.close()

    async def request(self, reader, writer) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
        low = head.lower()
        if b"expect: 100-continue" in low:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"transfer-encoding: chunked" in low:
            body = b"".join([part async for part, _ in _chunks(reader)])
        else:
            length = re.search(rb"\r\ncontent-length:\s*(\d+)", low)
            body = await reader.readexactly(int(length[1])) if length else b""
        return Request(head, body, self.uploads)

    async def answer(self, request: Request, writer, from_behind, to_behind) -> bool:
        """Answers one request; False where the connection is to end."""
        fault = next((f for f in self.faults if f.takes(request)), None)
        kind = fault.kind if fault else ""
        if kind == "reset":
            self.tally.add(request, 0)
            _reset(writer)
            return False
        if self.latency:
            await asyncio.sleep(self.latency)
        if kind in STATUSES:
            self.tally.add(request, int(kind))
            writer.write(_error(kind, request.object))
            await writer.drain()
            return True
        if kind == "stall":
            await asyncio.sleep(fault.seconds)
        to_behind.write(request.forwarded())
        await to_behind.drain()
        head = await from_behind.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 1"):
            head = await from_behind.readuntil(b"\r\n\r\n")
        status, low = int(head.split(b" ", 2)[1]), head.lower()
        self.tally.add(request, status)
        begun = re.search(rb"\r\nlocation:[^\r]*[?&]upload_id=([^&\r]+)", head, re.IGNORECASE)
        if begun:
            self.uploads[begun[1].decode()] = request.object
        length = re.search(rb"\r\ncontent-length:\s*(\d+)", low)
        writer.write(head)
        if request.method == "HEAD" or status in (204, 304):
            pass
        elif b"transfer-encoding: chunked" in low:
            async for part, frame in _chunks(from_behind):
                await self.send(writer, frame, len(part))
        elif length:
            left, cut = int(length[1]), int(length[1]) // 2 if kind in ("short", "freeze") else -1
            while left:
                part = await from_behind.read(min(left if cut < 0 else max(1, left - cut), BUFFER))
                if not part:
                    return False
                left -= len(part)
                await self.send(writer, part, len(part))
                if left <= cut:
                    if kind == "short":
                        return False
                    await asyncio.sleep(fault.seconds)
                    cut = -1
        await writer.drain()
        return b"connection: close" not in low

    async def send(self, writer, data: bytes, count: int) -> None:
        writer.write(data)
        await writer.drain()
        self.tally.sent += count

    # The parent.

    async def obey(self, command: dict) -> dict:
        what = command.pop("do")
        if what == "counts":
            return self.tally.said()
        if what == "reset":
            self.tally = Tally()
        elif what == "latency":
            self.latency = command["seconds"]
        elif what == "fault":
            self.faults.append(Fault(**command))
        elif what == "clear":
            self.faults = []
        elif what == "stop_for":
            self.leave()
            asyncio.get_running_loop().call_later(command["seconds"], lambda: asyncio.create_task(self.listen()))
        elif what == "restart":
            self.stop_server()
            await asyncio.to_thread(self.start_server)
        return {}

    async def run(self) -> None:
        await self.listen()
        self.start_server()
        self.make_bucket()
        print(json.dumps({"proxy": self.port, "server": self.behind}), flush=True)
        parent = os.getppid()
        commands = asyncio.StreamReader(limit=2**20)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin.buffer
        )
        waiting = asyncio.ensure_future(commands.readline())
        while os.getppid() == parent:  # a child of the parent may have inherited the other end of stdin
            if not (await asyncio.wait([waiting], timeout=1))[0]:
                continue
            line = waiting.result()
            if not line:
                return
            try:
                said = await self.obey(json.loads(line))
            except (ValueError, re.error, RuntimeError) as e:
                said = {"error": str(e)}
            print(json.dumps(said), flush=True)
            waiting = asyncio.ensure_future(commands.readline())


async def _chunks(reader):
    """(content, the bytes that frame it) of a chunked body, its end included."""
    while True:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        part = await reader.readexactly(size + 2) if size else await reader.readuntil(b"\r\n")
        yield part[:size], line + part
        if not size:
            return


def _error(status: str, name: str) -> bytes:
    reason, text = STATUSES[status]
    said = {"code": int(status), "message": f"{text}: {name}", "errors": [{"message": text, "reason": reason}]}
    body = json.dumps({"error": said}).encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Breaks a connection, so that the client hears of it at once."""
    with contextlib.suppress(OSError):
        linger = b"\1\0\0\0\0\0\0\0"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _die_with_parent() -> None:
    """Linux ends fake-gcs-server with this process, also where that is killed."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """The command line: program, bucket, latency."""
    one = Proxy(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        asyncio.run(one.run())
    finally:
        one.stop_server()
        shutil.rmtree(one.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
