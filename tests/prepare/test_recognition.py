"""One look says what a source is, or what to do to make it one."""

import contextlib
import json
import random
import shutil
import subprocess
import zlib

import dump_sources
import pair_sources
import pytest

from maeclip_jax.prepare import crawl


@pytest.mark.parametrize("side", ["urls.csv", "urls.parquet", "0-urls.parquet", "urls.tsv"])
@pytest.mark.parametrize("layout", dump_sources.LAYOUTS)
def test_side_files_do_not_decide(side, layout, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    src = dump_sources.img2dataset(tmp_path / "src", layout, [dump_sources.downloads(2, 1)])
    if side.endswith("parquet"):
        pq.write_table(pa.table({"url": ["http://x/a.jpg"], "caption": ["a"]}), src / side)
    else:
        mark = "\t" if side.endswith("tsv") else ","
        (src / side).write_text(f"url{mark}caption\nhttp://x/a.jpg{mark}a\n")
    (src / "README.md").write_text("about")
    (src / "_tmp").mkdir()
    (src / "_tmp" / "1.tar").write_bytes(b"")
    (src / ".cache").mkdir()
    (src / ".cache" / "x.csv").write_text("image,caption\n0.jpg,a\n")
    plan = crawl.plan(str(src))
    assert plan.reading.format == layout
    assert any(note.startswith(f"Left out: {side}") for note in plan.notes)
    assert sum(not raw.error for raw in dump_sources.read(src)) == 2


def test_lists_of_urls_are_refused_with_the_command(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "urls.csv"
    path.write_text("URL,TEXT\nhttp://x/a.jpg,a dog\n")
    message = dump_sources.message(path)
    assert message.startswith(
        "urls.csv is a list of URLs: its column 'URL' holds web addresses and no pictures; valid: "
    )
    command = (
        f"img2dataset --url_list {path} --input_format csv --url_col URL --caption_col TEXT --output_format webdataset"
    )
    assert command in message
    path = tmp_path / "cc12m.tsv"
    path.write_text("http://x/a.jpg\ta dog\nhttp://x/b.jpg\ta cat\n")
    message = dump_sources.message(path)
    assert message.startswith("cc12m.tsv is a list of URLs without a header; valid: the output of: ")
    assert f"sed '1i url\\tcaption' {path} > urls.tsv && img2dataset --url_list urls.tsv --input_format tsv" in message
    headed = subprocess.run(["sed", "1i url\\tcaption", path], capture_output=True, text=True).stdout
    assert headed.splitlines()[0] == "url\tcaption" and len(headed.splitlines()) == 3
    pq.write_table(pa.table({"url": ["http://x/a.jpg"], "caption": ["b"]}), tmp_path / "urls.parquet")
    assert "--input_format parquet --url_col url --caption_col caption" in dump_sources.message(
        tmp_path / "urls.parquet"
    )


def test_parquet_of_paths_is_read_or_said(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.jpg").write_bytes(pair_sources.picture(i))
    rows = [
        {"image": {"bytes": None, "path": str(tmp_path / "pictures" / f"{i}.jpg")}, "text": f"c{i}"} for i in range(3)
    ]
    kind = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("text", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, kind), tmp_path / "x.parquet")
    assert [raw.image for raw in dump_sources.read(tmp_path / "x.parquet")] == [
        pair_sources.picture(i) for i in range(3)
    ]
    shutil.move(tmp_path / "pictures", tmp_path / "moved")
    message = dump_sources.message(tmp_path / "x.parquet")
    assert message.startswith("x.parquet holds the paths of pictures and no pictures, and '/")
    assert (
        "valid: --image_dir, or where the pictures are: python -c" in message and "save_to_disk('embedded')" in message
    )


def test_folders_of_datasets_are_read(tmp_path):
    src = dump_sources.hugging_face(tmp_path / "one", {"": 5})
    plan = crawl.plan(str(src), unit_records=2)
    assert plan.notes[0] == "Hugging Face dataset: 1 arrow file." and len(plan.units) == 3
    assert [raw.image for raw in dump_sources.read(src, unit_records=2)] == [pair_sources.picture(i) for i in range(5)]
    src = dump_sources.hugging_face(tmp_path / "two", {"train": 3, "validation": 2})
    plan = crawl.plan(str(src))
    assert plan.splits == ("train", "val") and plan.notes[0] == "Hugging Face DatasetDict: 2 arrow files."
    data = (src / "train" / "data-00000-of-00001.arrow").read_bytes()
    (src / "train" / "data-00000-of-00001.arrow").write_bytes(data[: len(data) * 2 // 3])
    assert dump_sources.kinds(dump_sources.read(src)) == ["", "", "unreadable_shard", "", ""]


def test_files_that_a_data_set_no_longer_names_are_left_out(tmp_path):
    """`save_to_disk` over a data set of more shards, or of more splits, leaves the other files behind."""
    src = dump_sources.hugging_face(tmp_path / "one", {"": 2})
    old = dump_sources.hugging_face(tmp_path / "old", {"": 3})
    for number in range(2):
        shutil.copy(old / "data-00000-of-00001.arrow", src / f"data-0000{number}-of-00002.arrow")
    assert [raw.texts for raw in dump_sources.read(src)] == [("c0",), ("c1",)]
    notes = crawl.plan(str(src)).notes
    assert notes[0] == "Hugging Face dataset: 1 arrow file."
    assert "Left out: data-00000-of-00002.arrow, data-00001-of-00002.arrow." in notes
    assert len(dump_sources.read(src / "data-00000-of-00002.arrow")) == 3
    state = json.loads((src / "state.json").read_text())
    names = [f"data-0000{number}-of-00002.arrow" for number in (1, 2)] + ["data-00000-of-00001.arrow"]
    (src / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name} for name in names]}))
    plan = crawl.plan(str(src))
    assert list(plan.files) == [names[0], names[2]]
    assert "Not there, though state.json names them: data-00002-of-00002.arrow." in plan.notes
    (src / "state.json").unlink()
    assert len(dump_sources.read(src)) == 8
    src = dump_sources.hugging_face(tmp_path / "two", {"train": 3, "test": 2})
    (src / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert [raw.split for raw in dump_sources.read(src)] == ["train"] * 3
    assert any(note.startswith("Left out: test/data-00000") for note in crawl.plan(str(src)).notes)


def test_loose_pictures_that_are_not_read_are_named(tmp_path):
    def notes(path):
        return [note for note in crawl.plan(str(path)).notes if note.startswith("Left out")]

    for folder, count, text in (("a", 3, True), ("b/c", 2, False), ("", 1, False)):
        (tmp_path / "src" / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (tmp_path / "src" / folder / f"{i}.jpg").write_bytes(pair_sources.picture(i))
            if text:
                (tmp_path / "src" / folder / f"{i}.txt").write_text("c")
    src = tmp_path / "src"
    assert notes(src) == ["Left out: 3 pictures without texts, in ., b/c."]
    assert len(dump_sources.read(src)) == 3
    table = src / "captions.csv"
    table.write_text("image,caption\nb/c/0.jpg,c\n")
    assert notes(src) == ["Left out: 3 pictures, as far as no row names them, and the texts beside them, in a."]
    pair_sources.write_tar(src / "0.tar", pair_sources.pair("0", 0))
    assert notes(src) == ["Left out: captions.csv.", "Left out: 6 loose pictures, in ., a, b/c."]
    (src / "0.tar").unlink()
    shutil.rmtree(src / "a")
    assert notes(src) == []


def test_json_arrays_are_read(tmp_path):
    pair_sources.table(tmp_path / "llava", [{"a": 1}], "unused.jsonl", pictures=3)
    (tmp_path / "llava" / "unused.jsonl").unlink()
    spoken = [{"from": "human", "value": "<image>\nWhat [is] {it}?"}, {"from": "gpt", "value": 'A "cat" \\ ]}'}]
    rows = [{"id": f"{i}", "image": f"{i}.jpg", "conversations": spoken} for i in range(3)]
    (tmp_path / "llava" / "chat.json").write_text(json.dumps(rows, indent=1))
    for records_a_unit in (1, 2, 0):
        found = dump_sources.read(tmp_path / "llava", unit_records=records_a_unit)
        assert [(r.key, r.image, r.texts) for r in found] == [
            (f"{i}.jpg", pair_sources.picture(i), ('A "cat" \\ ]}',)) for i in range(3)
        ]
    tree = {
        "images": [{"id": 9, "file_name": "0.jpg"}, {"id": 8, "file_name": "1.jpg"}],
        "annotations": [
            {"image_id": 8, "caption": "b"},
            {"image_id": 9, "caption": "a"},
            {"image_id": 8, "caption": "c"},
        ],
    }
    path = tmp_path / "llava" / "captions_val2017.json"
    path.write_text(json.dumps(tree))
    found = dump_sources.read(path, unit_records=1)
    assert [(r.key, r.texts, r.split) for r in found] == [("0.jpg", ("a",), "val"), ("1.jpg", ("b", "c"), "val")]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_tars_at_any_depth(suffix, tmp_path):
    import pyarrow as pa

    plain = pair_sources.webdataset(tmp_path / "plain", shards=1) / "00000.tar"
    path = tmp_path / "src" / "a" / "b" / "c" / "d" / f"0{suffix}"
    path.parent.mkdir(parents=True)
    with pa.CompressedOutputStream(str(path), "zstd" if suffix.endswith("zst") else "gzip") as file:
        file.write(plain.read_bytes())
    found = dump_sources.read(tmp_path / "src")
    assert [r.image for r in found] == [pair_sources.picture(i) for i in range(4)] and found[0].key.startswith(
        "a/b/c/d/"
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert dump_sources.kinds(dump_sources.read(tmp_path / "src"))[-1] == "unreadable_shard"


def _decompressed(data: bytes, suffix: str) -> int:
    """How many bytes come out of the beginning of a compressed file, for a reader that goes byte by byte."""
    import pyarrow as pa

    if suffix == ".tar.gz":
        return len(zlib.decompressobj(31).decompress(data))
    count = 0
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream, contextlib.suppress(OSError):
        while stream.read(1):
            count += 1
    return count


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.zst"])
def test_a_damaged_compressed_tar_is_read_up_to_its_damage(suffix, damage, tmp_path):
    import pyarrow as pa

    rng = random.Random(0)
    members = [(f"{i:03d}.{e}", d) for i in range(300) for e, d in (("jpg", rng.randbytes(1500).hex().encode()),
                                                                    ("txt", b"c"))]  # fmt: skip
    data = pair_sources.write_tar(tmp_path / "plain.tar", members).read_bytes()
    path = tmp_path / "src" / f"0{suffix}"
    path.parent.mkdir()
    with pa.CompressedOutputStream(str(path), "zstd" if suffix.endswith("zst") else "gzip") as file:
        file.write(data)
    packed = path.read_bytes()
    place = len(packed) * 2 // 3
    packed = packed[:place] + (b"" if damage == "cut" else rng.randbytes(50_000) + packed[place + 50_000 :])
    path.write_bytes(packed)
    expected = _decompressed(packed[:place], suffix) // (
        512 + 3072 + 2 * 512
    )  # a picture and its text with their headers
    *found, last = dump_sources.read(tmp_path / "src")
    assert 100 < expected < 220 and expected <= len(found) <= expected + 1
    assert last.error.kind == "unreadable_shard"
    whole = [(members[2 * i][1], ("c",)) for i in range(expected)]
    assert [(raw.image, raw.texts) for raw in found[:expected]] == whole


def test_what_is_not_read_is_named(tmp_path):
    pair_sources.write_tar(
        tmp_path / "x.tar", [("inner.tar", (pair_sources.webdataset(tmp_path) / "00000.tar").read_bytes())]
    )
    message = dump_sources.message(tmp_path / "x.tar")
    assert (
        f"holds archives and no pictures; valid: unpack it first: mkdir shards && tar -xf {tmp_path}/x.tar" in message
    )
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "a.zip").write_bytes(b"PK")
    assert "unpack them first: unzip a.zip -d pairs" in dump_sources.message(tmp_path / "zip")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.jpg").write_bytes(pair_sources.picture(0))
    assert "1 pictures, and no captions beside them" in dump_sources.message(tmp_path / "pictures")
    (tmp_path / "jxl").mkdir()
    (tmp_path / "jxl" / "K.jxl").write_bytes(b"\xff\x0a" + b"0" * 40)
    (tmp_path / "jxl" / "K.txt").write_text("a")
    (raw,) = dump_sources.read(tmp_path / "jxl")
    assert raw.image.startswith(b"\xff\x0a")
