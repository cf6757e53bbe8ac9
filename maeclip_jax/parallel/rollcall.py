"""Joins the pod: a roll call with a time limit, and a connection that stays open and reports a lost process to all.

If a host is missing, `jax.distributed.initialize` ends the process from C++ without naming the host; if one dies, it
does so after its heartbeats have failed. So process 0 first listens at the coordinator's address itself. Every other
process connects, sends its number and what it runs, and receives whether the run may start; then jax takes over the
port. The connections stay open: the end of one is noticed at once if its process dies, and within half a minute if its
host does. jax's own heartbeats remain for a process that is alive but frozen.

The line carries JSON, a line a message: a card (see `card`), then {"go": name of process 0} or {"refused": why},
then, from the process that ends first, {"end": exit code, "text": why}.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping

from maeclip_jax.errors import UserError, differences
from maeclip_jax.parallel.machine import commit, sources, versions
from maeclip_jax.parallel.pod import Pod

LOST = 75  # exit code: another host was lost, the same command continues the run (EX_TEMPFAIL of sysexits.h)
HEARTBEAT_SECONDS = 45  # after which jax considers an unresponsive process dead
GRACE_SECONDS = 3.0  # for a process to find by itself what another one ended with, or why its collective broke
_LAST_SECONDS = 8.0  # process 0 leaves last, so that jax's service outlives its users
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # 30 s until a silent host is given up


def card(settings: Mapping[str, object]) -> dict:
    """What this process runs: {"host", "runs": {name: value}}; all hosts of a run must show the same `runs`.

    In it are `settings` (flags, every leaf of the config), the commit, a digest of the sources (which also sees what is
    not committed) and the versions of the packages.
    """
    return {
        "host": socket.gethostname(),
        "runs": dict(settings) | {"commit": commit(), "sources": sources()} | versions(),
    }


def roll_call(pod: Pod, card: dict, timeout: float) -> Line:
    """The line of a pod in which everybody came within `timeout` seconds and runs the same; else UserError."""
    return _gather(pod, card, timeout) if pod.process == 0 else _call(pod, card, timeout)


class _Peer:
    """A connection and the JSON lines on it."""

    def __init__(self, connection: socket.socket):
        self.socket, self.open, self.left, self._text = connection, True, False, b""
        self.process, self.runs = None, {}
        connection.settimeout(5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict) -> None:
        """Sends a message; an error is ignored, since a reader that is gone no longer needs it."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> list[dict]:
        """The messages that are there; waits for some. Sets `open` to False at the end or at a broken message."""
        try:
            data = self.socket.recv(1 << 16)
            *lines, self._text = (self._text + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
            self.open = bool(data) and all(isinstance(m, dict) for m in messages)
        except TimeoutError:
            return []
        except (OSError, ValueError):
            self.open = False
        return messages if self.open else []

    def close(self) -> None:
        self.open = False
        self.socket.close()


def _gather(pod: Pod, card: dict, timeout: float) -> Line:
    """Process 0: waits for all others, compares their cards with its own, and tells them the outcome."""
    deadline, wrong = time.monotonic() + timeout, ""
    peers: dict[int, _Peer] = {}
    names = {0: pod.name(0, card["host"])}
    with _listen(pod) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(peers) < pod.processes - 1 and not wrong and time.monotonic() < deadline:
            for key, _ in selector.select(min(0.5, timeout)):
                if key.fileobj is server:
                    peer = _Peer(server.accept()[0])
                    selector.register(peer.socket, selectors.EVENT_READ, peer)
                    continue
                peer = key.data
                for shown in peer.read():
                    number, host = shown.get("process"), shown.get("host", "")
                    if shown.get("processes") != pod.processes or number not in range(1, pod.processes):
                        wrong = f"{host} says it is process {number} of {shown.get('processes')}"
                    elif number in peers:
                        wrong = f"{pod.name(number, host)} is there twice: {names[number]} came before"
                    else:
                        peer.process, peer.runs = number, shown.get("runs", {})
                        peers[number], names[number] = peer, pod.name(number, host)
                if not peer.open:  # it went away, and may come again
                    selector.unregister(peer.socket)
                    peer.close()
                    peers.pop(peer.process, None)
        callers = [key.data for key in selector.get_map().values() if key.data]
    if wrong:
        wrong = f"this run has {pod.processes} processes, but {wrong}; start each of 0 to {pod.processes - 1} once"
    else:
        wrong = _verdict(pod, card, peers, names, timeout)
    for caller in callers:
        caller.send({"refused": wrong} if wrong else {"go": names[0]})
    if wrong:
        raise UserError(wrong)
    return Line(pod, peers, names)


def _verdict(pod: Pod, card: dict, peers: dict[int, _Peer], names: dict[int, str], timeout: float) -> str:
    """A description of what is wrong with the processes that joined; empty if nothing is."""
    missing = [pod.name(i) for i in range(1, pod.processes) if i not in peers]
    found = [f"{names[i]}: {d}" for i in sorted(peers) if (d := differences(peers[i].runs, card["runs"]))]
    said = []
    if missing:
        here = ", ".join(names[i] for i in sorted({0, *peers}))
        said.append(
            f"{len(peers) + 1} of {pod.processes} processes came within {timeout:g} s (--join_timeout); missing: "
            f"{', '.join(missing)}; here: {here}"
        )
    if found:
        said.append(f"hosts do not run the same as {names[0]}: {' | '.join(found)}")
    return "; ".join(said)


def _listen(pod: Pod) -> socket.socket:
    """Listens at the coordinator's port, on all addresses, as jax will."""
    port = pod.place[1]
    both = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        return socket.create_server(("", port), backlog=1024, **both)
    except OSError as e:
        raise UserError(
            f"process 0 cannot listen on port {port} ({os.strerror(e.errno)}): end the run that is there, or name "
            "another port with --coordinator=host:port"
        ) from e


def _call(pod: Pod, card: dict, timeout: float) -> Line:
    """Any other process: calls process 0 until it answers, shows its card, and waits for the outcome."""
    deadline, trouble = time.monotonic() + timeout, "no answer"
    mine = {"process": pod.process, "processes": pod.processes, **card}
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection(pod.place, timeout=max(1.0, min(5.0, timeout)))
        except OSError as e:
            trouble = e.strerror or str(e)
            time.sleep(0.2)
            continue
        peer = _Peer(connection)
        if connection.getsockname() == connection.getpeername():  # no listener: the kernel connected it to itself
            peer.close()
            continue
        peer.send(mine)
        given_up = time.monotonic() + timeout + 10  # process 0 may have begun to wait later than this one
        while peer.open and time.monotonic() < given_up:
            messages = iter(peer.read())
            for said in messages:
                if "refused" in said:
                    raise UserError(str(said["refused"]))
                if said.get("go"):
                    names = {0: said["go"], pod.process: pod.name(pod.process, card["host"])}
                    return Line(pod, {0: peer}, names, messages)
        trouble = "something answers there that is not a run of this package, or it was ended"
        peer.close()
        time.sleep(0.2)
    raise UserError(
        f"{pod.name(pod.process, card['host'])} of {pod.processes} did not reach {pod.name(0)} at {pod.address} within "
        f"{timeout:g} s (--join_timeout): {trouble}; missing: {pod.name(0)}"
    )


class Line:
    """The connections of a running pod, watched by a thread: from process 0 to all others, from the others to it.

    A process that ends alone, or is lost, ends all: with its exit code and reason, or with LOST and its name.
    """

    def __init__(self, pod: Pod, peers: dict[int, _Peer], names: dict[int, str], heard: Iterable[dict] = ()):
        """`heard`: the messages that process 0 sent together with the permission to start."""
        self.pod, self._peers, self._names = pod, peers, names
        self._told = threading.Event()  # this process ends by itself and has announced why
        self._ending: tuple[int, str, float] | None = None  # exit code, reason, since when
        for said in heard:
            self._take(said, peers[0])
        threading.Thread(target=self._watch, name="line to the pod", daemon=True).start()

    def end(self, code: int, why: str = "") -> None:
        """Tells the others that this process ends; 0: as it should."""
        if self._told.is_set():
            return
        if code:
            self._told.set()
        why = " ".join(why.split())[:500]
        self._announce(code, f"{self._names[self.pod.process]} ended with code {code}: {why}")

    def _announce(self, code: int, text: str) -> None:
        if self._ending and self._ending[0]:
            return  # the first reason counts
        self._ending = (code, text, time.monotonic())
        for peer in self._peers.values():
            peer.send({"end": code, "text": text})

    def settle(self) -> None:
        """Returns after GRACE_SECONDS, or never, if another process turns out to be lost."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            if self._ending and self._ending[0] == LOST:
                time.sleep(2 * _LAST_SECONDS)
            time.sleep(0.05)

    def leave(self, code: int) -> None:
        """Exits with the code of the process that ended first; process 0 waits a few seconds for the others."""
        code, begun = (self._ending[0] if self._ending else 0) or code, time.monotonic()
        while self.pod.process == 0 and time.monotonic() < begun + _LAST_SECONDS:
            if not any(p.open for p in self._peers.values()):
                break
            time.sleep(0.05)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for i, peer in self._peers.items():
                selector.register(peer.socket, selectors.EVENT_READ, (i, peer))
            while True:
                if not selector.get_map():
                    time.sleep(0.1)
                else:
                    for key, _ in selector.select(0.2):
                        self._hear(*key.data)
                        if not key.data[1].open:
                            selector.unregister(key.fileobj)
                self._follow()

    def _hear(self, i: int, peer: _Peer) -> None:
        """Handles the messages of process i, or its loss."""
        for said in peer.read():
            self._take(said, peer)
        if not peer.open and not peer.left:
            name = self._names.get(i, self.pod.name(i))
            self._announce(LOST, f"{name} is lost: its connection ended; the same command continues the run")

    def _take(self, said: dict, peer: _Peer) -> None:
        """Handles the message that a process ends, from itself or from process 0."""
        peer.left = True
        if said.get("end"):
            self._announce(said["end"], said.get("text", ""))

    def _follow(self) -> None:
        """Ends this process for what happened to another, unless it is about to end by itself."""
        if not self._ending or not self._ending[0] or self._told.is_set():
            return
        code, text, since = self._ending
        if code != LOST and time.monotonic() < since + GRACE_SECONDS:
            return  # most errors occur on all processes: each prints its own
        print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
        self._told.set()
        threading.Thread(target=self.leave, args=(code,), daemon=True).start()
