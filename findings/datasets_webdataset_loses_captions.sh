#!/usr/bin/env bash
# datasets, load_dataset("webdataset"): one archive decides which fields all have; captions elsewhere are dropped.
#
# The first five samples of one tar, the first one of the split that was named last, give the features of every split.
# A field that they lack is left out of all other samples without a word, and one that the others lack is None there.
# So training pairs (jpg, txt) lose all captions where the test split is pictures alone (load_dataset of a folder with
# train-0000.tar and test-0000.tar too: test comes last); where the first shard has captions as json, those of later
# shards as txt are gone; so is a mask that begins with the sixth sample. One would expect the captions, or an error:
# samples whose fields differ are refused as no webdataset, but only among those five, and a parquet or json file with a
# column more than the first is refused. webdataset's own reader yields what is there. Pass features with every field
# that any archive has (what a sample lacks is None then), or load each split by itself and look at its column_names.
#
# datasets 5.2.0, webdataset 1.0.2, pyarrow 26.0.1, Pillow 13.0.0, numpy 2.4.6, Python 3.11.7, 2026-11-30, seen
# (samples that have a caption, of 8 pairs in train; "test" is 8 pictures without a text):
#   train alone: 8; train and test: 0; test and train: 8; train and test, streaming: 0; webdataset's own reader: 8
#   a split of 8 with txt, then 8 with json: 8 txt, 0 json; the other way round: 0 txt, 8 json
#   captions from the sixth sample on: 0 of 3; from the fifth on: ValueError
#   train and test with features: 8
#   the same as parquet, a column more in train than in test: 8 captions; in the second file than in the first: refused
# Fails if captions are kept, or if the ways out do not keep them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile \
    datasets==5.2.0 webdataset==1.0.2 pyarrow==26.0.1 Pillow==13.0.0 numpy==2.4.6
cd "$folder"
HF_HOME=$folder/home HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import io
import tempfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

datasets.disable_progress_bars()
buffer = io.BytesIO()
Image.new("RGB", (8, 8)).save(buffer, "JPEG")
picture = buffer.getvalue()


def archive(name, **fields):
    """8 samples; a field's rule gives the value of sample i, or None for a sample without it."""
    with webdataset.TarWriter(name) as writer:
        for i in range(8):
            sample = {"__key__": f"{i:05}", "jpg": picture, **{field: rule(i) for field, rule in fields.items()}}
            writer.write({field: value for field, value in sample.items() if value is not None})


def load(files, kind="webdataset", **options):
    options = {"cache_dir": tempfile.mkdtemp(dir="."), **options}
    return datasets.load_dataset(kind, data_files=files, **options)


def captions(split, field="txt"):
    return sum(bool(sample.get(field)) for sample in split)


archive("train.tar", txt=lambda i: f"caption {i}")
archive("test.tar")
archive("json.tar", json=lambda i: {"caption": f"caption {i}"})
archive("sixth.tar", txt=lambda i: f"caption {i}" if i >= 5 else None)
archive("fifth.tar", txt=lambda i: f"caption {i}" if i >= 4 else None)

both = {"train": "train.tar", "test": "test.tar"}
alone = captions(load({"train": "train.tar"})["train"])
lost = captions(load(both)["train"])
turned = captions(load(dict(reversed(both.items())))["train"])
streamed = captions(load(both, streaming=True)["train"])
own = captions(webdataset.WebDataset("train.tar", shardshuffle=False))
print(f"#   train alone: {alone}; train and test: {lost}; test and train: {turned};",
      f"train and test, streaming: {streamed}; webdataset's own reader: {own}")

kinds = []
for files in (["train.tar", "json.tar"], ["json.tar", "train.tar"]):
    split = load(files)["train"]
    kinds.append((captions(split), captions(split, "json"), len(split)))
(a, b, _), (c, d, _) = kinds
print(f"#   a split of 8 with txt, then 8 with json: {a} txt, {b} json; the other way round: {c} txt, {d} json")

sixth = captions(load("sixth.tar")["train"])
try:
    fifth = captions(load("fifth.tar")["train"])
except ValueError as error:
    fifth = type(error).__name__
print(f"#   captions from the sixth sample on: {sixth} of 3; from the fifth on: {fifth}")

string = datasets.Value("string")
whole = datasets.Features({"__key__": string, "__url__": string, "jpg": datasets.Image(), "txt": string})
kept = captions(load(both, features=whole)["train"])
print(f"#   train and test with features: {kept}")

pq.write_table(pa.table({"key": range(8), "txt": [f"caption {i}" for i in range(8)]}), "train.parquet")
pq.write_table(pa.table({"key": range(8)}), "test.parquet")
table = captions(load({"train": "train.parquet", "test": "test.parquet"}, "parquet")["train"])
try:
    more = captions(load(["test.parquet", "train.parquet"], "parquet")["train"])
except datasets.exceptions.DatasetGenerationError:
    more = "refused"
print(f"#   the same as parquet, a column more in train than in test: {table} captions;",
      f"in the second file than in the first: {more}")
assert (alone, lost, turned, streamed, own) == (8, 0, 8, 0, 8)
assert kinds == [(8, 0, 16), (0, 8, 16)] and (sixth, fifth) == (0, "ValueError")
assert (kept, table, more) == (8, 8, "refused")
PYTHON
