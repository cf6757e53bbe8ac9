"""The real fake-gcs-server as a process on a folder, and connections to it."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import http.client
import signal
import socket
import subprocess
import threading
import time


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """The real server: a process on `folder`, and connections to it."""

    def __init__(self, binary: str, folder: str, proxy: str):
        self.binary, self.folder, self.proxy = binary, folder, proxy
        self.process, self.writing = None, threading.Lock()

    def start(self) -> None:
        libc = ctypes.CDLL(None)
        for _ in range(5):  # the free port may be taken before the server binds it
            self.port = free_port()
            self.idle: collections.deque = collections.deque()
            flags = {
                "scheme": "http", "backend": "filesystem", "filesystem-root": self.folder, "host": "127.0.0.1",
                "port": self.port, "external-url": f"http://{self.proxy}", "public-host": self.proxy,
                "log-level": "error",
            }  # fmt: skip
            self.process = subprocess.Popen(
                [self.binary, *(f"-{k}={v}" for k, v in flags.items())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG: it dies with this process
            )  # fmt: skip
            end = time.monotonic() + 20
            while time.monotonic() < end and self.process.poll() is None:
                with contextlib.suppress(ConnectionError):
                    if self.ask("GET", "/storage/v1/b", {}, b"")[0] == 200:
                        return
                time.sleep(0.02)
            self.stop()
        raise RuntimeError("fake-gcs-server does not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """Between two writes: killed in the middle of one, it leaves a file of which it knows nothing, and answers 404
        to every list of its folder, while a write to real storage is done or not done."""
        with self.writing:
            self.stop()
            self.start()

    def ask(self, method: str, target: str, headers: dict, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """(status, headers, body) of its answer. ConnectionError while it is not there."""
        with contextlib.nullcontext() if method in ("GET", "HEAD") else self.writing:  # it writes one at a time, too
            return self._ask(method, target, headers, body)

    def _ask(self, method, target, headers, body):
        idle, headers = self.idle, {"host": self.proxy, **headers}
        while True:
            try:
                connection, used = idle.pop(), True
            except IndexError:
                connection, used = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300), False
            try:
                connection.request(method, target, body, headers)
                answer = connection.getresponse()
                said = answer.status, answer.getheaders(), answer.read()
                break
            except (OSError, http.client.HTTPException) as e:
                connection.close()
                # It closes some connections after a failure, and says nothing. Whether that is noticed in sending,
                # as a reset or as an end depends on when it is.
                if not (used and isinstance(e, (ConnectionResetError, BrokenPipeError))):
                    raise ConnectionError(str(e)) from e
        idle.append(connection)
        return said
