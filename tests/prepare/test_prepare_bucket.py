"""Sources and targets in a bucket, on the real storage server of `maeclip_jax.bench.bucket`."""

import io
import json

import dump_sources
import numpy as np
import pair_sources
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare import command, crawl, packing, records, vocabulary
from maeclip_jax.prepare.formats import remote as bucket_files


def _main(*argv) -> int:
    return command.main([str(a) for a in argv])


def _error(capsys, *argv) -> str:
    capsys.readouterr()
    assert _main(*argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def _records(src) -> list[str]:
    plan = crawl.plan(str(src))
    return [repr(raw) for unit in plan.units for raw in records.read(plan.reading, unit)]


def _media(counts) -> int:
    return counts.by_class["media"].requests


@pytest.fixture
def place(request, fresh_bucket):
    """A prefix of this test's own."""
    return request.node.name.replace("[", "-").replace("]", "")


# Sources


def test_tars_are_read_by_long_ranges(tmp_path, fresh_bucket, place):
    rng, members = np.random.default_rng(0), []
    for i in range(1500):
        noise = rng.bytes(20_000)
        members += [(f"{i:05d}.jpg", noise), (f"{i:05d}.txt", b"a caption"), (f"{i:05d}.json", b"{}")]
    tar = pair_sources.write_tar(tmp_path / "src" / "00000.tar", members)
    src = fresh_bucket.upload(tar.parent, place)
    (unit,) = (plan := crawl.plan(src)).units
    fresh_bucket.reset()
    found = list(records.read(plan.reading, unit))
    counts = fresh_bucket.counts()
    assert len(found) == 1500 and not any(raw.error for raw in found)
    size = tar.stat().st_size
    assert size > 32e6 and _media(counts) <= size / 8e6 + 3 and counts.bytes_sent < 1.1 * size


def test_tars_in_a_bucket_give_what_local_ones_give(tmp_path, fresh_bucket, place):
    local = pair_sources.webdataset(tmp_path / "src", shards=12, failed=2)
    (local / "00001.tar").write_bytes((local / "00001.tar").read_bytes()[:-3000])  # cut short
    src = fresh_bucket.upload(local, place)
    fresh_bucket.reset()
    plan = crawl.plan(src)
    assert plan.units == crawl.plan(str(local)).units
    counts = fresh_bucket.counts()
    assert _media(counts) <= 12 + 2  # a file of counts a shard, and the first tar
    # Two listings; gcsfs 2026.10 asks twice what a name is, by 2 requests or by 3, as the first is answered sooner.
    assert counts.requests - _media(counts) <= 2 + 2 * 3
    assert _records(src) == _records(local)


def test_compressed_tars_and_arrow_and_tfrecord_are_read_from_a_bucket(tmp_path, fresh_bucket, place):
    import gzip

    local = tmp_path / "src"
    tar = pair_sources.webdataset(tmp_path / "plain", shards=1) / "00000.tar"
    (local / "gz" / "deep" / "er" / "and").mkdir(parents=True)
    (local / "gz" / "deep" / "er" / "and" / "0.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    dump_sources.hugging_face(local / "arrow", {"train": 3, "validation": 2})
    dump_sources.img2dataset(local / "tfrecord", "tfrecord", [dump_sources.downloads(3, 2)])
    src = fresh_bucket.upload(local, place)
    for name in ("gz", "arrow", "tfrecord"):
        found = _records(f"{src}/{name}")
        assert found == _records(local / name) and len(found) >= 4, name


def test_fields_of_tars_in_a_bucket_are_looked_at(tmp_path, fresh_bucket, place):
    members = []
    for i in range(100):
        row = json.dumps({"caption": "c", "split": ("train", "test")[i % 2]}).encode()
        members += [(f"{i}.jpg", pair_sources.picture(i)), (f"{i}.json", row)]
    src = fresh_bucket.upload(pair_sources.write_tar(tmp_path / "src" / "0.tar", members).parent, place)
    plan = crawl.plan(src)
    assert [raw.split for raw in records.read(plan.reading, plan.units[0])] == ["train", "test"] * 50
    with pytest.raises(UserError, match="unknown split_column 'splt'"):
        crawl.plan(src, split_column="splt")


@pytest.mark.parametrize("name", ["captions.csv", "pairs.tsv", "captions.jsonl"])
@pytest.mark.parametrize("folder", ["images", "."])
def test_a_table_with_pictures_is_read_from_a_bucket(name, folder, tmp_path, fresh_bucket, place):
    rows = [{"filepath": f"{i}.jpg", "title": f"c{i}", "split": ("train", "val")[i % 2]} for i in range(150)]
    rows[7]["filepath"], rows[8]["filepath"] = "gone.jpg", "./8.jpg"
    local = pair_sources.table(tmp_path / "src", rows, name)
    if folder == ".":
        for path in (local / "images").iterdir():
            path.rename(local / path.name)
    src = fresh_bucket.upload(local, place)
    fresh_bucket.reset()
    assert _main("--src", src, "--out", tmp_path / "remote", "--workers", 1) == 0
    assert _media(fresh_bucket.counts()) <= (2 if folder == "images" else 1) * 150 + 20
    assert _main("--src", local, "--out", tmp_path / "local", "--workers", 1) == 0
    one, other = (json.loads((tmp_path / o / "my_pairs/1.0.0/manifest.json").read_text()) for o in ("remote", "local"))
    assert one["records"] == other["records"]
    assert one["records"]["dropped_by_kind"] == {"missing_image": 1}
    assert one["splits"] == other["splits"]  # files and their SHA-256


def test_pictures_may_lie_in_another_folder_or_under_whole_addresses(tmp_path, fresh_bucket, place):
    root = fresh_bucket.url(place)
    rows = [{"image": f"{i}.jpg", "caption": "c"} for i in range(3)]
    local = pair_sources.table(tmp_path / "src", [*rows, {"image": f"{root}/images/3.jpg", "caption": "c"}])
    fresh_bucket.upload(local, place)
    plan = crawl.plan(str(local / "captions.jsonl"), image_dir=f"{root}/images")
    found = [raw for unit in plan.units for raw in records.read(plan.reading, unit)]
    assert [raw.image for raw in found] == [pair_sources.picture(i) for i in range(4)]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "a.txt", "b-cache"])
