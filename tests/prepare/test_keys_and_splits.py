"""Which members are a record, and of which split it is: one rule for all formats."""

import gzip
import json

import dump_sources
import pair_sources
import pytest

from maeclip_jax.prepare import crawl
from maeclip_jax.prepare.formats import names


def test_keys_with_dots_are_not_lost(tmp_path):
    jpg = [pair_sources.picture(i) for i in range(3)]
    names = ["img/cat.1", "img/cat.2", "img/ok"]
    members = [m for n, j in zip(names, jpg) for m in ((f"{n}.jpg", j), (f"{n}.txt", n.encode()))]
    found = dump_sources.read(pair_sources.write_tar(tmp_path / "x.tar", members))
    assert [(r.key, r.image, r.texts) for r in found] == [(n, j, (n,)) for n, j in zip(names, jpg)]


def test_a_picture_and_a_text_under_longer_names_are_one_sample(tmp_path):
    jpg = pair_sources.picture(0)
    members = [("7.image.jpg", jpg), ("7.text.txt", b"a"), ("8.jpg", jpg), ("8.mask.png", jpg), ("8.txt", b"b"),
               ("9.a.jpg", jpg), ("9.b.jpg", jpg), ("9.txt", b"c"), ("5.jpg", jpg), ("5.1.txt", b"d"),
               ("5.2.txt", b"e"), ("4.v2.jpg", jpg)]  # fmt: skip
    found = dump_sources.read(pair_sources.write_tar(tmp_path / "x.tar", members))
    assert [(r.key, k, r.texts, r.extras) for r, k in zip(found, dump_sources.kinds(found))] == [
        ("7", "", ("a",), 0), ("8", "", ("b",), 1), ("9", "several_images", (), 0), ("5", "", ("d", "e"), 0),
        ("4.v2", "no_caption", (), 0),
    ]  # fmt: skip
    assert "9.a.jpg, 9.b.jpg" in found[2].error.detail


def test_members_that_are_no_neighbours_are_paired(tmp_path):
    members = [m for i in range(3) for m in pair_sources.pair(f"{i}", i)]
    members = sorted(members, key=lambda m: (m[0][2:], m[0]))  # all pictures, all jsons, all texts
    found = dump_sources.read(pair_sources.write_tar(tmp_path / "x.tar", members))
    assert [(r.key, r.texts) for r in found] == [(f"{i}", (f"caption of {i}",)) for i in range(3)]


def test_companions_of_a_mac_are_skipped(tmp_path):
    members = [("./._0.jpg", b"mac"), ("./0.jpg", pair_sources.picture(0)), ("./._0.txt", b"mac"), ("./0.txt", b"a")]
    (raw,) = dump_sources.read(pair_sources.write_tar(tmp_path / "x.tar", [*members, ("__MACOSX/0.jpg", b"mac")]))
    assert raw.key == "0" and raw.texts == ("a",) and not raw.error


def test_equal_keys_in_two_shards_are_two_records(tmp_path):
    for name in ("a", "b"):
        pair_sources.write_tar(tmp_path / "src" / f"{name}.tar", pair_sources.pair("0", ord(name)))
    tree, _, found = dump_sources.prepared(tmp_path / "src", tmp_path / "out")
    assert tree["records"]["kept"] == 2 and tree["records"]["dropped"] == 0
    assert [r["source"] for r in found["train"]] == [b"a.tar", b"b.tar"]


def test_splits_are_told_by_folders_and_names(tmp_path, capsys):
    for i, path in enumerate(("train/0.tar", "val/0.tar", "test-0001.tar")):
        pair_sources.write_tar(tmp_path / "src" / path, pair_sources.pair(f"{i}", i))
    _, _, found = dump_sources.prepared(tmp_path / "src", tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "val": 1, "test": 1}
    assert "Names tell the splits test, train, val (test-0001.tar, val); --ignore_split" in capsys.readouterr().err
    _, _, found = dump_sources.prepared(tmp_path / "src", tmp_path / "all", "--ignore_split")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 3}


