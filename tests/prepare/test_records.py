import json
import os
import tarfile

import pair_sources
import pytest

from maeclip_jax.data import decode
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare import crawl, records
from maeclip_jax.prepare.formats import captions
from maeclip_jax.prepare.formats.raw import KINDS


def _read(src, **options):
    plan = crawl.plan(str(src), **options)
    return [record for unit in plan.units for record in records.read(plan.reading, unit)]


def _kinds(records):
    return [r.error.kind if r.error else "" for r in records]


def test_every_format_gives_the_same_pairs(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": f"{i}.jpg", "caption": f"caption of {i}"} for i in range(6)]
    columns = {"image": [pair_sources.picture(i) for i in range(6)], "caption": [r["caption"] for r in rows]}
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "parquet" / "x.parquet", row_group_size=2)
    sources = [
        pair_sources.webdataset(tmp_path / "tar", shards=2, records=3),
        pair_sources.files(tmp_path / "files"),
        pair_sources.table(tmp_path / "jsonl", rows),
        pair_sources.table(tmp_path / "csv", rows, "x.csv"),
        tmp_path / "parquet",
    ]
    expected = [(pair_sources.picture(i), (f"caption of {i}",)) for i in range(6)]
    for src in sources:
        assert [(r.image, r.texts) for r in _read(src, unit_records=2)] == expected, src


def test_keys_are_unique_below_the_root(tmp_path):
    for part in ("a", "b"):
        pair_sources.webdataset(tmp_path / part, shards=1, records=2)
    assert [r.key for r in _read(tmp_path)] == ["a/000000000", "a/000000001", "b/000000000", "b/000000001"]
    assert [r.key for r in _read(tmp_path / "a")] == ["000000000", "000000001"]


def test_incomplete_groups_of_a_tar_are_records_with_an_error(tmp_path):
    jpg, row = pair_sources.picture(0), json.dumps({"caption": "from json", "split": "val"}).encode()
    members = [("1.jpg", jpg), ("1.json", row), ("2.txt", b"a"), ("3.jpg", jpg), ("4.PNG", jpg), ("4.txt", b"b"),
               ("5.jpg", jpg), ("5.txt", b"\xff\xfe"), ("6.jpg", jpg), ("6.json", b"{"), ("7.cls", b"1"),
               ("8.jpg", jpg), ("8.seg.png", jpg), ("8.txt", b"c"), ("1.jpg", jpg), ("1.txt", b"d")]  # fmt: skip
    src = pair_sources.write_tar(tmp_path / "x.tar", members)
    found = _read(src)
    assert [(r.key, k) for r, k in zip(found, _kinds(found))] == [
        ("1", ""), ("2", "missing_image"), ("3", "no_caption"), ("4", ""), ("5", ""), ("6", "unreadable_row"),
        ("8", ""), ("1", ""),
    ]  # fmt: skip
    assert found[0].texts == ("from json",) and found[3].texts == ("b",)
    assert _read(src, split_column="split")[0].split == "val"
    assert set(_kinds(found)) <= {"", *KINDS}


def test_a_tar_cut_anywhere_gives_a_prefix_and_one_lost_rest(tmp_path):
    whole = pair_sources.webdataset(tmp_path / "src", shards=1, records=4, size=(16, 16)) / "00000.tar"
    keys = [r.key for r in _read(whole)]
    data = whole.read_bytes()
    ends = set()
    for cut in range(0, len(data), 256):
        whole.write_bytes(data[:cut])
        *good, last = _read(whole)
        if not last.error:  # cut in the zeros behind the end mark
            good.append(last)
            assert len(good) == 4
        else:
            assert last.error.kind == "unreadable_shard" and last.lost == max(1, 4 - len(good))
        # The record the cut falls into may have lost its text or json, but is then no silent loss.
        assert [r.key for r in good] == keys[: len(good)]
        ends.add(len(good))
    assert ends == {0, 1, 2, 3, 4}


def test_damage_inside_a_tar_is_not_silent(tmp_path):
    path = pair_sources.webdataset(tmp_path / "src", shards=1, records=4) / "00000.tar"
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[6].offset
    data = bytearray(path.read_bytes())
    data[middle : middle + 512] = os.urandom(512)  # tarfile itself would stop here without a word
    path.write_bytes(data)
    records = _read(path)
    assert _kinds(records) == ["", "", "unreadable_shard"]
    assert "damaged header" in records[-1].error.detail and records[-1].lost == 2
    (path.parent / "00000_stats.json").unlink()
    assert _read(path)[-1].lost == 1


