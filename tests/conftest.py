"""Tests run on 8 fake CPU devices, with compiled programs kept in .jax_cache/ between runs."""

import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `experiments` and `tests.golden`, however pytest was started
    sys.path.insert(0, str(ROOT))

# As environment, so that tests without jax do not import it; jax reads these when it is imported.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "NPROC": "128",  # threads for collectives of 8 devices, as `machine.configure_jax` gives them
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    # Tests compile more than they compute. On busy cores eight devices may take long to meet: XLA aborts after 40 s.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=600 "
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
    "JAX_TRACEBACK_FILTERING": "tracebackhide",  # no note of jax's behind the text of an error
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def _bucket():
    from maeclip_jax.bench import bucket

    if reason := bucket.missing():
        pytest.skip(reason)
    with bucket.serve("bucket") as served:
        yield served


@pytest.fixture
def bucket(_bucket, monkeypatch):
    """A running server of gs://bucket without faults, which this process and its children find; see `bench.bucket`."""
    for name, value in _bucket.env.items():
        monkeypatch.setenv(name, value)
    _bucket.reset()
    yield _bucket
    _bucket.clear()
    _bucket.latency(0.0)


@pytest.fixture
def remote(bucket, request):
    """`gs://bucket/<name of the test>`: a folder of the test's own in the bucket."""
    return bucket.path(re.sub(r"\W+", "-", request.node.name).strip("-"))


# Tiers. `make test-unit` runs what is in neither: seconds a file, under three minutes in all.
TIERS = {
    # Trains or evaluates whole runs, in this process or as commands.
    "run": (
        "run/", "test_api.py", "test_suites.py", "test_sweep.py", "test_odd.py", "test_notebooks.py", "test_main.py",
        "bench/", "test_collection.py", "interop/test_adoption.py", "parallel/test_sharding.py",
        "prepare/test_prepare.py", "prepare/test_prepare_beam.py", "prepare/builders/test_scenes.py",
    ),
    # Several processes, servers, stand-ins of a cloud, the TPU compiler.
    "pod": (
        "run/test_processes.py", "run/test_curves.py", "parallel/test_rollcall.py", "parallel/test_watchdog.py",
        "parallel/test_pod.py", "preflight/", "test_tpu_scripts.py", "run/test_resume.py",
    ),
}  # fmt: skip


def pytest_collection_modifyitems(items):
    """Marks each test with the tier of its file."""
    for item in items:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        for tier in ("pod", "run"):
            if path.startswith(TIERS[tier]):
                item.add_marker(getattr(pytest.mark, tier))
                break