def test_hub_names_of_parquet_and_tables_by_split(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for i, split in enumerate(("train", "validation", "test")):
        table = pa.table({"image": [{"bytes": pair_sources.picture(i), "path": None}], "text": ["a"]})
        (tmp_path / "hub").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
        pair_sources.table(tmp_path / "folder" / split, [{"file_name": "images/0.jpg", "text": "a"}], "metadata.csv")
    assert crawl.plan(str(tmp_path / "hub")).splits == ("test", "train", "val")
    plan = crawl.plan(str(tmp_path / "folder"))
    assert plan.splits == ("test", "train", "val") and plan.reading.format == "table"
    assert not any(raw.error for raw in dump_sources.read(tmp_path / "folder"))


def test_a_field_split_is_one_rule_for_all_formats(tmp_path):
    rows = [row | {"split": "val" if i else "train"} for i, row in enumerate(dump_sources.downloads(2, 0))]
    for layout in dump_sources.LAYOUTS:
        src = dump_sources.img2dataset(tmp_path / layout, layout, [rows])
        assert [raw.split for raw in dump_sources.read(src)] == ["train", "val"], layout
        assert [raw.split for raw in dump_sources.read(src, split_column=None)] == ["train", "train"], layout


def _tar_of_jsons(path, splits, start=0):
    """A tar of pictures with captions in json; `splits`: what the field `split` holds, {} for no such field."""
    members = []
    for i, split in enumerate(splits, start):
        row = {"caption": f"c{i}"} | ({} if split == {} else {"split": split})
        members += [(f"{i}.jpg", pair_sources.picture(i)), (f"{i}.json", json.dumps(row).encode())]
    return pair_sources.write_tar(path, members)


def _compressed(path):
    path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def test_a_field_split_counts_in_whichever_records_it_is(tmp_path):
    _tar_of_jsons(tmp_path / "late" / "0.tar", [{}] * 3)
    _tar_of_jsons(tmp_path / "late" / "1.tar", ["test", "val", None, ""], start=3)
    assert [raw.split for raw in dump_sources.read(tmp_path / "late")] == ["train"] * 3 + ["test", "val"] + [
        "train"
    ] * 2
    assert {raw.split for raw in dump_sources.read(tmp_path / "late", split_column=None)} == {"train"}
    assert not any("tells the split" in note for note in crawl.plan(str(tmp_path / "late")).notes)
    _tar_of_jsons(tmp_path / "null" / "0.tar", [None, "test", {"no": "text"}, "val"])
    assert [raw.split for raw in dump_sources.read(tmp_path / "null")][1::2] == ["test", "val"]
    rows = [{"image": f"{i}.jpg", "caption": "c"} | ({"split": "test"} if i else {}) for i in range(3)]
    src = pair_sources.table(tmp_path / "table", rows)
    assert [raw.split for raw in dump_sources.read(src)] == ["train", "test", "test"]
    assert crawl.plan(str(src)).splits == ("test", "train")


def test_a_field_split_of_later_records_counts_in_every_format(tmp_path):
    rows = [row | ({"split": "val"} if i == 2 else {}) for i, row in enumerate(dump_sources.downloads(3, 0))]
    for layout in ("webdataset", "files", "tfrecord", "parquet"):
        shards = [rows[:2], rows[2:]]
        src = dump_sources.img2dataset(tmp_path / layout, layout, shards)
        assert [raw.split for raw in dump_sources.read(src)] == ["train", "train", "val"], layout
        assert [raw.split for raw in dump_sources.read(src, split_column=None)] == ["train"] * 3, layout
    assert crawl.plan(str(tmp_path / "parquet")).splits == ("train", "val")
    src = dump_sources.hugging_face(tmp_path / "arrow", {"a": 2, "b": 2}, split={"b": "val"})
    assert [raw.split for raw in dump_sources.read(src)] == ["train", "train", "val", "val"]
    assert crawl.plan(str(src)).splits == ("train", "val")


def test_a_column_without_a_name_tells_no_split(tmp_path):
    src = pair_sources.table(tmp_path / "src", [{"": "0", "image": "0.jpg", "caption": "c"}], "captions.csv")
    for split_column in ("", None):
        assert [raw.split for raw in dump_sources.read(src, split_column=split_column)] == ["train"]


@pytest.mark.parametrize("compressed", [False, True])
def test_fields_of_compressed_tars_are_looked_at(compressed, tmp_path):
    path = _tar_of_jsons(tmp_path / "src" / "0.tar", ["train", "test"] * 3)
    if compressed:
        _compressed(path)
    assert [raw.split for raw in dump_sources.read(tmp_path / "src")] == ["train", "test"] * 3
    notes = crawl.plan(str(tmp_path / "src")).notes
    assert "The field 'split' tells the split of a record; --ignore_split ignores it." in notes
    message = dump_sources.message(tmp_path / "src", split_column="splt")
    assert "unknown split_column 'splt' (did you mean 'split'?)" in message


def test_a_split_column_where_no_sample_has_fields_is_an_error(tmp_path):
    members = [(f"0.{e}", d) for e, d in (("jpg", pair_sources.picture(0)), ("txt", b"c"))]
    src = pair_sources.write_tar(tmp_path / "0.tar", members)
    message = dump_sources.message(src, split_column="fold")
    assert message.startswith("0.tar: its first samples have no json that could hold split_column 'fold'; valid: ")


def test_a_source_that_is_named_after_a_split_is_said(tmp_path):
    src = pair_sources.webdataset(tmp_path / "val", shards=1)
    assert "val goes to split train; --split=val puts it there." in crawl.plan(str(src)).notes
    assert crawl.plan(str(src), split="val").splits == ("val",)


def test_folders_in_an_archive_tell_splits(tmp_path):
    members = [m for i, f in enumerate(("train", "val2017", "misc")) for m in pair_sources.pair(f"{f}/{i}", i)]
    src = pair_sources.write_tar(tmp_path / "x.tar", members)
    assert [raw.split for raw in dump_sources.read(src)] == ["train", "val", "train"]
    assert [raw.split for raw in dump_sources.read(src, split_column=None)] == ["train"] * 3


@pytest.mark.parametrize(
    "path, split",
    [("a/train/0.tar", "train"), ("validation-00000-of-00001.parquet", "val"), ("coco_val2017/0.tar", "val"),
     ("test.csv", "test"), ("x/dev.jsonl", "val"), ("latest/0.tar", ""), ("contest-1.tar", ""), ("trainer.csv", ""),
     ("train_and_val.tar", ""), ("val/train-0.tar", "train"), ("0.tar", ""), ("cc3m-train-0000.tar.gz", "train")],
)  # fmt: skip
def test_names_that_tell_a_split(path, split):
    assert names.split(path) == split
