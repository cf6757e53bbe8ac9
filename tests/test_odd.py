"""Odd files, all of them, the whole way: prepared and as they are, through the pipeline and into training steps.

Nothing crashes, nothing is silently lost: what goes in is what comes out plus what is counted and named.
"""

import json
import os
from collections import Counter
from pathlib import Path

import jax
import pytest

from maeclip_jax.cli import guarded
from maeclip_jax.data import decode, pipeline, tokenizer
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare import command
from maeclip_jax.run import train
from tests import runs, torture
from tests.golden import ROOT

ODD = Path(os.environ.get("MAECLIP_SHARED_DATA", ROOT.parent / "shared" / "data")) / "odd"
NOTES = "manifest.jsonl"
OPS = 'decode|random_resized_crop(32,area=(0.5,1))|pick_caption|tokenize(16)|keep("image","text")'

pytestmark = pytest.mark.skipif(
    not (ODD / NOTES).exists(), reason=f"no odd files at {ODD}; set MAECLIP_SHARED_DATA to the folder that holds odd/"
)


class Files:
    """The files as they are: a source of encoded bytes, each under its name."""

    name = "odd"

    def __init__(self):
        self.notes = [json.loads(line) for line in (ODD / NOTES).read_text().splitlines()]

    def __len__(self):
        return len(self.notes)

    def __getitem__(self, i):
        file = self.notes[i]["file"]
        return dict(key=file, image=(ODD / file).read_bytes(), texts=[self.notes[i]["note"]])


@pytest.fixture(scope="module")
def refused():
    """{name: kind} of the files that hold no picture, each decoded alone."""
    found = {}
    files = Files()
    for record in (files[i] for i in range(len(files))):
        try:
            decode.decode(record["image"])
        except BadRecord as e:
            found[record["key"]] = e.kind
    assert 5 < len(found) < 40
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of the data set that `prepare` makes of them."""
    out = tmp_path_factory.mktemp("odd")
    columns = ["--image_column=file", "--caption_column=note", "--workers=1"]
    assert command.main([f"--src={ODD}", f"--out={out}", "--name=odd", *columns]) == 0
    return out / "odd" / "1.0.0"


def one_epoch(source, batch_size=16, hosts=1):
    """(keys of the examples, bad records as (key, kind)) of the first pass over `source`, all hosts together."""
    whole = len(source) if not isinstance(source, dict) else pipeline.open(dict(source=source, ops=OPS)).length
    keys, bad = [], []
    words = tokenizer.make(dict(type="bytes"))
    config = dict(source=source, ops=OPS, max_bad=0.9)
    parts = [
        pipeline.train(config, batch_size=batch_size, seed=0, tokenizer=words, process_index=h, process_count=hosts)
        for h in range(hosts)
    ]
    try:
        while len(keys) < whole:
            for part in parts:
                batch = next(part)
                assert batch["image"].shape[1:] == (32, 32, 3) and batch["_bad"].sum() == len(batch["_bad_names"])
                keys += list(batch["_key"])
                bad += [tuple(name.split(": ")[:2]) for name in batch["_bad_names"]]
    finally:
        for part in parts:
            part.close()
    return keys[:whole], bad


def test_prepared_they_are_all_kept_or_named(prepared, refused):
    dropped = {r["key"]: r["kind"] for r in map(json.loads, (prepared / "account.jsonl").read_text().splitlines())}
    records = json.loads((prepared / "manifest.json").read_text())["records"]
    assert dropped.keys() == refused.keys()
    assert records["in"] == len(Files()) == records["kept"] + len(dropped)


def test_what_was_prepared_comes_through_the_pipeline_whole(prepared, refused):
    source = dict(kind="tfds", dir=str(prepared), name="")
    keys, bad = one_epoch(source)
    assert not bad
    assert Counter(keys) == Counter(n["file"] for n in Files().notes if n["file"] not in refused)


def test_as_they_are_every_one_is_seen_or_counted(refused):
    """One epoch: each good file once as itself; each refused one is named once, and replaced by a good one."""
    files = Files()
    good = [n["file"] for n in files.notes if n["file"] not in refused]
    keys, bad = one_epoch(files)
    assert all(refused[k] == kind for k, kind in bad)
    instead = Counter(keys) - Counter(good)
    assert set(keys) == set(good) and sum(instead.values()) == len(refused)
    assert len(instead) > len(refused) / 2  # from everywhere
    # The last batch of the epoch goes on into the next one, so a few more may be named than an epoch has.
    named = Counter(k for k, _ in bad)
    assert named.keys() == refused.keys() and named.total() - len(refused) <= 16


def test_hosts_see_the_same():
    alone = one_epoch(Files(), batch_size=16)
    assert one_epoch(Files(), batch_size=16) == alone
    keys, bad = one_epoch(Files(), batch_size=16, hosts=2)
    assert keys == alone[0] and sorted(bad) == sorted(alone[1])


def test_evaluation_leaves_out_what_it_cannot_use(refused):
    files = Files()
    config = dict(source=files, ops=OPS.replace("random_resized_crop(32,area=(0.5,1))", "resize(32)"), max_bad=0.9)
    with pipeline.evaluate(config, batch_size=10, tokenizer=tokenizer.make(dict(type="bytes"))) as batches:
        rows = [(k, bool(m), int(b)) for x in batches for k, m, b in zip(x["_key"], x["_valid"], x["_bad"])]
    used = [k for k, mask, _ in rows if mask]
    assert used == [n["file"] for n in files.notes if n["file"] not in refused]  # each once, in order
    assert {k for k, mask, bad in rows if bad} == refused.keys() and sum(b for *_, b in rows) == len(refused)
    assert len(used) + len(refused) == len(files)


def test_training_on_them(refused, tmp_path):
    """Six steps are an epoch of 95 files: finite, every replacement counted, examples as the pipeline has them."""
    config = runs.config("objective=clip,steps=6,save=6,evals=false", **{"data.max_bad": 0.9, "data.ops": OPS})
    with config.ignore_type():
        config.data.source = Files()
    assert guarded(lambda: train.run(config, tmp_path, devices=jax.devices()[:1])) == 0
    with pipeline.train(config.data, batch_size=16, seed=0, tokenizer=tokenizer.of(config)) as batches:
        want = [next(batches) for _ in range(6)]
    assert torture.examples(tmp_path) == [list(b["_key"]) for b in want]
    assert runs.series(tmp_path, "train/bad_records")[6] == sum(int(b["_bad"].sum()) for b in want) >= len(refused)
    assert runs.series(tmp_path, "train/skipped")[6] == 0
