"""Which members are a record, and of which split it is: one rule for all formats."""

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
