import json

import pair_sources
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare import command, crawl, formats


def test_webdataset_is_found_with_its_counts_and_beside_its_parquet(tmp_path):
    plan = crawl.plan(str(pair_sources.webdataset(tmp_path / "src")))
    assert plan.reading.format == "webdataset" and plan.splits == ("train",)
    assert [(u.path, u.records) for u in plan.units] == [("00000.tar", 4), ("00001.tar", 4), ("00002.tar", 4)]


def test_a_single_tar_and_tars_in_folders_are_found(tmp_path):
    src = pair_sources.webdataset(tmp_path / "src", shards=2)
    assert [u.path for u in crawl.plan(str(src / "00001.tar")).units] == ["00001.tar"]
    assert [u.path for u in crawl.plan(str(tmp_path)).units] == ["src/00000.tar", "src/00001.tar"]


def test_files_are_found_before_their_parquet(tmp_path):
    plan = crawl.plan(str(pair_sources.files(tmp_path / "src")))
    assert plan.reading.format == "files"
    assert [(u.path, u.records) for u in plan.units] == [("00000", 3), ("00001", 3)]


@pytest.mark.parametrize("name", ["captions.jsonl", "pairs.csv", "pairs.tsv"])
def test_tables_are_found_with_usual_columns_and_splits(tmp_path, name):
    rows = [{"filepath": f"{i}.jpg", "title": "a b", "split": ("train", "val")[i % 2]} for i in range(4)]
    plan = crawl.plan(str(pair_sources.table(tmp_path / "src", rows, name)))
    reading = plan.reading
    assert (reading.image_column, reading.caption_column, reading.split_column) == ("filepath", "title", "split")
    assert plan.splits == ("train", "val")


def test_units_divide_the_groups_of_a_table(tmp_path):
    rows = [{"image": f"{i // 5}.jpg", "caption": f"c{i}"} for i in range(35)]  # Flickr8k: five rows a picture
    plan = crawl.plan(str(pair_sources.table(tmp_path / "src", rows, "x.csv", pictures=7)), unit_records=3)
    assert [u.records for u in plan.units] == [3, 3, 1]
    assert [u.row for u in plan.units] == [0, 15, 30]
    assert all(a.stop == b.start for a, b in zip(plan.units, plan.units[1:]))


def test_the_number_of_units_depends_on_the_source_alone(tmp_path):
    rows = [{"image": f"{i}.jpg", "caption": "c"} for i in range(250)]
    plan = crawl.plan(str(pair_sources.table(tmp_path / "src", rows, pictures=0)))
    assert [u.records for u in plan.units] == [100, 100, 50]


