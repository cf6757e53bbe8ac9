"""What a run pays for requests: by hand, against the counts of a real server, and in costs.json."""

import json

import numpy as np
import pytest

from maeclip_jax.data import blocks, folder, pipeline, shards
from maeclip_jax.data.shards import Asked
from maeclip_jax.run import checkpoint, saving, storage_bill, storage_traffic
from maeclip_jax.run.clock import Clock
from maeclip_jax.run.storage_prices import PRICES
from maeclip_jax.run.storage_traffic import SPILLED, DataSet
from tests.data.test_source import image, tfds, write

BLOCKS = blocks.Settings(size=64, window=16, lanes=64, ahead=4, reads=64)
RECORDS = 6000


def test_the_price_of_single_reads_and_of_blocks():
    price = PRICES["gs"]
    assert price.dollars(10_000, 0) == pytest.approx(0.05) and price.dollars(0, 1000) == pytest.approx(0.0004)
    large = DataSet(1_400_000_000, 10_000, 512)
    alone = storage_traffic.training(large, 2.8e9, None)
    assert price.dollars(0, 2.8e9) == pytest.approx(1120)
    assert alone.b > 2.8e9 and alone.bytes > 2.8e9 * (10_000 + SPILLED)
    # Without the openings: 2.8e9 / 64 reads.
    open_at_once = DataSet(60_000_000, 10_000, 512)
    found = storage_traffic.training(open_at_once, 2.8e9, BLOCKS)
    assert found.b == pytest.approx(2.8e9 / 64, rel=1e-3) and price.dollars(0, found.b) == pytest.approx(17.5, rel=1e-3)
    assert found.bytes == pytest.approx(2.8e13 + found.b * SPILLED, rel=1e-3)
    # Indices of 1.4B records are 11.2 GB, of which a process keeps 1 GiB: most single reads open a file. Blocks come
    # from regions: 21,362 of them, twice, each of 1.024 files, and the borders of lanes read some again.
    assert large.kept == pytest.approx(2**27 / 1.4e9)
    again = storage_traffic.training(large, 2.8e9, BLOCKS)
    assert again.b == pytest.approx(2.8e9 / 64 + 2 * 21_362 * 1.024 * 1.048, rel=1e-4)


def test_a_config_by_hand():
    data = DataSet(64_000, 1000, 10)
    plan = blocks.Settings(size=64, window=2, lanes=4, ahead=1, reads=8)
    held = storage_bill.Evaluation(DataSet(640, 1000, 1), every=400, batch=64, plan=plan)
    bill = storage_bill.Bill([(1.0, data)], plan, [held], 64_000, 64, 1000, 300, processes=2, workdir=True)
    rows = bill.rows(1000, 3600.0)
    # 1000 blocks, 3 borders of lanes, 9 of files; each of two processes opens ten files.
    assert rows["training data"].a == 0 and rows["training data"].b == pytest.approx(1000 + 3 + 9 * 63 / 64 + 20)
    assert rows["training data"].bytes == pytest.approx(64e6 + (1012 - 9 / 64) * SPILLED + 20 * 2**20)
    # Passes after steps 400, 800 and 1000: 32 neighbours for each of two hosts, 20 reads and an opening by each.
    assert rows["data of evaluations"].b == pytest.approx(3 * (20 + 2))
    # Saves after 300, 600, 900 and 1000.
    assert rows["checkpoints"].a == pytest.approx(4 * (41 + 2 * 3.5 + 1))
    assert rows["metrics"].a == pytest.approx(2 * (60 + 4)) and rows["signs of life"].a == pytest.approx(450)
    whole = bill.whole(3600.0)
    every = whole["whole run"]["all"]
    assert every["class A operations"] == round(sum(r.a for r in rows.values()))
    assert every["dollars"] == pytest.approx(sum(0.005 * r.a + 0.0004 * r.b for r in rows.values()) / 1000)
    assert whole["whole run"][storage_bill.EPOCH]["class B operations"] == round(rows["training data"].b)
    assert bill.rate(0.1) == pytest.approx((64 * 1000 + 1.012 * SPILLED) / 0.1 / 2, rel=0.01)
    assert [held.passes(n, 1000) for n in (0, 399, 400, 999, 1000)] == [0, 0, 1, 2, 3]
    assert storage_bill.Evaluation(held.data, 0, 64, plan).passes(1000, 1000) == 1


def test_on_disks_nothing_is_paid():
    here = DataSet(64_000, 1000, 10, remote=False)
    bill = storage_bill.Bill([(1.0, here)], None, [], 64_000, 64, 1000, 300, processes=1, workdir=False)
    assert bill.whole(3600.0) == bill.so_far(Asked(), 10, Clock()) == {"note": storage_bill.NOTHING}
    assert storage_bill.text(bill.whole(1.0)) == [
        "storage: nothing is paid for requests: the data and the workdir are on disks"
    ]


FEATURES = {"key": tfds.features.Text(), "image": image(), "texts": tfds.features.Sequence(tfds.features.Text())}


def example(i):
    return {"key": f"k{i}", "image": b"\xff\xd8" + np.random.default_rng(i).bytes(3000), "texts": [f"text {i}"]}


@pytest.fixture(scope="module")
def url(bucket, tmp_path_factory):
    root = tmp_path_factory.mktemp("bill-data")
    write(root, "pairs", FEATURES, example, train=RECORDS)
    return bucket.upload(root, "bill-data")


@pytest.fixture
def counted(fresh_bucket, monkeypatch):
    """The server, and nothing that this process remembers of it."""
    monkeypatch.setattr(shards, "SMALL", 0)
    monkeypatch.setattr(shards, "_readers", shards._Readers())
    folder._read_once.cache_clear()
    folder._copied.cache_clear()
    return fresh_bucket


