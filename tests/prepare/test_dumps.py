"""What tools write becomes a data set, and every record is accounted for: each fault that once was, by its smallest input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dump_sources
import pair_sources
import pytest

from maeclip_jax.data import decode
from maeclip_jax.errors import UserError
from maeclip_jax.prepare import command, crawl, records

ROOT = Path(__file__).parents[2]


def _main(*argv) -> int:
    return command.main([str(a) for a in argv])


def _error(capsys, *argv) -> str:
    capsys.readouterr()
    assert _main(*argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def _prepared(src, out, *options) -> tuple[dict, list[dict], dict[str, list[dict]]]:
    """(manifest, account, split -> records) of a preparation by one process."""
    import tensorflow_datasets as tfds

    assert _main("--src", src, "--out", out, "--name", "n", "--workers", 1, *options) == 0
    folder = Path(out) / "n" / "1.0.0"
    tree = json.loads((folder / "manifest.json").read_text())
    account = [json.loads(line) for line in (folder / "account.jsonl").read_text().splitlines()]
    counts = tree["records"]
    assert counts["in"] == counts["kept"] + counts["dropped"] + sum(counts["failed_downloads"].values())
    assert sum(entry["records"] for entry in account) == counts["in"] - counts["kept"]
    decoders = {"image": tfds.decode.SkipDecoding()}
    builder = tfds.builder_from_directory(str(folder))
    found = {split: list(builder.as_data_source(split, decoders=decoders)) for split in builder.info.splits}
    return tree, account, found


def _read(src, **options) -> list[records.Raw]:
    plan = crawl.plan(str(src), **options)
    return [raw for unit in plan.units for raw in records.read(plan.reading, unit)]


def _kinds(found) -> list[str]:
    return [raw.error.kind if raw.error else "" for raw in found]


def _message(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        crawl.plan(*map(str, args), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Failed downloads


@pytest.mark.parametrize("layout", dump_sources.LAYOUTS)
def test_dead_urls_are_failed_downloads_and_no_bad_records(layout, tmp_path):
    shards = [
        dump_sources.downloads(4, 6),
        dump_sources.downloads(4, 6, start=10),
        dump_sources.downloads(0, 5, start=20),
    ]
    tree, account, found = _prepared(dump_sources.img2dataset(tmp_path / "src", layout, shards), tmp_path / "out")
    assert tree["records"]["in"] == 25 and tree["records"]["kept"] == 8 and tree["records"]["dropped"] == 0
    assert sum(tree["records"]["failed_downloads"].values()) == 17
    assert [r["key"].decode()[-9:] for r in found["train"]] == [f"{i:09d}" for i in (0, 1, 2, 3, 10, 11, 12, 13)]
    first = next(entry for entry in account if entry["key"] == "000000004")
    assert first["kind"] == "failed_download" and first["url"] == "http://x/4.jpg"
    assert first["status"] == "failed_to_download" and first["detail"] == "HTTP Error 404: Not Found"
    assert first["source"].startswith("00000")


@pytest.mark.parametrize("layout", dump_sources.LAYOUTS)
def test_one_look_says_what_the_source_is(layout, tmp_path):
    shards = [dump_sources.downloads(2, 1, start=10 * i) for i in range(3)]
    src = dump_sources.img2dataset(tmp_path / "src", layout, shards, finished=2)
    notes = crawl.plan(str(src)).notes
    assert notes[0] == f"img2dataset {layout} output: 3 shards, 1 unfinished."
    assert notes[1].startswith("Unfinished, for there is no _stats.json: 00002")
    assert "--incremental_mode=incremental finishes it" in notes[1]
    assert sum(not raw.error for raw in _read(src)) == 6


# Keys


def test_keys_with_dots_are_not_lost(tmp_path):
    jpg = [pair_sources.picture(i) for i in range(3)]
    names = ["img/cat.1", "img/cat.2", "img/ok"]
    members = [m for n, j in zip(names, jpg) for m in ((f"{n}.jpg", j), (f"{n}.txt", n.encode()))]
    found = _read(pair_sources.write_tar(tmp_path / "x.tar", members))
    assert [(r.key, r.image, r.texts) for r in found] == [(n, j, (n,)) for n, j in zip(names, jpg)]


def test_a_picture_and_a_text_under_longer_names_are_one_sample(tmp_path):
    jpg = pair_sources.picture(0)
    members = [("7.image.jpg", jpg), ("7.text.txt", b"a"), ("8.jpg", jpg), ("8.mask.png", jpg), ("8.txt", b"b"),
               ("9.a.jpg", jpg), ("9.b.jpg", jpg), ("9.txt", b"c"), ("5.jpg", jpg), ("5.1.txt", b"d"), ("5.2.txt", b"e"),
               ("4.v2.jpg", jpg)]  # fmt: skip
    found = _read(pair_sources.write_tar(tmp_path / "x.tar", members))
    assert [(r.key, k, r.texts, r.extras) for r, k in zip(found, _kinds(found))] == [
        ("7", "", ("a",), 0), ("8", "", ("b",), 1), ("9", "several_images", (), 0), ("5", "", ("d", "e"), 0),
        ("4.v2", "no_caption", (), 0),
    ]  # fmt: skip
    assert "9.a.jpg, 9.b.jpg" in found[2].error.detail


def test_members_that_are_no_neighbours_are_paired(tmp_path):
    members = [m for i in range(3) for m in pair_sources.pair(f"{i}", i)]
    members = sorted(members, key=lambda m: (m[0][2:], m[0]))  # all pictures, all jsons, all texts
    found = _read(pair_sources.write_tar(tmp_path / "x.tar", members))
    assert [(r.key, r.texts) for r in found] == [(f"{i}", (f"caption of {i}",)) for i in range(3)]


def test_companions_of_a_mac_are_skipped(tmp_path):
    members = [("./._0.jpg", b"mac"), ("./0.jpg", pair_sources.picture(0)), ("./._0.txt", b"mac"), ("./0.txt", b"a")]
    (raw,) = _read(pair_sources.write_tar(tmp_path / "x.tar", [*members, ("__MACOSX/0.jpg", b"mac")]))
    assert raw.key == "0" and raw.texts == ("a",) and not raw.error


def test_equal_keys_in_two_shards_are_two_records(tmp_path):
    for name in ("a", "b"):
        pair_sources.write_tar(tmp_path / "src" / f"{name}.tar", pair_sources.pair("0", ord(name)))
    tree, _, found = _prepared(tmp_path / "src", tmp_path / "out")
    assert tree["records"]["kept"] == 2 and tree["records"]["dropped"] == 0
    assert [r["source"] for r in found["train"]] == [b"a.tar", b"b.tar"]


# Splits


def test_splits_are_told_by_folders_and_names(tmp_path, capsys):
    for i, path in enumerate(("train/0.tar", "val/0.tar", "test-0001.tar")):
        pair_sources.write_tar(tmp_path / "src" / path, pair_sources.pair(f"{i}", i))
    tree, _, found = _prepared(tmp_path / "src", tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "val": 1, "test": 1}
    assert "Names tell the splits test, train, val (test-0001.tar, val); --ignore_split" in capsys.readouterr().err
    _, _, found = _prepared(tmp_path / "src", tmp_path / "all", "--ignore_split")
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
    assert not any(raw.error for raw in _read(tmp_path / "folder"))


def test_a_field_split_is_one_rule_for_all_formats(tmp_path):
    rows = [row | {"split": "val" if i else "train"} for i, row in enumerate(dump_sources.downloads(2, 0))]
    for layout in dump_sources.LAYOUTS:
        src = dump_sources.img2dataset(tmp_path / layout, layout, [rows])
        assert [raw.split for raw in _read(src)] == ["train", "val"], layout
        assert [raw.split for raw in _read(src, split_column=None)] == ["train", "train"], layout


def test_a_source_that_is_named_after_a_split_is_said(tmp_path):
    src = pair_sources.webdataset(tmp_path / "val", shards=1)
    assert "val goes to split train; --split=val puts it there." in crawl.plan(str(src)).notes
    assert crawl.plan(str(src), split="val").splits == ("val",)


# Orientation


@pytest.mark.parametrize("layout", dump_sources.LAYOUTS)
def test_pictures_that_lie_on_their_side_are_turned_once(layout, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    says = json.dumps({"Image Orientation": "Rotated 90 CW", "Image Make": "x"})
    rows = dump_sources.downloads(2, 0, exif=says)

    def picture(row):  # the second one kept its EXIF, as with --disable_all_reencoding
        return pair_sources.picture(0, quality=95, **({"exif": exif} if int(row["key"]) else {}))

    src = dump_sources.img2dataset(tmp_path / "src", layout, [rows], pictures=picture)
    tree, _, found = _prepared(src, tmp_path / "out")
    assert tree["totals"]["turned_upright"] == 1
    pixels = [decode.decode(r["image"]) for r in found["train"]]
    lying = decode.decode(pair_sources.picture(0, quality=95))
    assert pixels[0].shape == pixels[1].shape == (40, 30, 3)
    for upright in pixels:
        assert abs(upright.astype(int) - lying.transpose(1, 0, 2)[:, ::-1]).mean() < 3


@pytest.mark.parametrize("number, words", enumerate(
    ("Horizontal (normal)", "Mirrored horizontal", "Rotated 180", "Mirrored vertical",
     "Mirrored horizontal then rotated 90 CCW", "Rotated 90 CW", "Mirrored horizontal then rotated 90 CW",
     "Rotated 90 CCW"), 1))  # fmt: skip
def test_all_orientations_that_the_tool_names(number, words):
    from PIL import Image

    from maeclip_jax.prepare import image_text, img2dataset

    assert img2dataset.orientation(json.dumps({"Image Orientation": words})) == number
    exif = Image.Exif()
    exif[0x0112] = number
    told = image_text.store(pair_sources.picture(1, quality=95, exif=exif), image_text.Storing())
    lying = image_text.store(pair_sources.picture(1, quality=95), image_text.Storing(), number)
    assert (told.width, told.height) == (lying.width, lying.height) and lying.turned == (number > 1)
    assert abs(decode.decode(told.image).astype(int) - decode.decode(lying.image)).mean() < 3


# Captions


def test_a_mark_of_byte_order_is_no_part_of_a_caption(tmp_path):
    members = [("0.jpg", pair_sources.picture(0)), ("0.txt", "\ufeffa &amp; b\n\tc".encode())]
    (raw,) = _read(pair_sources.write_tar(tmp_path / "x.tar", members))
    assert raw.texts == ("a &amp; b\n\tc",)


@pytest.mark.parametrize(
    "row, path, expected",
    [
        ({"prompt": "a"}, "", ("a",)),
        ({"TEXT": "a"}, "", ("a",)),
        ({"sentences": [{"raw": "a"}, {"raw": "b"}]}, "", ("a", "b")),
        ({"captions": [{"text": "a"}, {"text": "b"}]}, "captions[].text", ("a", "b")),
        ({"caption": {"en": "a", "de": "b"}}, "caption.en", ("a",)),
        ({"a.b": "c"}, "a.b", ("c",)),
        ({"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]}, "", ("a",)),
    ],
)
def test_captions_are_found_by_name_or_path(row, path, expected, tmp_path):
    members = [("0.jpg", pair_sources.picture(0)), ("0.json", json.dumps(row).encode())]
    (raw,) = _read(pair_sources.write_tar(tmp_path / "x.tar", members), caption_column=path)
    assert raw.texts == expected
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(pair_sources.picture(0))
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "0.jpg"} | row) + "\n")
    (raw,) = _read(tmp_path / "t.jsonl", caption_column=path)
    assert raw.texts == expected and raw.image


def test_what_could_be_a_caption_is_listed_with_examples(tmp_path):
    row = {"uid": "x1", "blip": {"long": "a dog"}, "notes": [{"t": "b"}]}
    members = [("0.jpg", pair_sources.picture(0)), ("0.json", json.dumps(row).encode())]
    src = pair_sources.write_tar(tmp_path / "x.tar", members)
    message = _message(src)
    assert "valid: --caption_column with one of uid ('x1'), blip.long ('a dog'), notes[].t ('b')" in message
    message = _message(src, caption_column="blop.long")
    assert "unknown caption_column 'blop.long' (did you mean 'blip.long'?)" in message


def test_a_column_that_some_parquet_files_lack_is_an_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for i, name in enumerate(("caption", "text")):
        pq.write_table(pa.table({"jpg": [pair_sources.picture(i)], name: ["a"]}), tmp_path / f"{i}.parquet")
    message = _message(tmp_path)
    assert message.startswith("1.parquet has other columns than 0.parquet: unknown caption_column 'caption'")


def test_too_many_bad_records_are_named_where_the_message_says(tmp_path, capsys):
    src = pair_sources.table(tmp_path / "src", [{"image": f"{i}.jpg", "caption": "c"} for i in range(4)], pictures=1)
    message = _error(capsys, "--src", src, "--out", tmp_path / "out", "--workers", 1)
    path = message.split("nothing is left; " if "nothing" in message else "max_bad=0.5; ")[1].split(" names each")[0]
    assert [json.loads(line)["key"] for line in Path(path).read_text().splitlines()] == ["1.jpg", "2.jpg", "3.jpg"]


# Recognition


@pytest.mark.parametrize("side", ["urls.csv", "urls.parquet", "urls.tsv"])
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
    assert sum(not raw.error for raw in _read(src)) == 2


def test_lists_of_urls_are_refused_with_the_command(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "urls.csv"
    path.write_text("URL,TEXT\nhttp://x/a.jpg,a dog\n")
    message = _message(path)
    assert message.startswith(
        "urls.csv is a list of URLs: its column 'URL' holds web addresses and no pictures; valid: "
    )
    command = (
        f"img2dataset --url_list {path} --input_format csv --url_col URL --caption_col TEXT --output_format webdataset"
    )
    assert command in message
    path = tmp_path / "cc12m.tsv"
    path.write_text("http://x/a.jpg\ta dog\nhttp://x/b.jpg\ta cat\n")
    message = _message(path)
    assert message.startswith("cc12m.tsv is a list of URLs without a header; valid: the output of: ")
    assert f"sed '1i url\\tcaption' {path} > urls.tsv && img2dataset --url_list urls.tsv --input_format tsv" in message
    headed = subprocess.run(["sed", "1i url\\tcaption", path], capture_output=True, text=True).stdout
    assert headed.splitlines()[0] == "url\tcaption" and len(headed.splitlines()) == 3
    pq.write_table(pa.table({"url": ["http://x/a.jpg"], "caption": ["b"]}), tmp_path / "urls.parquet")
    assert "--input_format parquet --url_col url --caption_col caption" in _message(tmp_path / "urls.parquet")


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
    assert [raw.image for raw in _read(tmp_path / "x.parquet")] == [pair_sources.picture(i) for i in range(3)]
    shutil.move(tmp_path / "pictures", tmp_path / "moved")
    message = _message(tmp_path / "x.parquet")
    assert message.startswith("x.parquet holds the paths of pictures and no pictures, and '/")
    assert (
        "valid: --image_dir, or where the pictures are: python -c" in message and "save_to_disk('embedded')" in message
    )


def test_folders_of_datasets_are_read(tmp_path):
    src = dump_sources.hugging_face(tmp_path / "one", {"": 5})
    plan = crawl.plan(str(src), unit_records=2)
    assert plan.notes[0] == "Hugging Face dataset: 1 arrow file." and len(plan.units) == 3
    assert [raw.image for raw in _read(src, unit_records=2)] == [pair_sources.picture(i) for i in range(5)]
    src = dump_sources.hugging_face(tmp_path / "two", {"train": 3, "validation": 2})
    plan = crawl.plan(str(src))
    assert plan.splits == ("train", "val") and plan.notes[0] == "Hugging Face DatasetDict: 2 arrow files."
    data = (src / "train" / "data-00000-of-00001.arrow").read_bytes()
    (src / "train" / "data-00000-of-00001.arrow").write_bytes(data[: len(data) * 2 // 3])
    assert _kinds(_read(src)) == ["", "", "unreadable_shard", "", ""]


def test_json_arrays_are_read(tmp_path):
    pair_sources.table(tmp_path / "llava", [{"a": 1}], "unused.jsonl", pictures=3)
    (tmp_path / "llava" / "unused.jsonl").unlink()
    spoken = [{"from": "human", "value": "<image>\nWhat [is] {it}?"}, {"from": "gpt", "value": 'A "cat" \\ ]}'}]
    rows = [{"id": f"{i}", "image": f"{i}.jpg", "conversations": spoken} for i in range(3)]
    (tmp_path / "llava" / "chat.json").write_text(json.dumps(rows, indent=1))
    for records_a_unit in (1, 2, 0):
        found = _read(tmp_path / "llava", unit_records=records_a_unit)
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
    found = _read(path, unit_records=1)
    assert [(r.key, r.texts, r.split) for r in found] == [("0.jpg", ("a",), "val"), ("1.jpg", ("b", "c"), "val")]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_tars_at_any_depth(suffix, tmp_path):
    import pyarrow as pa

    plain = pair_sources.webdataset(tmp_path / "plain", shards=1) / "00000.tar"
    path = tmp_path / "src" / "a" / "b" / "c" / "d" / f"0{suffix}"
    path.parent.mkdir(parents=True)
    with pa.CompressedOutputStream(str(path), "zstd" if suffix.endswith("zst") else "gzip") as file:
        file.write(plain.read_bytes())
    found = _read(tmp_path / "src")
    assert [r.image for r in found] == [pair_sources.picture(i) for i in range(4)] and found[0].key.startswith(
        "a/b/c/d/"
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert _kinds(_read(tmp_path / "src"))[-1] == "unreadable_shard"


def test_what_is_not_read_is_named(tmp_path):
    pair_sources.write_tar(
        tmp_path / "x.tar", [("inner.tar", (pair_sources.webdataset(tmp_path) / "00000.tar").read_bytes())]
    )
    message = _message(tmp_path / "x.tar")
    assert (
        f"holds archives and no pictures; valid: unpack it first: mkdir shards && tar -xf {tmp_path}/x.tar" in message
    )
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "a.zip").write_bytes(b"PK")
    assert "unpack them first: unzip a.zip -d pairs" in _message(tmp_path / "zip")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.jpg").write_bytes(pair_sources.picture(0))
    assert "1 pictures, and no captions beside them" in _message(tmp_path / "pictures")
    (tmp_path / "jxl").mkdir()
    (tmp_path / "jxl" / "K.jxl").write_bytes(b"\xff\x0a" + b"0" * 40)
    (tmp_path / "jxl" / "K.txt").write_text("a")
    (raw,) = _read(tmp_path / "jxl")
    assert raw.image.startswith(b"\xff\x0a")


# Hostile archives


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    import tarfile

    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def test_members_that_must_not_be_read_are_named(tmp_path):
    odd = [_header("../../up.jpg", 0), _header("link.jpg", 0, b"2"), _header("device.jpg", 0, b"3"),
           _header("pipe.txt", 0, b"6"), _header("a/../../b.txt", 0)]  # fmt: skip
    path = tmp_path / "src" / "x.tar"
    path.parent.mkdir()
    good = [data for name, data in pair_sources.pair("0", 0)]
    body = b"".join(_header(f"0.{e}", len(d)) + d + bytes(-len(d) % 512) for e, d in zip(("jpg", "txt", "json"), good))
    path.write_bytes(b"".join(odd) + body + bytes(1024))
    found = _read(path)
    assert _kinds(found) == [""] + ["unsafe_member"] * 5
    assert {r.key: r.error.detail for r in found[1:]} == {
        "../../up.jpg": "has a name that leads out of the archive",
        "link.jpg": "is a symbolic link in the archive",
        "device.jpg": "is a device in the archive",
        "pipe.txt": "is a pipe in the archive",
        "a/../../b.txt": "has a name that leads out of the archive",
    }


@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_a_header_that_claims_ten_gigabytes_costs_no_memory(kind, tmp_path):
    import tracemalloc

    path = tmp_path / "x.tar"
    good = b"".join(_header(n, len(d)) + d + bytes(-len(d) % 512) for n, d in pair_sources.pair("0", 0))
    path.write_bytes(good + _header("1.jpg", 10 * 1024**3, kind) + b"few")
    tracemalloc.start()
    found = _read(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert _kinds(found) == ["", "unreadable_shard"]
    assert "claims 10,737,418,240 bytes where 3 are left" in found[1].error.detail


def test_endless_members_and_endless_compression_are_bounded(tmp_path, monkeypatch):
    import gzip

    from maeclip_jax.prepare import tarball
    from maeclip_jax.prepare.formats import webdataset

    monkeypatch.setattr(tarball, "MOST_MEMBERS", 50)
    (tmp_path / "x.tar").write_bytes(b"".join(_header(f"{i}.txt", 0) for i in range(100)))
    found = _read(tmp_path / "x.tar")
    assert len(found) == 52 and "more than 50 pictures and texts" in found[-1].error.detail
    monkeypatch.setattr(webdataset, "_LEAST", 1 << 16)
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress(bytes(64 << 20)))
    (raw,) = _read(tmp_path / "z.tar.gz")
    assert raw.error.kind == "unreadable_shard" and "expands to more than" in raw.error.detail


def test_tars_of_any_writer_are_indexed_as_the_library_does(tmp_path):
    import io
    import tarfile

    from maeclip_jax.prepare import tarball

    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format}.tar"
        with tarfile.open(path, "w", format=format) as tar:
            for name in ("0.jpg", "d" * 90 + "/" + "e" * 60 + ".jpg", "é.txt", "n" * 99 + ".jpg"):
                if format == tarfile.USTAR_FORMAT and name == "n" * 99 + ".jpg":
                    continue
                entry = tarfile.TarInfo(name)
                entry.size = 700
                tar.addfile(entry, io.BytesIO(bytes(700)))
            if format != tarfile.USTAR_FORMAT:
                entry = tarfile.TarInfo("f/" * 120 + "g.jpg")
                tar.addfile(entry)
        with tarfile.open(path) as tar, open(path, "rb") as file:
            found = tarball.index(file.fileno(), os.path.getsize(path))
            expected = [(m.name, m.offset_data, m.size) for m in tar]
        assert [(m.name, m.start, m.size) for m in found.members] == expected and not found.problem


# Processes


def test_an_error_with_several_workers_is_one_line(tmp_path):
    for i in range(4):
        (tmp_path / "src").mkdir(exist_ok=True)
        pair_sources.write_tar(tmp_path / "src" / f"{i}.tar", [(f"{i}.txt", b"a")])
    args = [
        "-m",
        "maeclip_jax.prepare",
        "--src",
        str(tmp_path / "src"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "2",
    ]
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "SemLock" not in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
