"""Data sets in a bucket: the same records, order and names as on a disk, by few requests; against a real server."""

import re

import numpy as np
import pytest

from maeclip_jax.data import folder, pipeline, shards, source
from maeclip_jax.errors import UserError
from tests.data.test_source import image, tfds, write

FEATURES = {
    "key": tfds.features.Text(),
    "image": image(),
    "texts": tfds.features.Sequence(tfds.features.Text()),
    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
}
RECORDS = 600


def example(i):
    return {"key": f"k{i}", "image": b"\xff\xd8" + bytes(3000), "texts": [f"text {i}"], "label": i % 2}


def row(record, rng):
    return {"label": np.int32(record["label"]), "draw": rng.random()}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    root = tmp_path_factory.mktemp("bucket-data")
    write(root, "pairs", FEATURES, example, train=RECORDS, val=90)
    return root


@pytest.fixture(scope="module")
def url(bucket, local):
    return bucket.upload(local, "bucket-data")


@pytest.fixture
def counted(fresh_bucket, monkeypatch):
    """The server, and nothing that this process remembers of it."""
    monkeypatch.setattr(shards, "_readers", shards._Readers())
    monkeypatch.setattr(shards, "SMALL", 0)  # large data sets are what these tests are about
    folder._read_once.cache_clear()
    folder._copied.cache_clear()
    return fresh_bucket


def config(root, split="train", **how):
    return {"source": {"kind": "tfds", "dir": str(root), "name": "pairs", "split": split}, "ops": row, **how}


def batches(config, steps, **how):
    with pipeline.train(config, **{"batch_size": 32, "seed": 3, **how}) as made:
        return [next(made) for _ in range(steps)]


def test_records_and_names_are_those_of_the_disk(counted, local, url):
    here, there = (source.make(config(root)["source"]) for root in (local, url))
    assert there.remote and len(there) == RECORDS and there.classes == here.classes == ["cat", "dog"]
    assert there[5] == here[5] and there.account == here.account
    opened = counted.counts().requests
    assert opened <= 16  # gcsfs may begin a listing beside a question about one object: 12 or 14 have been seen
    again = source.make(config(url, "val")["source"])  # an evaluation of the same data set asks for nothing
    assert again.classes == ["cat", "dog"] and counted.counts().requests == opened


def test_training_is_that_of_blocks_on_a_disk_by_few_requests(counted, local, url):
    how = {"blocks": {"size": 32, "window": 2, "lanes": 2, "reads": 8}, "num_threads": 2, "prefetch": 2}
    there = batches(config(url, **how), 25)
    here = batches(config(local, order="blocks", **how), 25)
    for a, b in zip(there, here):
        assert a["_key"].tolist() == b["_key"].tolist()
        np.testing.assert_array_equal(a["draw"], b["draw"])
    assert len({k for b in there[:18] for k in b["_key"]}) == 18 * 32  # each once an epoch
    counts = counted.counts()
    # Batches of one block: those that threads hold ready and have in hand, and those that wait for a slow loop.
    ready = (2 * 2 + 2) + (2 + 1)
    assert counts.requests <= 800 / 32 + ready + 2 * (2 + 4) + 2 * 3 + 15  # blocks, read ahead, cut by lanes, to begin
    hosts = [batches(config(url, **how), 4, process_index=h, process_count=2) for h in range(2)]
    joined = [[*a["_key"], *b["_key"]] for a, b in zip(*hosts)]
    assert joined == [b["_key"].tolist() for b in there[:4]]


def test_worker_processes_read_it_too(counted, url):
    how = {"blocks": {"size": 32, "window": 2, "lanes": 2}}
    plain = [b["_key"].tolist() for b in batches(config(url, **how), 6)]
    assert [b["_key"].tolist() for b in batches(config(url, num_workers=2, **how), 6)] == plain


def test_evaluation_reads_in_order(counted, local, url):
    seen = []
    with pipeline.evaluate(config(url, "val"), batch_size=32) as made:
        for batch in made:
            seen += [k for k, valid in zip(batch["_key"], batch["_valid"]) if valid]
    here = source.make(config(local, "val")["source"])
    assert seen == [here[i]["key"] for i in range(90)] and len(set(seen)) == 90
    assert counted.counts().requests <= 15