def test_the_name_of_a_folder_may_look_like_that_of_a_file(name, tmp_path, remote):
    from maeclip_jax import remote as files

    files.register()  # as a run does, which asks less of the names of its own files
    file = pair_sources.table(tmp_path, [{"image": "0.jpg", "caption": "c"}]) / "captions.jsonl"
    files.write(f"{remote}/{name}/captions.jsonl", file.read_bytes())
    files.write(f"{remote}/{name}/images/0.jpg", pair_sources.picture(0))
    images = f"{remote}/{name}/images"
    plan = crawl.plan(f"{remote}/{name}", image_dir=images)
    (found,) = [raw for unit in plan.units for raw in records.read(plan.reading, unit)]
    assert found.image == pair_sources.picture(0)
    assert crawl.plan(f"{remote}/{name}/captions.jsonl", image_dir=images).units == plan.units
    with pytest.raises(UserError, match="is not a folder"):
        crawl.plan(f"{remote}/{name}", image_dir=f"{images}/0.jpg")
    with pytest.raises(UserError, match="does not exist"):
        crawl.plan(f"{remote}/other-{name}")


def test_parquet_is_read_from_a_bucket(tmp_path, fresh_bucket, place):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "src").mkdir()
    table = pa.table({"jpg": [pair_sources.picture(i) for i in range(6)], "txt": list("abcdef")})
    pq.write_table(table, tmp_path / "src" / "0.parquet", row_group_size=2)
    src = fresh_bucket.upload(tmp_path / "src", place)
    assert _records(src) == _records(tmp_path / "src")


