"""What img2dataset writes becomes a data set: failed downloads, orientation, one line for an error."""

import json
import subprocess
import sys
from pathlib import Path

import dump_sources
import pair_sources
import pytest

from maeclip_jax.data import decode
from maeclip_jax.prepare import crawl

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("layout", dump_sources.LAYOUTS)
def test_dead_urls_are_failed_downloads_and_no_bad_records(layout, tmp_path):
    shards = [
        dump_sources.downloads(4, 6),
        dump_sources.downloads(4, 6, start=10),
        dump_sources.downloads(0, 5, start=20),
    ]
    tree, account, found = dump_sources.prepared(
        dump_sources.img2dataset(tmp_path / "src", layout, shards), tmp_path / "out"
    )
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
    assert sum(not raw.error for raw in dump_sources.read(src)) == 6


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
    tree, _, found = dump_sources.prepared(src, tmp_path / "out")
    assert tree["totals"]["turned_upright"] == 1
    pixels = [decode.decode(r["image"]) for r in found["train"]]
    lying = decode.decode(pair_sources.picture(0, quality=95))
    assert pixels[0].shape == pixels[1].shape == (40, 30, 3)
    for upright in pixels:
        assert abs(upright.astype(int) - lying.transpose(1, 0, 2)[:, ::-1]).mean() < 3


def test_a_column_status_of_another_meaning_drops_no_pictures(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    status = ["success", "reviewed", "draft", "failed_to_resize", "dead", None]
    pictures = [pair_sources.picture(i) if i < 4 else None for i in range(6)]
    rows = {"image": pictures, "caption": ["c"] * 6, "status": status}
    (tmp_path / "src").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "src" / "a.parquet")
    kinds = ["", "", "", "failed_download", "failed_download", "missing_image"]
    assert dump_sources.kinds(dump_sources.read(tmp_path / "src")) == kinds
    # A table beside a shard that img2dataset did not write counts no failed downloads.
    pair_sources.write_tar(tmp_path / "tar" / "0.tar", pair_sources.pair("0", 0))
    pq.write_table(
        pa.table({"key": ["0", "1"], "status": ["reviewed", "failed_to_download"]}), tmp_path / "tar/0.parquet"
    )
    assert dump_sources.kinds(dump_sources.read(tmp_path / "tar")) == ["", "failed_download"]


_ORIENTATIONS = (
    "Horizontal (normal)", "Mirrored horizontal", "Rotated 180", "Mirrored vertical",
    "Mirrored horizontal then rotated 90 CCW", "Rotated 90 CW", "Mirrored horizontal then rotated 90 CW",
    "Rotated 90 CCW",
)  # fmt: skip


@pytest.mark.parametrize("number, words", list(enumerate(_ORIENTATIONS, 1)))
def test_all_orientations_that_the_tool_names(number, words):
    from PIL import Image

    from maeclip_jax.prepare import image_text
    from maeclip_jax.prepare.formats import img2dataset

    assert img2dataset.orientation(json.dumps({"Image Orientation": words})) == number
    exif = Image.Exif()
    exif[0x0112] = number
    told = image_text.store(pair_sources.picture(1, quality=95, exif=exif), image_text.Storing())
    lying = image_text.store(pair_sources.picture(1, quality=95), image_text.Storing(), number)
    assert (told.width, told.height) == (lying.width, lying.height) and lying.turned == (number > 1)
    assert abs(decode.decode(told.image).astype(int) - decode.decode(lying.image)).mean() < 3


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


def test_the_number_of_workers_changes_no_byte(tmp_path):
    shards = [dump_sources.downloads(3, 2, start=10 * i) for i in range(3)]
    src = dump_sources.img2dataset(tmp_path / "src", "webdataset", shards, finished=2)
    (src / "00002.tar").write_bytes((src / "00002.tar").read_bytes()[:4000])
    for workers in ("1", "2"):
        dump_sources.prepared(src, tmp_path / workers, "--workers", workers)
    assert pair_sources.digests(tmp_path / "1") == pair_sources.digests(tmp_path / "2")