def test_how_it_is_read_is_said(counted, url):
    with pipeline.train(config(url), batch_size=32, seed=0) as made:
        assert re.fullmatch(
            r"blocks of 64, windows of 16 blocks, 32 lanes, 64 reads at a time, up to \d+ MB held by this process; "
            r"about 1 of 512 rows of a batch are of one block",
            made.how,
        )


def test_a_small_data_set_is_read_once(counted, local, url, monkeypatch):
    monkeypatch.setattr(shards, "SMALL", 2**22)
    made = source.make(config(url)["source"])
    before = counted.counts().requests
    data = pipeline.open(config(url), lambda _: made)
    with data.train(batch_size=32, seed=0) as batches:
        keys = [k for _ in range(60) for k in next(batches)["_key"]]
    assert len(set(keys)) == RECORDS and made[5] == source.make(config(local)["source"])[5]
    assert counted.counts().requests - before <= 4  # the file opened and read
    monkeypatch.setattr(shards, "HELD", 0)
    assert made.held and not source.make(config(url)["source"]).held  # all such together are bounded


def test_who_may_not_read_is_told(counted, url):
    made = source.make(config(url)["source"])
    counted.fault(match="array_record", operation="media", kind="403")
    said = r"cannot read gs://name/\S+array_record-00000-of-00001: access is denied \(403\); check"
    with pytest.raises(UserError, match=said):
        made[3]
    counted.clear()
    assert made[3]["key"]
    counted.fault(match="array_record", operation="media", kind="401")
    with pytest.raises(UserError, match=r"cannot read gs://name/\S+array_record-00000-of-00001: .*401"):
        made[300]


def test_faults_that_pass_are_survived(counted, url):
    plain = [b["_key"].tolist() for b in batches(config(url), 3)]
    shards._readers = shards._Readers()
    counted.fault(match="array_record", operation="get", kind="503", times=1)
    counted.fault(match="array_record", operation="get", kind="reset", times=2)
    assert [b["_key"].tolist() for b in batches(config(url), 3)] == plain


def test_a_missing_shard_is_named(counted, local, bucket):
    files = sorted((local / "pairs" / "1.0.0").glob("*-val*"))
    assert len(files) == 1
    copied = local.parent / "lacking"
    (copied / "pairs" / "1.0.0").mkdir(parents=True)
    for path in (local / "pairs" / "1.0.0").iterdir():
        if path != files[0]:
            (copied / "pairs" / "1.0.0" / path.name).write_bytes(path.read_bytes())
    for root in (copied, bucket.upload(copied, "lacking")):
        made = source.make(config(root, "val")["source"])
        with pytest.raises(
            UserError, match=f"{files[0].name} is missing, which the data set's dataset_info.json names"
        ):
            made[0]


def test_a_file_that_is_cut_or_another_is_named(local, tmp_path):
    (tmp_path / "pairs" / "1.0.0").mkdir(parents=True)
    for path in (local / "pairs" / "1.0.0").iterdir():
        (tmp_path / "pairs" / "1.0.0" / path.name).write_bytes(path.read_bytes())
    (val,) = (tmp_path / "pairs" / "1.0.0").glob("*-val*")
    (train,) = (tmp_path / "pairs" / "1.0.0").glob("*-train*")
    whole = val.read_bytes()
    train.write_bytes(whole)
    with pytest.raises(UserError, match="has 90 records and should have 101 or more: it is not the file that the data"):
        source.make(config(tmp_path)["source"])[100]
    val.write_bytes(whole[: len(whole) // 2])
    made = source.make(config(tmp_path, "val")["source"])
    with pytest.raises(UserError, match=r"\(\d+ bytes\) is not an ArrayRecord file, or not a whole one; copy"):
        made.read(0, 1)


def test_few_files_stay_open(local, monkeypatch):
    monkeypatch.setattr(shards, "_readers", shards._Readers())
    monkeypatch.setattr(shards, "OPEN", 1)
    train, val = (source.make(config(local, split)["source"]) for split in ("train", "val"))
    for i in range(3):
        assert train[i]["texts"] != val[i]["texts"]
        assert len(shards._readers._open) == 1
    assert source.make(config(local, "val[10:20]+train[5:7]")["source"]).read(9, 12) == [
        *val.read(19, 20),
        *train.read(5, 7),
    ]