def test_what_a_bucket_refuses_is_not_taken_for_damage(tmp_path, fresh_bucket, place, capsys):
    src = fresh_bucket.upload(pair_sources.webdataset(tmp_path / "src", shards=2), f"{place}/tars")
    usual = ("--src", src, "--out", tmp_path / "out", "--workers", 1)
    fresh_bucket.fault("00001.tar", "media", "403")
    message = _error(capsys, *usual)
    assert message.startswith(f"error: cannot read {src}/00001.tar: Forbidden")
    assert message.endswith("; the same command continues when it can")
    fresh_bucket.clear()
    assert _main(*usual) == 0
    table = pair_sources.table(tmp_path / "table", [{"image": f"{i}.jpg", "caption": "c"} for i in range(3)])
    src = fresh_bucket.upload(table, f"{place}/table")
    fresh_bucket.fault("images/1.jpg", "media", "403")
    message = _error(capsys, "--src", src, "--out", tmp_path / "out", "--name", "b", "--workers", 1)
    assert message.startswith(f"error: cannot read {src}/images/1.jpg: Forbidden")


def test_loose_files_in_a_bucket_are_refused_with_what_to_do(tmp_path, fresh_bucket, place, capsys):
    src = fresh_bucket.upload(pair_sources.files(tmp_path / "src"), place)
    fresh_bucket.upload(tmp_path / "src" / "00000", f"{place}/only")
    assert _error(capsys, "--src", f"{src}/only", "--out", tmp_path) == (
        f"error: source '{src}/only' holds nothing that can be read from a bucket; valid: webdataset, table or parquet "
        f"there, or a local copy of loose files: gcloud storage cp -r {src}/only ."
    )


