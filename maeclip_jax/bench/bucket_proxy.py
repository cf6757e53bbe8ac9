"""The process before the storage server of `bucket`: it counts, delays and spoils what passes through it.

`bucket.serve` starts this file as a process of its own, so that its CPU time is not the client's. The process starts
the real fake-gcs-server on a temporary folder, listens on 127.0.0.1 and forwards each request. The real server answers
everything but plain downloads: for those it is asked once an object for the headers of its answer, which are kept until
something is written, and the bytes are sent straight from its folder with sendfile, because it is too slow to measure
a reader with. Nothing is buffered here, and the kernel buffers 64 kB a connection, so that the bytes of a download
that the client breaks off are nearly those that it received.

The process takes commands as lines of JSON on its standard input. It ends, with the real server and the folder, when
that is closed or when its parent has died. It imports little, so that it starts at once.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import http
import json
import os
import re
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

from maeclip_jax.bench.bucket_requests import OPERATIONS, Request, read
from maeclip_jax.bench.bucket_server import Server, free_port

_PIECE = 1 << 20  # bytes of a download that are sent before they are counted
_SEND_BUFFER = 64 << 10
_HOP = {"connection", "content-length", "date", "expect", "host", "keep-alive", "transfer-encoding"}
_PLAIN = {"alt", "prettyPrint", "userProject"}  # what the query of a plain download may hold
_MOVE = re.compile(r"(/storage/v1/b/([^/]+)/o/[^/]+)/moveTo/o/([^/?]+)(?:\?.*)?")


class Proxy:
    """Listens, counts, spoils and answers. Its methods from `reset` to `away` are the commands."""

    def __init__(self, binary: str, bucket: str, latency: float, folder: str):
        self.latency, self.faults, self.tasks, self.away_until = latency, [], {}, 0.0
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # accepted sockets inherit it
        self.listener.setblocking(False)
        self.port = free_port()
        self.listener.bind(("127.0.0.1", self.port))  # by number, or Linux gives the port away in `away`
        self.server = Server(binary, folder, f"127.0.0.1:{self.port}")
        self.server.start()
        made = self.server.ask("POST", "/storage/v1/b?project=test", {}, json.dumps({"name": bucket}).encode())
        if made[0] != 200:
            raise RuntimeError(f"bucket {bucket!r}: {made[2].decode(errors='replace')}")
        self.threads = concurrent.futures.ThreadPoolExecutor(32)
        self.heads, self.version, self.uploads = {}, 0, {}
        self.reset()

    def reset(self) -> None:
        self.total, self.billed = [0, 0], {"a": 0, "b": 0}
        self.by_class = {name: [0, 0] for name in OPERATIONS["*"]}
        self.by_object = collections.defaultdict(lambda: [0, 0])

    def counts(self) -> dict:
        return {"total": self.total, "by_class": self.by_class, "by_object": self.by_object, **self.billed}

    def fault(self, **rule) -> None:
        self.faults.append({**rule, "since": time.monotonic()})

    def clear(self) -> None:
        self.faults.clear()
        self.away_until = 0.0

    def set_latency(self, seconds: float) -> None:
        self.latency = seconds

    def forget(self) -> dict:
        self.heads, self.version = {}, self.version + 1
        return {"server_port": self.server.port, "server_pid": self.server.process.pid}

    def restart(self) -> None:
        self.server.restart()
        self.forget()

    def away(self, seconds: float) -> None:
        self.away_until = time.monotonic() + seconds
        with contextlib.suppress(OSError):  # it is away already
            self.listener.shutdown(socket.SHUT_RDWR)  # it keeps its port; who connects is refused
        for task, sock in list(self.tasks.items()):
            linger(sock)
            task.cancel()

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.listener.listen(1024)
            while time.monotonic() >= self.away_until:
                try:
                    sock, _ = await loop.sock_accept(self.listener)
                except OSError:  # shut down by `away`
                    break
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                task = asyncio.create_task(self.connection(sock))
                self.tasks[task] = sock
                task.add_done_callback(lambda task: self.tasks.pop(task).close())
            while time.monotonic() < self.away_until:
                await asyncio.sleep(0.01)

    async def connection(self, sock: socket.socket) -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError, asyncio.SendfileNotAvailableError):  # the client has gone
            while request := await read(sock, buffer):
                if not await self.answer(sock, request):
                    return

    def take(self, request: Request) -> dict:
        """The first fault that is meant for `request`, and one time less of it."""
        for rule in self.faults:
            lasts = rule["seconds"] if rule["kind"] not in ("stall", "slow") else None
            if (
                request.operation in OPERATIONS[rule["operation"]]
                and re.search(rule["match"], request.object)
                and rule["times"] != 0
                and (lasts is None or time.monotonic() < rule["since"] + lasts)
            ):
                if rule["times"] is not None:
                    rule["times"] -= 1
                return rule
        return {"kind": ""}

    async def answer(self, sock: socket.socket, request: Request) -> bool:
        """Answers; whether the connection stays."""
        if not request.object and (name := self.uploads.get(request.query.get("upload_id"))):
            request.object = name
        tallies = [self.total, self.by_class[request.operation]]
        if request.object and request.operation != "list":
            tallies.append(self.by_object[request.object])
        for tally in tallies:
            tally[0] += 1
        fault = self.take(request)
        await asyncio.sleep(self.latency + (fault["seconds"] if fault["kind"] == "slow" else 0))
        if fault["kind"] == "reset":
            linger(sock)
            return False
        if fault["kind"].isdigit():
            status = int(fault["kind"])
            text = json.dumps({"error": {"code": status, "message": f"a fault that was asked for: {status}"}}).encode()
            return await self.send(
                sock, request, tallies, status, [("Content-Type", "application/json")], text, {"kind": ""}
            )
        try:
            said = await self.media(request) if request.operation == "media" else None
            status, headers, body = said or await self.forward(request)
        except ConnectionError:
            linger(sock)
            return False
        if request.billed and status < 300:
            self.billed[request.billed] += 1
        return await self.send(sock, request, tallies, status, headers, body, fault)

    def ask(self, method: str, target: str, headers: dict, body: bytes) -> asyncio.Future:
        return asyncio.get_running_loop().run_in_executor(self.threads, self.server.ask, method, target, headers, body)

    async def forward(self, request: Request) -> tuple[int, list, bytes]:
        headers = {k: v for k, v in request.headers.items() if k not in _HOP}
        if request.method in ("GET", "HEAD"):
            return await self.ask(request.method, request.target, headers, request.body)
        self.forget()
        if moved := _MOVE.fullmatch(request.target):
            said = await self.move(*moved.groups())
        else:
            said = await self.ask(request.method, request.target, headers, request.body)
        self.forget()
        location = dict(said[1]).get("Location", "")
        if request.object and (found := re.search(r"upload_id=([^&]+)", location)):
            self.uploads[found[1]] = request.object
        return said

    async def move(self, source: str, bucket: str, name: str) -> tuple[int, list, bytes]:
        """moveTo, which the real server does not know, as a copy and a deletion."""
        status, headers, body = await self.ask("POST", f"{source}/rewriteTo/b/{bucket}/o/{name}", {}, b"")
        if status != 200:
            return status, headers, body
        await self.ask("DELETE", source, {}, b"")
        return status, headers, json.dumps(json.loads(body)["resource"]).encode()

    async def media(self, request: Request) -> tuple[int, list, tuple] | None:
        """(status, headers, (file, first byte, bytes)) of a plain download; None where the real server must answer."""
        if set(request.query) - _PLAIN or ".." in request.object.split("/"):
            return None
        if request.target not in self.heads:
            version = self.version
            status, headers, _ = await self.ask("GET", request.target, {"range": "bytes=0-0"}, b"")
            fields = {k.lower(): v for k, v in headers}
            if status != 206 or fields.get("x-goog-stored-content-encoding", "identity") != "identity":
                return None
            kept = [(k, v) for k, v in headers if k.lower() not in {*_HOP, "content-range"}]
            head = kept, int(fields["content-range"].partition("/")[2])
            if version == self.version:
                self.heads[request.target] = head
        else:
            head = self.heads[request.target]
        headers, size = head
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "bytes=0-"))
        if not asked or int(asked[1]) >= size:
            return None
        start, stop = int(asked[1]), min(size, int(asked[2] or size) + 1)
        try:
            file = (Path(self.server.folder) / request.bucket / request.object).open("rb", buffering=0)
        except OSError:
            return None
        if os.fstat(file.fileno()).st_size != size:  # being written over
            return None
        if "range" not in request.headers:
            return 200, headers, (file, 0, size)
        return 206, [*headers, ("Content-Range", f"bytes {start}-{stop - 1}/{size}")], (file, start, stop - start)

    async def send(self, sock, request, tallies, status, headers, body, fault) -> bool:
        """Sends an answer, whole or spoiled, and counts the bytes of its body; whether the connection stays."""
        file, start, count = body if isinstance(body, tuple) else (None, 0, len(body))
        head = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in headers
                if k.lower() not in _HOP)]  # fmt: skip
        if request.method == "HEAD":
            head += [f"{k}: {v}" for k, v in headers if k.lower() == "content-length"]
            count = 0
        else:
            head.append(f"Content-Length: {count}")
        first = count // 2 if fault["kind"] in ("short", "stall") else count
        loop = asyncio.get_running_loop()
        with file or contextlib.nullcontext():
            await loop.sock_sendall(sock, ("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
            for begin, end in ((0, first), (first, count)):
                if end == count and fault["kind"] == "short":
                    return False
                if end == count and fault["kind"] == "stall":
                    await asyncio.sleep(fault["seconds"])
                for here in range(begin, end, _PIECE):
                    size = min(_PIECE, end - here)
                    sent = size
                    try:
                        if file is None:
                            await loop.sock_sendall(sock, body[here : here + size])
                        else:
                            await loop.sock_sendfile(sock, file, start + here, size, fallback=False)
                    except BaseException:
                        sent = file.tell() - start - here if file else 0
                        raise
                    finally:
                        for tally in tallies:
                            tally[1] += sent
        return request.keep


def linger(sock: socket.socket) -> None:
    """Closing `sock` then resets the connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def obey(proxy: Proxy) -> None:
    """Carries out the commands on standard input, until that is closed."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        command, arguments = json.loads(line)
        print(json.dumps(getattr(proxy, command)(**arguments)), flush=True)


async def orphan(parent: int) -> None:
    """Waits until `parent` has died; a child that it forked may hold our standard input open."""
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


async def main(parent: int, binary: str, bucket: str, latency: float) -> None:
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    with tempfile.TemporaryDirectory(prefix="bucket-", ignore_cleanup_errors=True) as folder:
        proxy = Proxy(binary, bucket, latency, folder)
        try:
            ends = [asyncio.create_task(c) for c in (proxy.listen(), obey(proxy), orphan(parent), end.wait())]
            print(json.dumps({"port": proxy.port}), flush=True)
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            proxy.server.stop()


if __name__ == "__main__":
    asyncio.run(main(*json.loads(sys.argv[1])))
