"""The bucket on this machine: clients find it, requests are counted, faults come and go, it ends with its parent."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from etils import epath


def test_files_go_in_and_out_through_the_clients_of_a_run(bucket, remote, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("hello")
    prefix = remote.removeprefix("gs://bucket/")
    bucket.upload(tmp_path, prefix)
    assert bucket.names(prefix) == [f"{prefix}/a/x.txt"] and bucket.counts().total == 0  # not counted: ours
    assert (epath.Path(remote) / "a" / "x.txt").read_text() == "hello"
    import tensorstore

    store = tensorstore.KvStore.open(f"{remote}/a/").result()
    store.write("y.bin", b"there").result()
    assert bucket.read(f"{prefix}/a/y.bin") == b"there"
    counts = bucket.counts()
    assert counts.agents["tensorstore"] == {"upload": 1} and counts.objects[f"{prefix}/a/x.txt"]["media"] == 1
    assert counts.total == len(counts.log) == sum(counts.requests.values()) and counts.sent >= 5
    assert counts.a >= 1 and counts.b >= 1 and counts.received >= 5
    bucket.download(prefix, tmp_path / "back")
    assert (tmp_path / "back" / "a" / "y.bin").read_bytes() == b"there"
    bucket.delete(prefix)
    assert bucket.names(prefix) == []


def _get(bucket, name: str) -> bytes:
    url = f"{bucket.url}/storage/v1/b/bucket/o/{name}?alt=media"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def test_faults_hit_what_they_name_and_end(bucket):
    bucket.write("f.bin", b"x" * 100_000)
    bucket.fault("503", match=r"^f\.bin$", operation="get", times=1)
    with pytest.raises(urllib.error.HTTPError) as found:
        _get(bucket, "f.bin")
    assert found.value.code == 503 and json.loads(found.value.read())["error"]["code"] == 503
    assert len(_get(bucket, "f.bin")) == 100_000
    bucket.fault("403", match="other")
    bucket.fault("short", times=1)
    with pytest.raises(http.client.IncompleteRead, match="50000 bytes read"):
        _get(bucket, "f.bin")
    bucket.fault("reset", operation="media", times=1)
    with pytest.raises(OSError):
        _get(bucket, "f.bin")
    bucket.fault("stall", times=1, seconds=0.5)
    start = time.monotonic()
    assert len(_get(bucket, "f.bin")) == 100_000 and time.monotonic() - start >= 0.5
    bucket.latency(0.2)
    start = time.monotonic()
    assert len(_get(bucket, "f.bin")) == 100_000 and time.monotonic() - start >= 0.2
    assert [row[4] for row in bucket.counts().log] == [503, 200, 200, 0, 200, 200]
    with pytest.raises(ValueError, match="unknown kind 'tired' of a fault; valid: 401, 403"):
        bucket.fault("tired")
    with pytest.raises(ValueError, match="unknown operation 'look' of a fault; valid: get, put"):
        bucket.fault("503", operation="look")


def test_a_server_goes_away_comes_back_and_restarts_with_its_objects(bucket):
    bucket.write("kept.txt", b"kept")
    bucket.stop_for(0.5)
    with pytest.raises(OSError):
        _get(bucket, "kept.txt")
    time.sleep(0.8)
    assert _get(bucket, "kept.txt") == b"kept"
    bucket.restart()
    assert _get(bucket, "kept.txt") == b"kept"


PARENT = """
import sys, time
from maeclip_jax.bench import bucket
with bucket.serve("parent") as b:
    print(b.url, b._server, flush=True)
    time.sleep(60)
"""


def test_a_killed_parent_takes_proxy_and_server_along(bucket):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=os.environ.copy())
    urls = parent.stdout.readline().split()
    assert urls and all(_answers(url) for url in urls)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while any(_answers(url) for url in urls) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_answers(url) for url in urls)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/storage/v1/b", timeout=5).close()
    except OSError:
        return False
    return True
