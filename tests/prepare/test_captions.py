"""Where captions are found, and what is said where they are not."""

import csv
import io
import json
from pathlib import Path

import dump_sources
import pair_sources
import pytest

from maeclip_jax.prepare import command


def _error(capsys, *argv) -> str:
    capsys.readouterr()
    assert command.main([str(a) for a in argv]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_mark_of_byte_order_is_no_part_of_a_caption(tmp_path):
    members = [("0.jpg", pair_sources.picture(0)), ("0.txt", "\ufeffa &amp; b\n\tc".encode())]
    (raw,) = dump_sources.read(pair_sources.write_tar(tmp_path / "x.tar", members))
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
    (raw,) = dump_sources.read(pair_sources.write_tar(tmp_path / "x.tar", members), caption_column=path)
    assert raw.texts == expected
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(pair_sources.picture(0))
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "0.jpg"} | row) + "\n")
    (raw,) = dump_sources.read(tmp_path / "t.jsonl", caption_column=path)
    assert raw.texts == expected and raw.image


@pytest.mark.parametrize(
    "row, path, expected",
    [
        ({"captions": ["a", None, "b"]}, "", ("a", "", "b")),
        ({"sentences": [{"raw": "a"}, {"tokens": ["b"]}, None]}, "", ("a", "", "")),
        ({"captions": [{"text": "a"}, {"text": None}]}, "captions[].text", ("a", "")),
        ({"captions": [], "caption": "a"}, "", ("a",)),
        ({"captions": [" ", None], "caption": "", "text": "a"}, "", ("a",)),
        ({"caption": " "}, "", (" ",)),
    ],
)
def test_an_empty_caption_hides_no_other(row, path, expected, tmp_path):
    members = [("0.jpg", pair_sources.picture(0)), ("0.json", json.dumps(row).encode())]
    (raw,) = dump_sources.read(pair_sources.write_tar(tmp_path / "x.tar", members), caption_column=path)
    assert raw.texts == expected and not raw.error
    members.append(("0.txt", b" \n"))
    (raw,) = dump_sources.read(pair_sources.write_tar(tmp_path / "y.tar", members), caption_column=path)
    assert raw.texts == expected and not raw.error


@pytest.mark.parametrize(
    "cell, expected",
    [
        ('["Two young guys.", "Two, \\"men\\"."]', ("Two young guys.", 'Two, "men".')),
        (' ["a"]', ("a",)),
        ("[]", ()),
        ("['a', 'b']", ("['a', 'b']",)),
        ("[1, 2]", ("[1, 2]",)),
        ('["a"] and ["b"]', ('["a"] and ["b"]',)),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_cell_that_is_a_list_in_json_holds_several_captions(cell, expected, suffix, tmp_path):
    """As Hugging Face's csv of Flickr30k has them; a text of json is the text."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerows([("raw", "filename"), (cell, "0.jpg")])
    line = json.dumps({"filename": "0.jpg", "raw": cell}) + "\n"
    (tmp_path / f"t{suffix}").write_text(line if suffix == ".jsonl" else file.getvalue())
    (tmp_path / "0.jpg").write_bytes(pair_sources.picture(0))
    (raw,) = dump_sources.read(tmp_path / f"t{suffix}", caption_column="raw")
    assert raw.texts == ((cell,) if suffix == ".jsonl" else expected)
    assert bool(raw.error) == (raw.texts == ())


def test_what_could_be_a_caption_is_listed_with_examples(tmp_path):
    row = {"uid": "x1", "blip": {"long": "a dog"}, "notes": [{"t": "b"}]}
    members = [("0.jpg", pair_sources.picture(0)), ("0.json", json.dumps(row).encode())]
    src = pair_sources.write_tar(tmp_path / "x.tar", members)
    message = dump_sources.message(src)
    assert "valid: --caption_column with one of uid ('x1'), blip.long ('a dog'), notes[].t ('b')" in message
    message = dump_sources.message(src, caption_column="blop.long")
    assert "unknown caption_column 'blop.long' (did you mean 'blip.long'?)" in message


def test_a_column_that_some_parquet_files_lack_is_an_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for i, name in enumerate(("caption", "text")):
        pq.write_table(pa.table({"jpg": [pair_sources.picture(i)], name: ["a"]}), tmp_path / f"{i}.parquet")
    message = dump_sources.message(tmp_path)
    assert message.startswith("1.parquet has other columns than 0.parquet: unknown caption_column 'caption'")


def test_too_many_bad_records_are_named_where_the_message_says(tmp_path, capsys):
    src = pair_sources.table(tmp_path / "src", [{"image": f"{i}.jpg", "caption": "c"} for i in range(4)], pictures=1)
    message = _error(capsys, "--src", src, "--out", tmp_path / "out", "--workers", 1)
    path = message.split("nothing is left; " if "nothing" in message else "max_bad=0.5; ")[1].split(" names each")[0]
    assert [json.loads(line)["key"] for line in Path(path).read_text().splitlines()] == ["1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize("layout", ["webdataset", "files"])
def test_a_field_that_a_whole_shard_lacks_is_an_error(layout, tmp_path, capsys):
    shards = [dump_sources.downloads(2, 0, blip="a"), dump_sources.downloads(2, 0, start=10)]
    src = dump_sources.img2dataset(tmp_path / "src", layout, shards)
    message = _error(capsys, "--src", src, "--out", tmp_path / "out", "--workers", 1, "--caption_column", "blip")
    shard = "00001.tar" if layout == "webdataset" else "00001"
    assert message.startswith(f"error: {shard}: none of its 2 records has a field 'blip'; valid: a field that all")
    assert "unknown split_column 'splt'" in _error(capsys, "--src", src, "--out", tmp_path, "--split_column", "splt")


def test_texts_that_are_not_utf_8_are_one_bad_record(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"good", b"\xff bad", b"good"]).view(pa.string())
    pictures = [pair_sources.picture(i) for i in range(3)]
    pq.write_table(pa.table({"jpg": pictures, "text": texts}), tmp_path / "x.parquet")
    tree, account, _ = dump_sources.prepared(tmp_path / "x.parquet", tmp_path / "out")
    assert tree["records"]["kept"] == 2 and [entry["kind"] for entry in account] == ["garbled_caption"]