def test_parquet_with_bytes_and_hugging_face_structs(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [pair_sources.picture(i) for i in range(6)]
    (tmp_path / "a").mkdir()
    pq.write_table(pa.table({"jpg": data, "txt": list("abcdef")}), tmp_path / "a" / "0.parquet", row_group_size=2)
    plan = crawl.plan(str(tmp_path / "a"), unit_records=4)
    assert (plan.reading.image_column, plan.reading.caption_column) == ("jpg", "txt")
    assert [(u.start, u.stop, u.row, u.records) for u in plan.units] == [(0, 2, 0, 4), (2, 3, 4, 2)]
    (tmp_path / "b").mkdir()
    structs = [{"bytes": d, "path": "x.jpg"} for d in data]
    pq.write_table(pa.table({"image": structs, "text": list("abcdef")}), tmp_path / "b" / "0.parquet")
    assert crawl.plan(str(tmp_path / "b")).reading.image_column == "image"


def test_marks_change_with_the_source(tmp_path):
    src = pair_sources.files(tmp_path / "src")
    before = crawl.plan(str(src)).files
    (src / "00001" / "000010000.txt").write_text("another, longer caption")
    after = crawl.plan(str(src)).files
    assert before["00000"] == after["00000"] and before["00001"] != after["00001"]


def _message(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        crawl.plan(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_name_the_thing_and_the_valid_choices(tmp_path):
    assert "does not exist; valid: a folder or file of webdataset" in _message(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    message = _message(str(tmp_path / "empty"))
    assert "is empty" in message
    assert all(name in message for name in formats.FORMATS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.md").write_text("hello")
    assert "holds nothing that can be read" in _message(str(tmp_path / "other"))
    assert "unknown format 'tar'" in _message(str(tmp_path), format="tar")
    src = pair_sources.webdataset(tmp_path / "tars", shards=1)
    assert "--format auto, webdataset, arrow" in _message(str(src), format="table")
    assert "image_column has no meaning for webdataset" in _message(str(src), image_column="jpg")
    assert "split 'all' is not a TFDS split name" in _message(str(src), split="all")
    assert "image_dir '/nowhere' is not a folder" in _message(str(src), image_dir="/nowhere")


def test_a_bucket_out_of_reach_says_what_to_install(monkeypatch):
    from etils.epath import backend

    def missing(self, name):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", missing)
    message = _message("gs://bucket/pairs")
    assert "'gs://bucket/pairs' cannot be reached (Please install gcsfs); valid: a local or mounted folder" in message
    assert "no file system 'ftp://' for 'ftp://bucket/pairs'; valid: gs://" in _message("ftp://bucket/pairs")


def test_errors_of_tables(tmp_path):
    src = pair_sources.table(tmp_path / "src", [{"photo": "0.jpg", "words": "a"}])
    assert "no usual image column; valid: --image_column with one of photo, words" in _message(str(src))
    message = _message(str(src), image_column="photos")
    assert "unknown image_column 'photos' (did you mean 'photo'?); valid: photo, words" in message
    assert "no usual caption column" in _message(str(src), image_column="photo")
    (src / "more.jsonl").write_text("{}\n")
    (src / "captions.jsonl").rename(src / "less.jsonl")
    assert "several tables; valid: point --src at one of less.jsonl, more.jsonl" in _message(str(src))
    assert "no line of" in _message(_written(tmp_path / "a.jsonl", "not json\n[1]\n"))
    row = json.dumps({"image": "https://x/y.jpg", "text": "a"})
    assert "web addresses" in _message(_written(tmp_path / "u.jsonl", row))
    assert "holds no record as table" in _message(_written(tmp_path / "h.csv", "image,caption\n"))


def test_errors_of_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert "no parquet file in" in _message(_written(tmp_path / "a" / "x.parquet", "not parquet"))
    pq.write_table(pa.table({"uid": ["a"], "caption": ["b"]}), tmp_path / "meta.parquet")
    assert "no column of encoded pictures" in _message(str(tmp_path / "meta.parquet"))
    pq.write_table(pa.table({"jpg": [b"a"], "caption": ["b"]}), tmp_path / "good.parquet")
    message = _message(str(tmp_path / "good.parquet"), image_column="caption")
    assert "unknown image_column 'caption'; valid: jpg" in message


def _written(path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_split_column_may_be_ignored(tmp_path):
    """A table may have a column `split` that means something else."""
    file = tmp_path / "pairs.csv"
    file.write_text("image,caption,split\na.jpg,a cat,left half\nb.jpg,a dog,right half\n")
    assert crawl.plan(str(file)).reading.split_column == "split"
    ignored = crawl.plan(str(file), split_column=None)
    assert ignored.reading.split_column == "" and ignored.splits == ("train",)
    args = ["--src", str(file), "--out", str(tmp_path), "--ignore_split"]
    with pytest.raises(UserError, match="--ignore_split and --split_column=x exclude each other; give one"):
        command.prepare(command.parser().parse_args([*args, "--split_column=x"]))
    jsons = pair_sources.webdataset(tmp_path / "src", shards=1)
    assert crawl.plan(str(jsons), split_column=None).reading.split_column == ""