def test_fewer_records_than_img2dataset_counted_are_missed(tmp_path):
    src = pair_sources.webdataset(tmp_path / "src", shards=1, records=4)
    pair_sources.write_tar(src / "00000.tar", pair_sources.pair("000000000", 0))
    *_, last = _read(src)
    assert last.error.detail == "holds 1 records where its _stats.json counts 4" and last.lost == 3


def test_rows_that_name_one_picture_are_one_record(tmp_path):
    rows = [{"image": f"{i // 2}.jpg", "caption": f"c{i}"} for i in range(6)] + [{"image": "0.jpg", "caption": "again"}]
    records = _read(pair_sources.table(tmp_path / "src", rows, "x.csv", pictures=3), unit_records=2)
    assert [(r.key, r.texts, r.rows) for r in records] == [
        ("0.jpg", ("c0", "c1"), 2), ("1.jpg", ("c2", "c3"), 2), ("2.jpg", ("c4", "c5"), 2), ("0.jpg", ("again",), 1),
    ]  # fmt: skip


@pytest.mark.parametrize("place", range(5))
def test_a_row_without_a_caption_among_others_of_its_picture_is_named(place, tmp_path):
    """As a row of Flickr30k's results.csv that lacks a bar."""
    lines = ["image_name| comment_number| comment", "0.jpg| 0| alone"]
    lines += [f"1.jpg| {i}| c{i}" if i != place else f"1.jpg| {i}   c{i}" for i in range(5)]
    src = pair_sources.table(tmp_path / "src", [{}, {}], "unused.jsonl")
    (src / "unused.jsonl").unlink()
    (src / "results.csv").write_text("\n".join([*lines, "2.jpg| 0"]) + "\n")
    alone, found, short, last = _read(src, caption_column="comment")
    assert alone.texts == (" alone",) and found.texts == tuple(f" c{i}" for i in range(5) if i != place)
    assert found.rows == 4 and found.key == "1.jpg" and not found.error
    assert short.key == f"results.csv:row {place + 2}" and short.error.kind == "unreadable_row"
    assert short.error.detail.startswith("not csv: 2 cells, and none for 'comment'")
    assert last.error.kind == "no_caption"


def test_rows_of_a_picture_without_a_caption_count_as_empty(tmp_path):
    rows = [{"image": "0.jpg", "captions": value} for value in (["a", None], None, [], "b")]
    rows += [{"image": "1.jpg", "captions": value} for value in (None, [])]
    one, other = _read(pair_sources.table(tmp_path / "src", rows, pictures=2))
    assert one.texts == ("a", "", "", "", "b") and one.rows == 4
    assert _kinds([other]) == ["no_caption"]


def test_bad_rows_of_a_table_are_named(tmp_path):
    rows = [{"image": "0.jpg", "captions": ["a", "b"]}, {"captions": ["x"]}, {"image": "no.jpg", "captions": ["x"]},
            {"image": "1.jpg", "captions": []}, {"image": "2.jpg", "captions": 3}, {"image": "3.jpg"},
            {"image": ".", "captions": "x"}, {"image": "a\0b", "captions": "x"}]  # fmt: skip
    src = pair_sources.table(tmp_path / "src", rows, pictures=4)
    with open(src / "captions.jsonl", "a") as file:
        file.write("oops\n")
    records = _read(src, unit_records=3)
    assert _kinds(records) == ["", "missing_image", "missing_image", "no_caption", "no_caption", "no_caption",
                               "missing_image", "missing_image", "unreadable_row"]  # fmt: skip
    assert records[0].texts == ("a", "b")
    assert records[1].key == "captions.jsonl:row 2" and records[-1].key == "captions.jsonl:row 9"
    assert "no file 'no.jpg'" in records[2].error.detail and "3 is not text" in records[4].error.detail


def test_image_dir_says_where_paths_start(tmp_path):
    src = pair_sources.table(tmp_path / "src", [{"image": "0.jpg", "caption": "c"}])
    (src / "images").rename(tmp_path / "elsewhere")
    assert _kinds(_read(src)) == ["missing_image"]
    assert _kinds(_read(src, image_dir=str(tmp_path / "elsewhere"))) == [""]


