"""Pictures with the same bytes, and pictures that look like those of an evaluation set."""

import io
import json
import os
from pathlib import Path

import dump_sources
import numpy as np
import pair_sources
import pytest
from PIL import Image

from maeclip_jax.prepare import command, packing, repeats, unit_folder

# 0 and 5 are of the first shard, and 5 twice; 9 comes only in the last two.
SHARDS = ((0, 5, 5, 1), (2, 0, 3), (5, 9, 4), (9, 6))


@pytest.fixture
def source(tmp_path):
    for shard, numbers in enumerate(SHARDS):
        members = [m for i, n in enumerate(numbers) for m in pair_sources.pair(f"{shard}{i}", n)]
        pair_sources.write_tar(tmp_path / "src" / f"{shard}.tar", members)
    return tmp_path / "src"


SAME = {"02": "01 in 0.tar", "11": "00 in 0.tar", "20": "01 in 0.tar", "30": "21 in 2.tar"}


def _suspects(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "n" / "1.0.0" / "suspects.jsonl").read_text().splitlines()]


def test_the_same_bytes_are_counted_and_named_and_dropped_on_request(source, tmp_path):
    tree, account, found = dump_sources.prepared(source, tmp_path / "keep")
    assert tree["records"]["kept"] == 12 and tree["records"]["suspects"] == {"same_bytes": 4} and not account
    assert {e["key"]: e["detail"] for e in _suspects(tmp_path / "keep")} == {
        key: f"the same bytes as {first}" for key, first in SAME.items()
    }
    tree, account, found = dump_sources.prepared(source, tmp_path / "drop", "--same_bytes", "drop", "--max_bad", 0)
    assert tree["records"]["dropped_by_kind"] == {"same_bytes": 4} and tree["records"]["suspects"] == {}
    assert {e["key"]: e["detail"] for e in account} == {k: f"the same bytes as {first}" for k, first in SAME.items()}
    assert [r["key"].decode() for r in found["train"]] == ["00", "01", "03", "10", "12", "21", "22", "31"]
    assert not _suspects(tmp_path / "drop")