# Targets


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "count", lambda records, size: max(1, records // 4))
    return pair_sources.webdataset(tmp_path / "src")


def _objects(url) -> dict[str, bytes]:
    return {name: bucket_files.read(f"{url}/{name}") for name in bucket_files.names(url)}


def test_a_data_set_in_a_bucket_has_the_bytes_of_a_local_one(source, tmp_path, fresh_bucket, place, capsys):
    out = f"{fresh_bucket.url(place)}/data"
    same = ("--src", source, "--out", out, "--workers", 1, "--scratch", tmp_path / "scratch")
    assert _main(*same) == 0
    assert f"unfinished work lies in {tmp_path}/scratch/my_pairs-1.0.0.incomplete until" in capsys.readouterr().err
    assert _main("--src", source, "--out", tmp_path / "out", "--workers", 1) == 0
    expected = pair_sources.digests(tmp_path / "out" / "my_pairs" / "1.0.0")
    assert _objects(f"{out}/my_pairs/1.0.0") == expected
    assert sum(".array_record-" in name for name in expected) == 3
    assert not list((tmp_path / "scratch").iterdir())
    capsys.readouterr()
    assert _main(*same) == 0
    assert "nothing left to do" in capsys.readouterr().out
    from maeclip_jax.data import source as sources

    found = sources.make({"kind": "tfds", "dir": out, "name": "my_pairs"})
    assert len(found) == 12 and found[11]["key"] == "000020003"
    assert "short_side=0, which is now 20" in _error(capsys, *same, "--short_side", 20)
    assert _main(*same, "--short_side", 20, "--overwrite") == 0
    assert set(_objects(f"{out}/my_pairs/1.0.0")) == set(expected)


class _Killed(BaseException):
    pass


def test_a_killed_upload_is_no_data_set_and_continues(source, tmp_path, fresh_bucket, place, monkeypatch, capsys):
    assert _main("--src", source, "--out", tmp_path / "out", "--workers", 1) == 0
    expected = pair_sources.digests(tmp_path / "out" / "my_pairs" / "1.0.0")
    upload, left, uploaded = bucket_files.upload, [0], []

    def stop(path, to):
        if not left[0]:
            raise _Killed
        left[0] -= 1
        uploaded.append(to.name)
        upload(path, to)

    for number in (0, 1, 4):
        out = f"{fresh_bucket.url(place)}/{number}"
        same = ("--src", source, "--out", out, "--workers", 1, "--scratch", tmp_path / f"{number}")
        left[0] = number
        with monkeypatch.context() as patch, pytest.raises(_Killed):
            patch.setattr(bucket_files, "upload", stop)
            _main(*same)
        before = _objects(f"{out}/my_pairs/1.0.0")
        assert len(before) == number + 1 - (number > 3) and "dataset_info.json" not in before
        message = _error(capsys, *same[:-1], tmp_path / "elsewhere")
        assert f"holds files of an unfinished data set ({min(before)}, {len(before)} in all); valid: the" in message
        assert message.endswith("the same --scratch as before, which continues, another --name, or --overwrite")
        with monkeypatch.context() as patch:
            left[0] = 100
            uploaded.clear()
            patch.setattr(bucket_files, "upload", stop)
            assert _main(*same) == 0
        assert uploaded[-1] == "dataset_info.json"
        assert sum(".array_record-" in name for name in uploaded) == max(0, 3 - number)
        assert _objects(f"{out}/my_pairs/1.0.0") == expected


def test_a_bucket_that_may_not_be_written_is_one_line(source, tmp_path, fresh_bucket, place, capsys):
    out = fresh_bucket.url(place)
    fresh_bucket.fault(place, "put", "403")
    same = ("--src", source, "--out", out, "--scratch", tmp_path / "scratch", "--workers", 1)
    message = _error(capsys, *same)
    assert message.startswith(f"error: cannot write {out}/my_pairs/1.0.0/unfinished.txt: Forbidden")
    assert message.endswith("; the same command continues when it can")
    fresh_bucket.clear()
    fresh_bucket.fault(f"{place}.*array_record", "put", "403")
    file = f"{out}/my_pairs/1.0.0/my_pairs-train.array_record-00000-of-00003"
    assert _error(capsys, *same).startswith(f"error: cannot write {file}: Forbidden")
    fresh_bucket.clear()
    assert _main(*same) == 0
    assert "dataset_info.json" in bucket_files.names(f"{out}/my_pairs/1.0.0")
    assert _error(capsys, "--src", source, "--out", "gs://nowhere/data", "--scratch", tmp_path, "--workers", 1) == (
        "error: cannot write gs://nowhere/data/my_pairs/1.0.0/unfinished.txt: there is no such bucket or file"
    )


def test_a_bucket_that_does_not_answer_is_one_line(source, tmp_path, fresh_bucket, place, capsys):
    fresh_bucket.fault("", "*", "401")
    message = _error(capsys, "--src", fresh_bucket.url(place), "--out", tmp_path)
    assert message.startswith(f"error: cannot reach {fresh_bucket.url(place)}: ") and "401" in message


# Vocabulary


def test_a_vocabulary_is_learnt_from_a_bucket_by_long_ranges(tmp_path, fresh_bucket, place):
    rows = [{"image": f"{i}.jpg", "caption": f"picture {'abcdefghij'[i % 10]} of many"} for i in range(300)]
    local = pair_sources.table(tmp_path / "src", rows)
    assert _main("--src", local, "--out", tmp_path / "data", "--name", "photos", "--workers", 1) == 0
    data = fresh_bucket.upload(tmp_path / "data", place)
    fresh_bucket.reset()
    captions = list(vocabulary.captions_of("photos", "train", data))
    assert captions == [row["caption"] for row in rows]
    shard = fresh_bucket.counts().by_object[f"{place}/photos/1.0.0/photos-train.array_record-00000-of-00001"]
    assert shard.requests <= 8
    out = f"{data}/photos/words.model"
    vocabulary.run(["--name=photos", f"--data_dir={data}", f"--out={out}", "--size=300"])
    import sentencepiece

    assert sentencepiece.SentencePieceProcessor(model_file=_copy(out, tmp_path)).vocab_size() > 10


def _copy(url, folder) -> str:
    path = folder / "copy"
    with open(path, "wb") as file, io.BytesIO(bucket_files.read(url)) as data:
        file.write(data.read())
    return str(path)
