"""Which pod a process belongs to, found without waiting for anybody; and what it shows at the roll call."""

import http.server
import threading

import pytest
from ml_collections import ConfigDict

from maeclip_jax.cli import agreed
from maeclip_jax.errors import UserError, differences
from maeclip_jax.parallel import pod, rollcall
from maeclip_jax.parallel.machine import commit, sources
from maeclip_jax.parallel.pod import find
from maeclip_jax.parallel.rollcall import card

VARIABLES = (
    "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID",
    "MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT", "TPU_SKIP_MDS_QUERY", "GCE_METADATA_IP",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No word of a TPU, unless the test says it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(k, v) for k, v in values.items()]


def test_one_host_joins_nobody(environment):
    assert find() is None
    environment(TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")  # as on a notebook's TPU
    assert find() is None
    environment(TPU_WORKER_HOSTNAMES="a,b", TPU_WORKER_ID="0")
    assert find(processes=1) is None


def test_flags_say_it():
    found = find("host:1234", 4, 2)
    assert (found.place, found.processes, found.process) == (("host", 1234), 4, 2)
    assert find("[::1]:1234").place == ("::1", 1234)
    with pytest.raises(UserError, match="--processes=2 needs --coordinator=host:port of process 0"):
        find(processes=2)
    with pytest.raises(UserError, match="--process=4 of --processes=4; valid: 0 to 3"):
        find("host:1", 4, 4)


def test_the_environment_of_a_slice_and_of_several(environment):
    environment(TPU_WORKER_HOSTNAMES="t-0,t-1,t-2", TPU_WORKER_ID="1")
    found = find()
    assert (found.address, found.processes, found.process) == ("t-0:8476", 3, 1)
    assert found.name(2) == "process 2 (t-2)"
    environment(MEGASCALE_NUM_SLICES="2", MEGASCALE_SLICE_ID="1", MEGASCALE_COORDINATOR_ADDRESS="first:8080",
                JAX_COORDINATOR_PORT="99")  # fmt: skip
    found = find()
    assert (found.address, found.processes, found.process) == ("first:99", 6, 4)
    assert (found.name(4), found.name(1)) == ("process 4 (t-1)", "process 1")
    environment(TPU_WORKER_ID="")
    with pytest.raises(UserError, match=r"TPU_WORKER_ID='' of 3 workers \(t-0,t-1,t-2\); valid: 0 to 2"):
        find()


def test_the_metadata_server_of_a_tpu_machine(environment, monkeypatch):
    answers = {
        "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
        "agent-worker-number": "1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '0'\n",
    }
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.rpartition("/")[2]
            asked.append(self.headers["Metadata-Flavor"])
            self.send_response(200 if key in answers else 404)
            self.end_headers()
            self.wfile.write(answers.get(key, "").encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment(GCE_METADATA_IP=f"localhost:{server.server_port}")
        monkeypatch.setattr(pod, "accelerator", lambda: "tpu")
        found = find()
        assert (found.address, found.processes, found.process) == ("10.0.0.5:8476", 4, 1)
        assert set(asked) == {"Google"}
        asked.clear()
        assert find(ask=False) is None
        monkeypatch.setattr(pod, "accelerator", lambda: "gpu")
        assert find() is None and not asked
        server.shutdown()
    monkeypatch.setattr(pod, "accelerator", lambda: "tpu")
    assert find() is None  # nobody answers any more


def test_the_card_shows_all_that_must_be_equal(monkeypatch):
    config = ConfigDict(dict(seed=0, optim=dict(lr=0.1, caps=(("a", 1.0),))))
    runs = card(agreed(config, {"mode": "train", "workdir": "gs://b/run"}))["runs"]
    assert runs["--workdir"] == "gs://b/run" and runs["config.optim.lr"] == 0.1
    assert {"commit", "sources", "jax", "python", "flax"} <= runs.keys()
    assert differences(runs, dict(runs)) == ""
    config.optim.lr = 0.2
    monkeypatch.setattr(rollcall, "sources", lambda: "changed")
    other = card(agreed(config, {"mode": "train", "workdir": "gs://b/run"}))["runs"]
    assert differences(other, runs) == f"config.optim.lr is 0.2, not 0.1; sources is changed, not {runs['sources']}"
    many = {str(i): i for i in range(6)}
    assert differences({}, many).endswith("3 is absent, not 3; and 2 more")


def test_commit_and_sources_are_told():
    assert len(commit()) == 12 or commit() == "unknown"
    assert len(sources()) == 12 and sources() == sources()