def test_parquet_rows_without_a_picture_and_a_broken_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"key": ["a", "b"], "jpg": [pair_sources.picture(0), None], "txt": ["x", "y"], "split": ["train", None]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    (tmp_path / "1.parquet").write_bytes(b"PAR1 broken")
    records = _read(tmp_path)
    assert [(r.key, k) for r, k in zip(records, _kinds(records))] == [
        ("a", ""), ("b", "missing_image"), ("1.parquet:row 1", "unreadable_shard"),
    ]  # fmt: skip


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_columns_of_views_are_read(format, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"a", b"\xff b", b"c"], pa.binary_view()).view(pa.string_view())
    rows = {"image": pa.array([pair_sources.picture(i) for i in range(3)], pa.binary_view()), "caption": texts,
            "split": pa.array(["train", "test", None], pa.string_view())}  # fmt: skip
    path = tmp_path / f"0.{format}"
    if format == "parquet":
        pq.write_table(pa.table(rows), path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.table(rows).schema) as writer:
            writer.write_table(pa.table(rows))
    found = _read(path)
    assert [r.image for r in found] == [pair_sources.picture(i) for i in range(3)]
    assert [r.texts for r in found] == [("a",), ("\udcff b",), ("c",)]
    assert [r.split for r in found] == ["train", "test", "train"]
    assert crawl.plan(str(path)).splits == ("test", "train")
    (tmp_path / "paths").mkdir()
    (tmp_path / "paths" / "0.jpg").write_bytes(pair_sources.picture(0))
    rows = {"image": pa.array(["0.jpg"], pa.string_view()), "caption": ["c"]}
    pq.write_table(pa.table(rows), tmp_path / "paths" / "0.parquet")
    assert [r.image for r in _read(tmp_path / "paths")] == [pair_sources.picture(0)]


def test_names_that_are_not_utf8(tmp_path):
    root = os.fsencode(tmp_path / "src")
    os.makedirs(root)
    for extension, data in (("jpg", pair_sources.picture(0)), ("txt", b"a")):
        with open(os.path.join(root, b"caf\xe9." + extension.encode()), "wb") as file:
            file.write(data)
    (record,) = _read(tmp_path / "src")
    assert record.key == "caf\\udce9" and not record.error


def test_a_second_picture_or_text_of_one_extension_is_counted(tmp_path):
    (tmp_path / "src").mkdir()
    for number, name in enumerate(("a.JPG", "a.jpg", "b.jpg")):
        (tmp_path / "src" / name).write_bytes(pair_sources.picture(number))
    for name in ("a.TXT", "a.txt", "b.txt"):
        (tmp_path / "src" / name).write_text(name)
    found = _read(tmp_path / "src")
    assert [(r.key, r.image, r.texts, r.extras) for r in found] == [
        ("a", pair_sources.picture(0), ("a.TXT",), 2), ("b", pair_sources.picture(2), ("b.txt",), 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "extension, format",
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("j2k", "JPEG2000"), ("ppm", "PPM"), ("PGM", "PPM"), ("pbm", "PPM"),
     ("pnm", "PPM"), ("ico", "ICO")],
)  # fmt: skip
def test_pictures_of_rare_extensions_are_read(extension, format, tmp_path):
    data = pair_sources.picture(0, (16, 16), format)
    pair_sources.write_tar(tmp_path / "tar" / "0.tar", [(f"0.{extension}", data), ("0.txt", b"c")])
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / f"0.{extension}").write_bytes(data)
    (tmp_path / "files" / "0.txt").write_text("c")
    for layout in ("tar", "files"):
        (raw,) = _read(tmp_path / layout)
        assert raw.image == data and not raw.error and decode.decode(raw.image).shape == (16, 16, 3)


def test_captions_refuses_what_is_no_text():
    assert captions.texts("a") == ("a",) and captions.texts(["a", ""]) == captions.texts(["a", None]) == ("a", "")
    for value in (None, [], 3, ["a", 3], [None], [None, {"x": "a"}], {"raw": "a"}):
        with pytest.raises(BadRecord, match="no_caption"):
            captions.texts(value)
