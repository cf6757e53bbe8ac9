"""What a pre-flight says of requests to storage."""

import argparse

import pytest

from experiments import clip
from maeclip_jax.preflight import storage
from maeclip_jax.run import storage_bill

FOUND = {"steps": 1000, "processes": 64, "hours": 0.1, "fits": True, "step seconds": 0.36, "chip": "v5e", "chips": 256}


def figures(monkeypatch, folder, **given):
    monkeypatch.setenv("MAECLIP_DATA_DIR", folder)
    args = argparse.Namespace(**{"record_bytes": 10_000, "data_files": 0, "workdir": ""} | given)
    return storage.figures(clip.get_config("scale=low"), args, FOUND, 11_300_000)


def test_a_preflight_says_it(monkeypatch):
    found = figures(monkeypatch, "gs://b/data")
    text = "\n".join(storage.text(found))
    for piece in (
        "storage, requests of the whole run (estimated)", "class A operations  class B operations  bytes read  dollars",
        "training data, an epoch ", "data of evaluations ", "checkpoints ", "signs of life ", "each start anew ",
        "dollars at Google Cloud Storage, Standard storage in one region, flat namespace: 0.005 dollars for 1,000",
        "transfer within the region free (cloud.google.com/storage/pricing, 2026-09-20)",
        "data: blocks of 64, windows of 16 blocks, 64 lanes; assumed: records of 10,000 bytes, 442 files",
        "MB/s of its data (estimated bytes, compiler-estimated step time)",
    ):  # fmt: skip
        assert piece in text
    # 11.3M records in blocks of 64; 63 borders of lanes, 441 of files; each of 64 hosts opens 442 files.
    an_epoch = found["whole run"][storage_bill.EPOCH]["class B operations"]
    assert an_epoch == pytest.approx(11_300_000 / 64 + 63 + 441 + 64 * 442, rel=0.01)
    monkeypatch.setitem(storage.NETWORK, "v5e", 1e6)
    assert "more than the 4.0 MB/s of its share of the pod's network" in "\n".join(
        storage.text(figures(monkeypatch, "gs://b/data"))
    )


def test_a_preflight_of_local_data(monkeypatch):
    text = "\n".join(storage.text(figures(monkeypatch, "data")))
    assert (
        "data: on a disk, for which nothing is paid" in text and "checkpoints" in text and "training data" not in text
    )
    assert storage.text(figures(monkeypatch, "data", workdir="runs/a")) == [f"storage: {storage_bill.NOTHING}"]


@pytest.mark.parametrize("places", [("data", "gs://b/data"), ("gs://b/data", "data")])
def test_a_mix_is_in_a_bucket_if_any_of_it_is(places):
    config = clip.get_config("scale=low")
    one = config.data.to_dict()
    with config.unlocked():
        config.data.mix = [
            (place, weight, one | {"source": one["source"] | {"dir": place}})
            for place, weight in zip(places, (1.0, 1.0))
        ]
    args = argparse.Namespace(record_bytes=10_000, data_files=0, workdir="runs/a")
    found = storage.figures(config, args, FOUND, 11_300_000)
    text = "\n".join(storage.text(found))
    assert found["data"] == "in a bucket" and "records of 10,000 bytes, 221 files" in text  # half of 11.3M records
    # Half of the examples of a step, and what is read between blocks.
    least = config.batch_size / 2 * 10_000 / FOUND["step seconds"] / FOUND["processes"]
    assert least < found["bytes per second and host"]["value"] < 1.5 * least
