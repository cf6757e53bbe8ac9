import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pair_sources
import pytest

from maeclip_jax.prepare import command, image_text

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MAECLIP_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def _main(*argv) -> int:
    return command.main([str(a) for a in argv])


def _error(capsys, *argv) -> str:
    assert _main(*argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def _read(folder, split="train") -> list[dict]:
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.builder_from_directory(str(folder)).as_data_source(split, decoders=decoders))


def test_img2dataset_becomes_a_tfds_data_set_with_an_account(tmp_path, capsys):
    src = pair_sources.webdataset(tmp_path / "src", shards=3, records=4, failed=1)
    assert _main("--src", src, "--out", tmp_path / "out", "--name", "cc", "--short_side", 24, "--workers", 1) == 0
    out = tmp_path / "out" / "cc" / "1.0.0"
    records = _read(out)
    assert [r["key"] for r in records] == [f"{s:05d}{i:04d}".encode() for s in range(3) for i in range(4)]
    assert records[5]["texts"] == [b"caption of 5"] and records[5]["source"] == b"00001.tar"
    assert (records[0]["width"], records[0]["height"]) == (32, 24)
    assert sorted(p.name for p in out.glob("*.array_record*"))[0] == "cc-train.array_record-00000-of-00001"
    printed = capsys.readouterr().out
    report = (out / "report.txt").read_text()
    assert report in printed
    assert "15 records in" in report and "3 downloads had failed before: failed_to_download" in report
    assert "12 kept in split train (1 shard)" in report
    assert "15 count, 3 failed to download, 12 successes" in report
    tree = json.loads((out / "manifest.json").read_text())
    assert tree["records"] == {
        "in": 15, "kept": 12, "kept_by_split": {"train": 12}, "dropped": 0, "dropped_by_kind": {},
        "failed_downloads": {"failed_to_download": 3}, "suspects": {},
    }  # fmt: skip
    assert tree["quantiles"]["source_short_side"]["0.5"] == 30 and tree["quantiles"]["caption_words"]["1"] == 3
    import hashlib

    for shard in tree["splits"]["train"]["shards"]:
        assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_same_command_continues(workers, tmp_path):
    """Files that may not grow stand for the disk: a test of it that every machine can run."""
    src = pair_sources.webdataset(tmp_path / "src", shards=3, records=40)
    args = ["-m", "maeclip_jax.prepare", "--src", str(src), "--out", str(tmp_path / "out"), "--workers", str(workers)]
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    done = subprocess.run([sys.executable, "-c", limited, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    out = tmp_path / "out" / "my_pairs" / "1.0.0"
    assert said.startswith(f"error: cannot write {out}: File too large; the same command continues when it can be"), (
        said
    )
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(_read(out)) == 120


def test_the_same_command_again_does_nothing_and_another_is_refused(tmp_path, capsys, monkeypatch):
    src = pair_sources.webdataset(tmp_path / "src", shards=1)
    same = ("--src", src, "--out", tmp_path / "out", "--workers", 1)
    assert _main(*same) == 0
    before = pair_sources.digests(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(image_text, "outcomes", None)
        assert _main(*same) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert "short_side=0, which is now 20; valid: the same as before" in _error(capsys, *same, "--short_side", 20)
    with open(src / "00000.tar", "ab") as file:
        file.write(b"\0" * 512)
    assert "source file '00000.tar', which has changed" in _error(capsys, *same)
    assert pair_sources.digests(tmp_path / "out") == before
    assert _main(*same, "--short_side", 20, "--overwrite") == 0
    assert _read(tmp_path / "out" / "my_pairs" / "1.0.0")[0]["height"] == 20


def test_killed_and_started_again_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    src = pair_sources.webdataset(tmp_path / "src", shards=24, records=16, size=(240, 180))
    options = ["--src", str(src), "--name", "cc", "--short_side", "64"]
    assert _main(*options, "--out", tmp_path / "whole", "--workers", 1) == 0
    out = tmp_path / "killed" / "cc"
    command = [sys.executable, "-m", "maeclip_jax.prepare", *options, "--out", str(tmp_path / "killed")]
    for finished in (1, 4):
        run = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 600
        while len(list(out.glob("1.0.0.incomplete/units/??????"))) < finished and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(run.pid, signal.SIGKILL)
        run.communicate(timeout=600)  # ends when the workers have let go of the pipes: none stays behind
        assert run.returncode == -signal.SIGKILL and not (out / "1.0.0").exists()
    assert _main(*options, "--out", tmp_path / "killed", "--workers", 2) == 0
    assert pair_sources.digests(tmp_path / "killed") == pair_sources.digests(tmp_path / "whole")


def test_errors_are_one_line_with_the_valid_choices(tmp_path, capsys):
    src = pair_sources.webdataset(tmp_path / "src", shards=1)
    usual = ("--src", src, "--out", tmp_path / "out")
    assert "unknown format 'tar'" in _error(capsys, *usual, "--format", "tar")
    assert "unknown runner 'spark'; valid: local, beam" in _error(capsys, *usual, "--runner", "spark")
    assert "name 'My-Set' is not a TFDS name" in _error(capsys, *usual, "--name", "My-Set")
    assert "short_side=-1; valid: 0 to" in _error(capsys, *usual, "--short_side", -1)
    assert "workers=0; valid: 1 to" in _error(capsys, *usual, "--workers", 0)
    assert "max_bad=2.0; valid: 0 to 1" in _error(capsys, *usual, "--max_bad", 2)
    message = _error(capsys, *usual, "--scratch", tmp_path)
    assert (
        "and runner local; valid: a local folder, with --out in a bucket and --runner local; else leave it" in message
    )
    assert "unknown flag '--shortside' (did you mean '--short_side'?); valid: " in _error(
        capsys, *usual, "--shortside", 3
    )
    assert "required: --src" in _error(capsys, "--out", tmp_path)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "my_pairs" / "1.0.0").mkdir(parents=True)
    assert "holds another data set; valid: another --name" in _error(capsys, *usual)


def test_too_many_bad_records_are_an_error_that_a_larger_limit_lifts(tmp_path, capsys):
    src = pair_sources.table(tmp_path / "src", [{"image": f"{i}.jpg", "caption": "c"} for i in range(4)], pictures=1)
    usual = ("--src", src, "--out", tmp_path / "out", "--workers", 1)
    assert "3 of 4 records are bad (missing_image 3), more than max_bad=0.5" in _error(capsys, *usual)
    assert _main(*usual, "--max_bad", 0.75) == 0
    dropped = (tmp_path / "out" / "my_pairs" / "1.0.0" / "account.jsonl").read_text().splitlines()
    assert [json.loads(d)["key"] for d in dropped] == ["1.jpg", "2.jpg", "3.jpg"]


def test_interruption_says_how_to_continue(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "prepare", interrupt)
    assert _main("--src", tmp_path, "--out", tmp_path) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
    src = pair_sources.webdataset(tmp_path / "src", shards=1)
    code = (
        "import sys; from maeclip_jax.prepare import command; assert command.main(sys.argv[1:]) == 0;"
        "print([m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, "--src", str(src), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(not (SHARED / "odd" / "manifest.jsonl").exists(), reason="no shared test data")
def test_counts_of_odd_files_add_up(tmp_path):
    columns = ("--image_column", "file", "--caption_column", "note")
    assert _main("--src", SHARED / "odd", "--out", tmp_path, "--name", "odd", "--workers", 1, *columns) == 0
    out = tmp_path / "odd" / "1.0.0"
    expected = {json.loads(line)["file"] for line in (SHARED / "odd" / "manifest.jsonl").read_text().splitlines()}
    kept = {r["key"].decode() for r in _read(out)}
    dropped = {json.loads(line)["key"] for line in (out / "account.jsonl").read_text().splitlines()}
    assert kept | dropped == expected and not kept & dropped
    records = json.loads((out / "manifest.json").read_text())["records"]
    assert records["in"] == records["kept"] + records["dropped"] == len(expected)
    assert sum(records["dropped_by_kind"].values()) == records["dropped"] == len(dropped)
    assert {"bomb_30000x30000.png", "empty.jpg", "html_error_page.jpg"} <= dropped


def test_beam_without_beam_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    src = pair_sources.webdataset(tmp_path / "src", shards=1)
    message = _error(capsys, "--src", src, "--out", tmp_path / "out", "--runner", "beam")
    assert message == "error: runner beam needs Apache Beam; valid: pip install maeclip_jax[prepare]"


def test_captions_that_a_tokenizer_cuts_are_in_the_report(tmp_path, capsys):
    src = pair_sources.webdataset(tmp_path / "src", shards=2, records=6)  # "caption of 0" to "caption of 11"
    same = ("--src", src, "--workers", 1, "--tokenizer=bytes")
    assert _main(*same, "--text_length=12", "--out", tmp_path / "cut") == 0
    assert "2 captions (16.67%) cut at 12 tokens by bytes" in capsys.readouterr().out
    assert _main(*same, "--text_length=13", "--out", tmp_path / "whole", "--name", "b") == 0
    assert "           0 captions (0.00%) cut at 13 tokens by bytes" in capsys.readouterr().out
    assert _main("--src", src, "--workers", 1, "--out", tmp_path / "plain") == 0
    assert "cut at" not in capsys.readouterr().out
    assert _error(capsys, "--src", src, "--out", tmp_path, "--tokenizer=bytes").endswith("or neither")
    assert "unknown tokenizer type 'byts' (did you mean 'bytes'?)" in _error(
        capsys, "--src", src, "--out", tmp_path, "--tokenizer=byts", "--text_length=3"
    )
    assert "is not there; " in _error(
        capsys, "--src", src, "--out", tmp_path, "--tokenizer=bert:no.txt", "--text_length=3"
    )
