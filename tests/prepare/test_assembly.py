import concurrent.futures
import fcntl
import json
import os
import shutil
from collections import Counter

import pair_sources
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare import assembly, crawl, image_text, packing, unit_folder
from maeclip_jax.prepare.image_text import Storing


class _Bar:
    """A progress bar that remembers."""

    def __init__(self, total):
        self.total, self.n = total, 0

    def update(self, n):
        self.n += n

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def source(tmp_path):
    """Two splits, and keys that occur in several units; the last unit's only record is such a one."""
    names = [0, 1, 2, 3, 0, 4, 5, 1, 6, 7, 0]
    splits = ["train" if n % 3 else "val" for n in names]
    rows = [{"image": f"{n}.jpg", "caption": f"c{i}", "split": s} for i, (n, s) in enumerate(zip(names, splits))]
    return pair_sources.table(tmp_path / "src", rows, pictures=8)


@pytest.fixture(autouse=True)
def few_records_a_shard(monkeypatch):
    monkeypatch.setattr(packing, "count", lambda records, size: max(1, records // 2))


def _run(source, out, workers=1, bars=None, **options):
    plan = crawl.plan(str(source), unit_records=2)

    def progress(total, what):
        bar = _Bar(total)
        (bars if bars is not None else []).append(bar)
        return bar

    source = {"format": plan.reading.format, "root": plan.reading.root, "files": plan.files}
    arguments = {"name": "pairs", "max_bad": 0.5, "identity": {"options": {}, "source": source}} | options
    out.parent.mkdir(parents=True, exist_ok=True)
    return assembly.run(plan, Storing(24), out=out, workers=workers, progress=progress, **arguments)


def test_shards_are_a_tfds_data_set_in_the_order_of_the_source(source, tmp_path):
    import tensorflow_datasets as tfds

    _run(source, tmp_path / "out" / "1.0.0")
    builder = tfds.builder_from_directory(str(tmp_path / "out" / "1.0.0"))
    assert builder.info.full_name == "pairs/1.0.0"
    found = {s: [e["key"].decode() for e in builder.as_data_source(s)] for s in ("train", "val")}
    assert found == {"train": ["1.jpg", "2.jpg", "4.jpg", "5.jpg", "7.jpg"], "val": ["0.jpg", "3.jpg", "6.jpg"]}
    example = builder.as_data_source("val")[1]
    assert example["image"].shape == (24, 32, 3) and example["texts"] == [b"c3"]
    assert len(builder.as_data_source("train[:40%]")) == 2


def test_repeated_keys_are_dropped_from_later_units_and_counted(source, tmp_path):
    out = tmp_path / "out" / "1.0.0"
    tree = _run(source, out)
    records = tree["records"]
    assert records == {
        "in": 11, "kept": 8, "kept_by_split": {"train": 5, "val": 3}, "dropped": 3,
        "dropped_by_kind": {"duplicate_key": 3}, "failed_downloads": {}, "suspects": {},
    }  # fmt: skip
    dropped = [json.loads(line) for line in (out / "account.jsonl").read_text().splitlines()]
    assert Counter(d["key"] for d in dropped) == {"0.jpg": 2, "1.jpg": 1}
    assert tree["splits"]["val"]["records"] == 3 and tree["totals"]["rows"] == 11
    assert sum(s["records"] for split in tree["splits"].values() for s in split["shards"]) == 8


def test_the_result_does_not_depend_on_the_number_of_workers(source, tmp_path):
    bars = []
    for workers in (1, 3):
        _run(source, tmp_path / f"{workers}" / "1.0.0", workers, bars)
    assert pair_sources.digests(tmp_path / "1") == pair_sources.digests(tmp_path / "3")
    assert [(b.total, b.n) for b in bars] == [(11, 11), (8, 8)] * 2  # records in, records in shards


class _Killed(BaseException):
    pass


def _stop_before(rename_number: int, monkeypatch, *args) -> bool:
    """Runs until that rename and stops there, as a kill would; False if the run was finished before."""
    rename, left = os.rename, [rename_number]

    def stop(a, b):
        if not left[0]:
            raise _Killed
        left[0] -= 1
        rename(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        try:
            _run(*args)
        except _Killed:
            return True
    return False


def test_a_run_stopped_anywhere_continues_to_the_same_bytes(source, tmp_path, monkeypatch):
    """Only renames make progress, so stopping before each of them is stopping anywhere."""
    _run(source, tmp_path / "whole" / "1.0.0")
    expected = pair_sources.digests(tmp_path / "whole")
    stops = 0
    while _stop_before(stops, monkeypatch, source, tmp_path / f"{stops}" / "1.0.0"):
        assert not (tmp_path / f"{stops}" / "1.0.0").exists()
        _run(source, tmp_path / f"{stops}" / "1.0.0")
        assert pair_sources.digests(tmp_path / f"{stops}") == expected
        stops += 1
    assert stops >= 1 + 6 + 2 * 2 + 3 * 2 + 1  # identity, units, rewritten units, shards and notes of them, the whole


def test_a_run_stopped_many_times_continues_to_the_same_bytes(source, tmp_path, monkeypatch):
    _run(source, tmp_path / "whole" / "1.0.0")
    stops = 0
    while _stop_before(stops % 4, monkeypatch, source, tmp_path / "parts" / "1.0.0"):
        stops += 1
    assert stops >= 8
    assert pair_sources.digests(tmp_path / "parts") == pair_sources.digests(tmp_path / "whole")


def test_finished_units_are_not_done_again(source, tmp_path, monkeypatch):
    out = tmp_path / "out" / "1.0.0"
    with pytest.raises(UserError, match="3 of 11 records are bad"):
        _run(source, out, max_bad=0.1)
    assert not out.exists()
    monkeypatch.setattr(image_text, "outcomes", None)
    bars = []
    assert _run(source, out, bars=bars)["records"]["kept"] == 8
    assert bars[0].n == 11


def test_many_bad_records_end_the_work_early(source, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "_EARLY", 4)
    shutil.rmtree(source / "images")
    with pytest.raises(UserError, match=r"4 of 4 records are bad \(missing_image 4\)"):
        _run(source, tmp_path / "out" / "1.0.0")


def test_two_processes_do_not_write_one_data_set(source, tmp_path):
    out = tmp_path / "out" / "1.0.0"
    (tmp_path / "out" / "1.0.0.incomplete").mkdir(parents=True)
    with open(tmp_path / "out" / "1.0.0.incomplete" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process; valid: wait for it"):
            _run(source, out)
    _run(source, out)


def test_another_source_or_other_options_do_not_continue(source, tmp_path):
    out = tmp_path / "out" / "1.0.0"
    with pytest.raises(UserError):
        _run(source, out, max_bad=0.1)
    with open(source / "captions.jsonl", "a") as file:
        file.write('{"image": "2.jpg", "caption": "new"}\n')
    with pytest.raises(UserError, match=r"source file 'captions.jsonl', which has changed"):
        _run(source, out)


def test_a_worker_that_is_killed_is_said_in_one_line(source, tmp_path, monkeypatch):
    class Pool:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            future = concurrent.futures.Future()
            future.set_exception(concurrent.futures.process.BrokenProcessPool())
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match=r"one of 2 workers was killed .*the same command again, which continues"):
        _run(source, tmp_path / "out" / "1.0.0", workers=2)


def test_a_process_that_outlived_its_run_changes_nothing(source, tmp_path):
    plan = crawl.plan(str(source), unit_records=2)
    job = unit_folder.Job(plan.reading, Storing(), str(tmp_path / "units"))
    (tmp_path / "units").mkdir()
    unit_folder.work(job, plan.units[0], lambda n: None)
    before = pair_sources.digests(tmp_path / "units")
    unit_folder.work(job, plan.units[0], lambda n: None)
    assert pair_sources.digests(tmp_path / "units") == before
