"""What a client asks of a bucket: requests of HTTP read from a socket, with their operation and object.

Both of Google's interfaces are understood: /storage/v1/... (JSON) and /BUCKET/OBJECT (XML).
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from urllib.parse import parse_qsl, unquote, urlsplit

_JSON = re.compile(r"/(?:(upload|download)/)?(?:resumable/)?storage/v1/b(?:/([^/]+))?(?:/(o)(?:/(.+))?)?")
_BODY_NAME = re.compile(rb'"name"\s*:\s*("(?:[^"\\]|\\.)*")')
OPERATIONS = {
    "get": ("media", "metadata"), "media": ("media",), "metadata": ("metadata",), "put": ("upload",), "list": ("list",),
    "delete": ("delete",), "*": ("media", "metadata", "upload", "list", "delete"),
}  # fmt: skip
BILLED = {"list": "a", "upload": "a", "media": "b", "metadata": "b"}  # deletions are free


class Request:
    """One request: its operation (list, metadata, media, upload, delete) and the object, or the prefix of a list."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes):
        self.method, self.target, self.headers, self.body = method, target, headers, body
        parts = urlsplit(target)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.operation, self.bucket, self.object = self._classify(parts.path)

    def _classify(self, path: str) -> tuple[str, str, str]:
        by_method = {"GET": "metadata", "HEAD": "metadata", "DELETE": "delete"}.get(self.method, "upload")
        if path.startswith("/batch/"):
            return "delete" if b"DELETE " in self.body else "metadata", "", ""
        if not path.startswith("/storage/") and not (found := _JSON.fullmatch(path)):  # the XML interface
            bucket, _, name = path.lstrip("/").partition("/")
            if self.method == "GET":
                by_method = "media" if name else "list"
            return by_method, unquote(bucket), unquote(name)
        found = _JSON.fullmatch(path)
        if not found:
            return by_method, "", ""
        where, bucket, objects, name = found.groups()
        bucket = unquote(bucket or "")
        if name:
            name = unquote(re.split("/(?:rewriteTo|copyTo|moveTo|compose|acl)(?:/|$)", name)[0])
            media = self.method == "GET" and (where == "download" or self.query.get("alt") == "media")
            return "media" if media else by_method, bucket, name
        if self.method == "GET" and (objects or not bucket):
            return "list", bucket, self.query.get("prefix", "")
        name = self.query.get("name", "")
        if objects and not name and (said := _BODY_NAME.search(self.body[:8192])):
            name = json.loads(said[1])
        return by_method, bucket, name

    @property
    def billed(self) -> str | None:
        """ "a" or "b". A resumable upload is one operation, that of its first request."""
        return None if "upload_id" in self.query else BILLED.get(self.operation)

    @property
    def keep(self) -> bool:
        """Whether the client wants the connection to stay."""
        return self.headers.get("connection", "").lower() != "close"


async def _more(sock: socket.socket, buffer: bytearray) -> None:
    data = await asyncio.get_running_loop().sock_recv(sock, 1 << 18)
    if not data:
        raise ConnectionResetError("the client has gone")
    buffer += data


async def _until(sock: socket.socket, buffer: bytearray, end: bytes) -> bytes:
    while (at := buffer.find(end)) < 0:
        await _more(sock, buffer)
    said = bytes(buffer[:at])
    del buffer[: at + len(end)]
    return said


async def _exactly(sock: socket.socket, buffer: bytearray, size: int) -> bytes:
    while len(buffer) < size:
        await _more(sock, buffer)
    said = bytes(buffer[:size])
    del buffer[:size]
    return said


async def read(sock: socket.socket, buffer: bytearray) -> Request:
    """The next request. `buffer` holds what was received and not yet used. OSError where the client has gone."""
    first, *lines = (await _until(sock, buffer, b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        await asyncio.get_running_loop().sock_sendall(sock, b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return Request(method, target, headers, await _exactly(sock, buffer, int(headers.get("content-length", 0))))
    pieces = []
    while size := int((await _until(sock, buffer, b"\r\n")).partition(b";")[0], 16):
        pieces.append(await _exactly(sock, buffer, size))
        await _exactly(sock, buffer, 2)
    while await _until(sock, buffer, b"\r\n"):  # trailers
        pass
    return Request(method, target, headers, b"".join(pieces))
