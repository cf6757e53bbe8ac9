"""The Beam builder against the local runner: the same records, bytes and counts."""

import json
import os
from pathlib import Path

import pair_sources
import pytest

from maeclip_jax.prepare import command, crawl, records

pytest.importorskip("apache_beam", reason="Apache Beam is not installed (pip install maeclip_jax[prepare])")


def _records(folder: Path) -> dict[str, dict[tuple, tuple]]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    decoders = {"image": tfds.decode.SkipDecoding()}
    return {
        split: {
            (r["source"], r["key"]): (r["image"], r["texts"], r["width"], r["height"], r["source"])
            for r in builder.as_data_source(split, decoders=decoders)
        }
        for split in builder.info.splits
    }


def _both(tmp_path, src, *options) -> tuple[Path, Path]:
    folders = []
    for runner in ("local", "beam"):
        argv = ("--src", src, "--out", tmp_path / runner, "--name", "pairs", "--workers", 1, "--runner", runner)
        assert command.main([str(a) for a in (*argv, "--short_side", 24, *options)]) == 0
        folders.append(tmp_path / runner / "pairs" / "1.0.0")
    return tuple(folders)


def test_beam_and_local_agree_on_img2dataset(tmp_path):
    src = pair_sources.webdataset(tmp_path / "src", failed=4)
    for name in ("a.tar", "b.tar"):  # equal keys in two shards
        pair_sources.write_tar(src / "val" / name, pair_sources.pair("0", ord(name[0])))
    local, beam = _both(tmp_path, src)
    accounts = [json.loads((f / "manifest.json").read_text())["records"] for f in (local, beam)]
    assert accounts[0] == accounts[1]
    assert accounts[1]["in"] == 26 and accounts[1]["kept"] == 14
    assert accounts[1]["failed_downloads"] == {"failed_to_download": 12}
    account = [sorted((f / "account.jsonl").read_text().splitlines()) for f in (local, beam)]
    assert account[0] == account[1] and len(account[0]) == 12
    assert _records(local) == _records(beam)
    assert sorted(p.name for p in beam.parent.iterdir()) == ["1.0.0"]


def test_beam_and_local_agree_on_splits_duplicates_and_drops(tmp_path):
    names = [0, 1, 2, 0, 3, 9, 1, 4, 5, 0]
    rows = [{"image": f"{n}.jpg", "caption": f"c{i}", "split": ("val", "train")[n % 2]} for i, n in enumerate(names)]
    src = pair_sources.table(tmp_path / "src", rows, pictures=6)
    (src / "images" / "4.jpg").write_bytes(b"no picture")
    local, beam = _both(tmp_path, src, "--unit_records", 2)
    assert _records(local) == _records(beam)
    accounts = [json.loads((f / "manifest.json").read_text()) for f in (local, beam)]
    for part in ("records", "totals", "quantiles", "source"):
        assert accounts[0][part] == accounts[1][part]
    assert accounts[1]["records"]["dropped_by_kind"] == {"duplicate_key": 3, "missing_image": 1, "not_an_image": 1}
    dropped = [sorted((f / "account.jsonl").read_text().splitlines()) for f in (local, beam)]
    assert dropped[0] == dropped[1]


@pytest.mark.parametrize("what", ["keep", "drop"])
def test_beam_and_local_agree_on_the_same_bytes_and_show_the_same_pictures(what, tmp_path):
    for shard, numbers in enumerate(((0, 1, 1), (2, 0), (1, 3))):
        members = [m for i, n in enumerate(numbers) for m in pair_sources.pair(f"{shard}{i}", n)]
        pair_sources.write_tar(tmp_path / "src" / f"{shard}.tar", [*members, (f"{shard}.jpg", b"no picture")])
    local, beam = _both(tmp_path, tmp_path / "src", "--same_bytes", what)
    assert _records(local) == _records(beam)
    accounts = [json.loads((f / "manifest.json").read_text())["records"] for f in (local, beam)]
    assert accounts[0] == accounts[1] and accounts[0]["kept"] == (7 if what == "keep" else 4)
    for name, count in (("suspects.jsonl", 3 if what == "keep" else 0), ("account.jsonl", 3 if what == "keep" else 6)):
        lines = [sorted((f / name).read_text().splitlines()) for f in (local, beam)]
        assert lines[0] == lines[1] and len(lines[0]) == count
    pages = [(f / "account.html").read_text() for f in (local, beam)]
    assert pages[0] == pages[1] and pages[0].count("<img ") == 7


def test_a_runner_that_cannot_be_fetched_is_one_line(tmp_path, monkeypatch, capsys):
    from maeclip_jax.prepare import image_text_beam

    def refuse(self, **_):
        raise RuntimeError("Unable to fetch remote job server jar at https://x: no name\nmore")

    monkeypatch.setattr(image_text_beam.ImageText, "download_and_prepare", refuse)
    src = pair_sources.webdataset(tmp_path / "src")
    assert command.main(["--src", str(src), "--out", str(tmp_path / "out"), "--runner", "beam"]) == 2
    assert "error: Unable to fetch remote job server jar at https://x: no name more; valid:" in capsys.readouterr().err