@pytest.mark.parametrize("what", ["keep", "drop"])
def test_workers_and_small_parts_change_no_byte(what, source, tmp_path, monkeypatch):
    dump_sources.prepared(source, tmp_path / "1", "--same_bytes", what)
    dump_sources.prepared(source, tmp_path / "2", "--same_bytes", what, "--workers", 1 if what == "keep" else 2)
    monkeypatch.setattr(repeats, "_COMPARED", 2)
    monkeypatch.setattr(repeats, "_NAMED", 1)
    monkeypatch.setattr(unit_folder, "_BLOCK", 2)
    dump_sources.prepared(source, tmp_path / "3", "--same_bytes", what)
    first = pair_sources.digests(tmp_path / "1")
    assert first == pair_sources.digests(tmp_path / "2") == pair_sources.digests(tmp_path / "3")


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("what", ["keep", "drop"])
def test_killed_anywhere_the_same_is_dropped_and_shown(what, tmp_path, monkeypatch):
    """Keys repeat as well, in units of one file, so that dropping a key changes which picture came first."""
    monkeypatch.setattr(packing, "count", lambda records, size: max(1, records // 3))
    names = ["a", "b", "c", "a", "d", "e", "b", "f", "g", "c"]
    rows = [{"image": f"{n}.jpg", "caption": f"c{i}"} for i, n in enumerate(names)]
    src = pair_sources.table(tmp_path / "src", rows, pictures=0)
    for name, number in zip("abcdefg", (0, 1, 0, 2, 1, 2, 3)):
        (src / "images" / f"{name}.jpg").write_bytes(pair_sources.picture(number))
    argv = ["--src", src, "--name", "n", "--workers", 1, "--unit_records", 2, "--same_bytes", what, "--out"]
    argv = [str(a) for a in argv]
    assert command.main([*argv, str(tmp_path / "whole")]) == 0
    expected = pair_sources.digests(tmp_path / "whole")
    rename, stops = os.rename, 0
    while True:
        left = [stops]

        def stop(a, b):
            if not left[0]:  # noqa: B023
                raise _Killed
            left[0] -= 1  # noqa: B023
            rename(a, b)

        out = str(tmp_path / f"{stops}")
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", stop)
            try:
                command.main([*argv, out])
            except _Killed:
                pass
            else:
                break
        assert command.main([*argv, out]) == 0
        assert pair_sources.digests(Path(out)) == expected, stops
        stops += 1
    assert stops > 10


def test_a_share_of_repeated_pictures_is_not_bad(tmp_path):
    for shard in range(4):
        members = [m for i in range(3) for m in pair_sources.pair(f"{i}", i)]
        pair_sources.write_tar(tmp_path / "src" / f"{shard}.tar", members)
    tree, _, found = dump_sources.prepared(tmp_path / "src", tmp_path / "out", "--same_bytes", "drop")
    assert tree["records"]["dropped_by_kind"] == {"same_bytes": 9} and len(found["train"]) == 3


def _scene(number: int, size=(120, 90), format="JPEG", **options) -> bytes:
    small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((240, 180), Image.BICUBIC).resize(size, Image.BILINEAR).save(file, format, **options)
    return file.getvalue()


def test_what_looks_like_an_evaluation_set_is_dropped_or_counted(tmp_path, capsys):
    pytest.importorskip("imagehash")
    held = tmp_path / "held"
    (held / "deep").mkdir(parents=True)
    for number in (1, 3):
        (held / "deep" / f"{number}.png").write_bytes(_scene(number, (240, 180), "PNG"))
    (held / "broken.jpg").write_bytes(b"no picture")
    members = [(f"{i}.{e}", d) for i in range(5) for e, d in (("jpg", _scene(i, quality=60)), ("txt", b"c"))]
    src = pair_sources.write_tar(tmp_path / "src" / "0.tar", members)
    for options in ((), ("--short_side", 64)):
        out = tmp_path / f"drop{len(options)}"
        tree, account, _ = dump_sources.prepared(src, out, "--not_in", held, "--max_bad", 0, *options)
        assert tree["records"]["dropped_by_kind"] == {"near_duplicate": 2} and tree["records"]["kept"] == 3
        assert [(e["key"], e["detail"].partition(" (")[0]) for e in account] == [
            (f"{n}", f"looks like deep/{n}.png") for n in (1, 3)
        ]
    tree, account, _ = dump_sources.prepared(
        src, tmp_path / "keep", "--not_in", held, "--near_duplicates", "keep", "--workers", 2
    )
    assert tree["records"]["suspects"] == {"near_duplicate": 2} and not account
    assert [e["key"] for e in _suspects(tmp_path / "keep")] == ["1", "3"]
    # A prepared data set is an evaluation set too.
    argv = ["--src", str(src), "--out", str(tmp_path / "again"), "--not_in", f"{tmp_path}/keep/n/1.0.0:train"]
    assert command.main(argv) == 2
    assert "5 of 5 records are bad (near_duplicate 5), so nothing is left" in capsys.readouterr().err
    assert command.main([*argv[:4], "--not_in", f"{tmp_path}/keep/n/1.0.0"]) == 2
    assert "valid: one, or FOLDER_OF_A_DATA_SET:SPLIT" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command.main([*argv[:4], "--not_in", str(tmp_path / "empty")]) == 2
    assert "holds no picture that decodes" in capsys.readouterr().err


def test_another_evaluation_set_is_not_continued_with(tmp_path, capsys):
    pytest.importorskip("imagehash")
    src = pair_sources.write_tar(tmp_path / "src" / "0.tar", pair_sources.pair("0", 0))
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "1.jpg").write_bytes(_scene(1))
    argv = ["--src", str(src), "--out", str(tmp_path / "out"), "--not_in", str(tmp_path / "held")]
    assert command.main(argv) == 0
    (tmp_path / "held" / "2.jpg").write_bytes(_scene(2))
    assert command.main(argv) == 2
    assert "was prepared with not_in=" in capsys.readouterr().err
    assert command.main([*argv, "--same_bytes", "no"]) == 2
    assert "unknown same_bytes" in capsys.readouterr().err
    assert command.main([*argv[:4], "--near_duplicates", "keep"]) == 2
    assert "--near_duplicates=keep needs an evaluation set; valid: --not_in=FOLDER" in capsys.readouterr().err
