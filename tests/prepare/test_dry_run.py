"""`prepare --check` says what would be, and writes nothing but a page."""

import io
import json

import dump_sources
import numpy as np
import pair_sources
from PIL import Image

from maeclip_jax.prepare import command


def _checked(capsys, tmp_path, src, *options) -> str:
    capsys.readouterr()
    assert command.main([str(a) for a in ("--src", src, "--out", tmp_path / "out", "--check", *options)]) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["check.html"]
    return capsys.readouterr().out


def test_what_would_be_kept_and_dropped_and_why(tmp_path, capsys):
    shards = [dump_sources.downloads(3, 2), dump_sources.downloads(3, 2)]  # the same keys twice
    src = dump_sources.img2dataset(tmp_path / "src", "webdataset", shards)
    pair_sources.write_tar(src / "val" / "x.tar", [("1.jpg", pair_sources.picture(1)), ("2.txt", b"a")])
    said = _checked(capsys, tmp_path, src)
    assert said.startswith("img2dataset webdataset output: 3 shards, 1 unfinished.\n")
    assert "Names tell the splits train, val (val); --ignore_split ignores them." in said
    assert "           6 would be kept in split train\n" in said
    assert "           1 would be dropped: no_caption, such as val/x.tar, val/1: none given\n" in said
    assert "           1 would be dropped: missing_image, such as val/x.tar, val/2: only .txt\n" in said
    assert "           2 downloads had failed before: failed_to_resize\n" in said
    assert "Fields with text: txt ('caption of 0'), url ('http://x/0.jpg')" in said
    assert "3 keys are in several shards, such as 000000000; both records are kept." in said
    assert said.endswith("No data set was written; the same command without --check does.\n")
    page = (tmp_path / "out" / "my_pairs" / "check.html").read_text()
    assert page.count("<img ") == 7 and "caption of 0" in page  # the picture without a caption too
    assert "HTTP Error 404: Not Found" in page and "dropped: missing_image" in page


def test_white_bars_and_white_pictures_are_noticed(tmp_path, capsys):
    def picture(row):
        pixels = np.full((40, 40, 3), 255, np.uint8)
        if int(row["key"]) < 3:
            pixels[8:32] = np.random.default_rng(0).integers(0, 200, (24, 40, 3))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        return file.getvalue()

    rows = dump_sources.downloads(4, 0)
    src = dump_sources.img2dataset(tmp_path / "src", "files", [rows], pictures=picture)
    said = _checked(capsys, tmp_path, src)
    assert "3 of 4 pictures: a square with white bars, as img2dataset's --resize_mode border makes them" in said
    assert "1 of 4 pictures: all white, as 16-bit pictures are that were clipped." in said
    tree, account, found = dump_sources.prepared(src, tmp_path / "data")
    assert tree["records"]["suspects"] == {"same_bytes": 2, "white": 1, "white_bars": 3}
    assert not account and len(found["train"]) == 4
    folder = tmp_path / "data" / "n" / "1.0.0"
    named = [json.loads(line) for line in (folder / "suspects.jsonl").read_text().splitlines()]
    assert sorted((e["key"][-1], e["kind"]) for e in named) == [
        ("0", "white_bars"), ("1", "same_bytes"), ("1", "white_bars"), ("2", "same_bytes"), ("2", "white_bars"),
        ("3", "white"),
    ]  # fmt: skip


def test_too_many_bad_records_and_fields_that_some_shards_lack_are_said(tmp_path, capsys):
    jpg = pair_sources.picture(0)
    for i, row in enumerate(({"caption": "a", "alt": "b"}, {"caption": "a"})):
        members = [("0.jpg", jpg), ("0.json", json.dumps(row).encode()), ("1.jpg", jpg), ("2.jpg", jpg)]
        pair_sources.write_tar(tmp_path / "src" / f"{i}.tar", members)
    said = _checked(capsys, tmp_path, tmp_path / "src")
    assert "Fields that only some shards have: alt (1 of 2)." in said
    assert "More than max_bad=0.5 of the sample is bad: a preparation would end with an error." in said