def test_too_many_bad_records_leave_no_data_set(tmp_path, capsys):
    src = pair_sources.table(tmp_path / "src", [{"image": f"{i}.jpg", "caption": "c"} for i in range(4)], pictures=1)
    argv = ["--src", str(src), "--out", str(tmp_path / "out"), "--name", "pairs", "--runner", "beam"]
    assert command.main(argv) == 2
    assert "error: 3 of 4 records are bad (missing_image 3)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "pairs" / "1.0.0").exists()
    (src / "images" / "0.jpg").unlink()
    assert command.main(argv) == 2
    assert "no record of a split can be kept (splits: train)" in capsys.readouterr().err


def test_splits_in_json_members_are_refused(tmp_path, capsys):
    row = json.dumps({"caption": "c", "split": "val"}).encode()
    members = [("0.jpg", pair_sources.picture(0)), ("0.json", row)]
    src = pair_sources.write_tar(tmp_path / "src" / "0.tar", members)
    assert command.main(["--src", str(src), "--out", str(tmp_path), "--runner", "beam"]) == 2
    assert (
        "beam must know the splits before it reads webdataset; valid: no --split_column, --ignore_split"
        in capsys.readouterr().err
    )


def test_splits_of_members_that_beam_does_not_know_are_refused(tmp_path, capsys):
    src = pair_sources.write_tar(tmp_path / "x.tar", pair_sources.pair("val/0", 0) + pair_sources.pair("train/1", 1))
    argv = ["--src", str(src), "--out", str(tmp_path / "out"), "--runner", "beam"]
    assert command.main(argv) == 2
    said = (
        "error: val/0 names the split 'val', and beam must know the splits before it reads; valid: --ignore_split, or"
    )
    assert said in capsys.readouterr().err
    assert command.main([*argv, "--ignore_split"]) == 0


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """`gs://` as a folder: what differs from a local path (no os calls, no ArrayRecord) shows."""
    from etils.epath import backend
    from fsspec.implementations.dirfs import DirFileSystem

    class Bucket(DirFileSystem):
        def _join(self, path):
            return super()._join(path if isinstance(path, list) else str(path).removeprefix("gs://"))

        def rename(self, path, to, recursive=False, **_):
            return os.rename(self._join(path), self._join(to))

    fake = Bucket(str(tmp_path / "cloud"), fo=None, target_protocol="file")
    (tmp_path / "cloud").mkdir()
    real = backend._FileSystemSpecBackend._get_filesystem
    pick = lambda self, name: fake if name == "gcs" else real(self, name)  # noqa: E731
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", pick)
    return tmp_path / "cloud"


def test_tars_are_read_from_a_bucket(bucket):
    src = pair_sources.webdataset(bucket / "b" / "src")
    local, remote = crawl.plan(str(src)), crawl.plan("gs://b/src")
    assert local.units == remote.units and remote.reading.root == "gs://b/src"
    for unit in local.units:
        assert list(records.read(local.reading, unit)) == list(records.read(remote.reading, unit))


def test_a_bucket_is_written_by_the_builder(bucket, tmp_path):
    from maeclip_jax.prepare import image_text, image_text_beam

    src = pair_sources.webdataset(tmp_path / "src")
    plan = crawl.plan(str(src))
    identity = {"options": {}, "source": {"format": "webdataset", "root": str(src)}}
    # The scratch folder is written by Beam's own file systems (apache-beam[gcp]), which are not ours to test.
    options = {"scratch": str(tmp_path / "scratch"), "max_bad": 0.5, "identity": identity, "data_dir": "gs://b/data"}
    builder = image_text_beam.ImageText(plan, image_text.Storing(), name="pairs", **options)
    builder.download_and_prepare()
    out = bucket / "b" / "data" / "pairs" / "1.0.0"
    assert len(_records(out)["train"]) == 12
    assert json.loads((out / "manifest.json").read_text()) == builder.manifest


def test_a_bucket_that_beam_cannot_write_is_named(bucket, tmp_path, capsys):
    from apache_beam.io.filesystems import FileSystems

    try:
        FileSystems.get_filesystem("gs://b")
    except ValueError:
        src = pair_sources.webdataset(tmp_path / "src")
        assert command.main(["--src", str(src), "--out", "gs://b/data", "--runner", "beam"]) == 2
        message = capsys.readouterr().err
        assert "error: Beam cannot write to out='gs://b/data/my_pairs/1.0.0'; valid: a local or mounted" in message
    else:
        pytest.skip("apache-beam[gcp] is installed")