@pytest.mark.parametrize("order", ["blocks", "records"])
def test_the_server_counts_what_is_estimated(counted, url, order):
    config = {
        "source": {"kind": "tfds", "dir": url, "name": "pairs"}, "order": order, "num_threads": 2,
        "blocks": {"size": 32, "window": 2, "lanes": 2, "ahead": 1, "reads": 4},
        "ops": lambda record, rng: {"draw": np.float32(rng.random())},
    }  # fmt: skip
    data = pipeline.open(config)
    counted.reset()
    meter, steps = storage_bill.Meter(), RECORDS // 40 if order == "blocks" else 8
    with data.train(batch_size=40, seed=1) as batches:
        for _ in range(steps):
            next(batches)
    counts, sums = counted.counts(), meter.sums
    of, plan = DataSet.of(data.source), data.plan(40)
    assert of.remote and of.records == RECORDS and of.files == data.source.files
    found = storage_traffic.training(of, steps * 40, plan) + storage_traffic.ahead(of, plan)
    assert counts.a_operations == 0 and found.a == 0
    if order == "blocks":
        assert counts.b_operations == pytest.approx(found.b, rel=0.2)
        used = found.bytes - found.b * SPILLED  # what comes beyond it depends on how busy both sides are
        assert sums.bytes == pytest.approx(used, rel=0.2) and sums.bytes < counts.bytes_sent < 1.2 * found.bytes
    else:  # rows that are made ahead and not taken: two batches, and chunks of two threads
        assert found.b <= counts.b_operations <= found.b + 8 * 40
    assert sums.ranges + sums.opened == pytest.approx(counts.b_operations, rel=0.05)


def test_files_that_cannot_stay_open_are_opened_again(counted, url, tmp_path, bucket, monkeypatch):
    write(tmp_path, "many", FEATURES, example, train=640)
    files = sorted((tmp_path / "many" / "1.0.0").glob("*array_record*"))
    made = shards.Shards([shards.Shard(f"{bucket.upload(tmp_path, f'many{n}')}/many/1.0.0/{files[0].name}", 0, 640)
                          for n in range(8)])  # fmt: skip
    monkeypatch.setattr(shards, "OPEN", 2)
    counted.reset()
    of = DataSet(len(made), 3000, 8)
    for begin in np.random.default_rng(0).integers(0, len(made) // 64, 80) * 64:
        made.read(int(begin), int(begin) + 64)
    found = storage_traffic.training(of, 80 * 64, blocks.Settings(64, 2, 1, 1, 8))
    assert of.kept == 1 / 4 and counted.counts().b_operations == pytest.approx(found.b, rel=0.2)


def test_a_save_and_a_restore_are_as_counted(fresh_bucket):
    import jax
    from etils import epath

    state = {f"params/a{i}": jax.numpy.ones(100) for i in range(10)}
    where = epath.Path(fresh_bucket.url("bill-run")) / "checkpoints"
    saved = saving.Checkpoints(where, keep_last=1)
    saved.save(1, state, {"step": 1})
    saved.wait()
    fresh_bucket.reset()
    saved.save(2, state, {"step": 2})
    saved.wait()
    counts, told = fresh_bucket.counts(), storage_traffic.SAVE + storage_traffic.SAVE_A_PROCESS
    assert counts.a_operations == pytest.approx(told.a, rel=0.2) and counts.b_operations == pytest.approx(
        told.b, rel=0.3
    )
    saved.close()
    fresh_bucket.reset()
    shapes = {"params": {f"a{i}": state[f"params/a{i}"] for i in range(10)}}
    checkpoint.read(where / "2", shapes)
    counts, told = fresh_bucket.counts(), storage_traffic.RESTORE
    assert counts.a_operations == pytest.approx(told.a, rel=0.2) and counts.b_operations == pytest.approx(
        told.b, rel=0.3
    )


def test_costs_json_tells_counted_from_estimated():
    data = DataSet(64_000, 1000, 10)
    bill = storage_bill.Bill([(1.0, data)], BLOCKS, [], 64_000, 64, 1000, 300, processes=4, workdir=True)
    found = json.loads(json.dumps(bill.so_far(Asked(100, 5_000_000, 10), 500, Clock({"train": 50.0}))))
    assert set(found) == {"price", "whole run", "a start anew", "so far", "bytes per second and host"}
    so_far = found["so far"]
    assert so_far["data, this process"] == {
        "class A operations": 0, "class B operations": 110, "bytes read": 5_000_000 + 10 * 2**20,
        "dollars": pytest.approx(110 * 0.0004 / 1000), "known": "measured",
        storage_bill.BEYOND: 100 * SPILLED,
    }  # fmt: skip
    assert so_far["data, the other 3 processes, as this one"]["class B operations"] == 330
    assert so_far["checkpoints"]["known"] == "estimated" and so_far["all"]["known"] == "measured and estimated"
    assert found["price"]["date"] and "pricing" in found["price"]["source"]
    a_step = 64 * 1000 + (1000 + 63 + 9) / 1000 * SPILLED  # one block and a little
    assert found["bytes per second and host"]["value"] == pytest.approx(a_step / 0.1 / 4, rel=0.01)
    workers = bill.so_far(Asked(), 500, Clock({"train": 50.0}), workers=2)["so far"]  # who count for themselves
    assert workers["training data"]["known"] == workers["all"]["known"] == "estimated"


def test_a_meter_goes_on_where_a_run_did(monkeypatch):
    meter = storage_bill.Meter([1, 2, 3])
    shards.asked.add("gs://b/x", ranges=1, bytes=10)
    shards.asked.add("/disk/x", ranges=1, bytes=10)
    assert meter.sums == (2, 12, 3)
