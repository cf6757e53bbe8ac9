"""Each layout is recognised, and no record of it is lost: the totals are those of another reader."""

import json

import dump_sources
import layouts
import pair_sources
import pytest

from maeclip_jax.prepare import crawl


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_every_record_of_a_layout_is_kept_or_named(name, tmp_path):
    write, count, splits = layouts.LAYOUTS[name]
    write(tmp_path / "src", 8)
    plan = crawl.plan(str(tmp_path / "src"))
    found = dump_sources.read(tmp_path / "src")
    kinds = dump_sources.kinds(found)
    assert set(kinds) <= {"", "failed_download"} and len(found) == count(tmp_path / "src")
    assert all(raw.image and raw.texts for raw in found if not raw.error)
    assert ", ".join(sorted({raw.split for raw in found if not raw.error})) == splits
    assert plan.notes and not any("which" in note for note in plan.notes)


def test_a_list_of_urls_and_its_downloads_are_accounted_for(tmp_path):
    write, _, _ = layouts.LAYOUTS["CC3M's tsv and downloads"]
    write(tmp_path / "src", 8)
    with open(tmp_path / "src" / "Train_GCC-training.tsv", "a") as file:
        file.write("no tab\n")
    tree, account, found = dump_sources.prepared(tmp_path / "src", tmp_path / "out", "--unit_records", 3)
    assert tree["records"]["failed_downloads"] == {"not_downloaded": 2}
    assert tree["records"]["dropped_by_kind"] == {"unreadable_row": 1} and len(found["train"]) == 6
    assert account[0]["url"] == "https://x.org/0.jpg?size=1" and "among the downloads" in account[0]["detail"]
    assert found["train"][0]["texts"] == [b"caption 1"] and found["train"][0]["image"] == pair_sources.picture(1)
    first, *more = crawl.plan(str(tmp_path / "src")).notes
    assert first == "list of URLs with 6 downloads beside it: Train_GCC-training.tsv."
    assert more[0].startswith("Left out: downloaded_training_report.tsv is a list of URLs without a header")


@pytest.mark.parametrize("name", ["CC3M's tsv and downloads", "CC12M's tsv and downloads"])
def test_cells_behind_a_caption_and_its_address_are_counted(name, tmp_path):
    write, _, _ = layouts.LAYOUTS[name]
    write(tmp_path / "src", 8)
    (path,) = [p for p in (tmp_path / "src").glob("*.tsv") if "report" not in p.name]
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}{rest}\n" for line, rest in zip(lines, ["", "\tand more\t0.5", "\t", "\t\tx"] * 2)))
    tree, _, found = dump_sources.prepared(tmp_path / "src", tmp_path / "out")
    assert [row["texts"] for row in found["train"]] == [[f"caption {i}".encode()] for i in range(8) if i % 4]
    assert tree["totals"]["further_members_left_out"] == 6
    assert "6 further pictures and texts of a sample left out" in (tmp_path / "out/n/1.0.0/report.txt").read_text()


def test_videos_are_named_with_what_makes_pictures_of_them(tmp_path):
    meta = json.dumps({"caption": "c", "status": "success"}).encode()
    members = [(f"{i:07d}.{e}", d) for i in range(3) for e, d in (("mp4", b"video"), ("txt", b"c"), ("json", meta))]
    pair_sources.write_tar(tmp_path / "src" / "00000.tar", members)
    said = dump_sources.message(tmp_path / "src")
    assert "00000.tar holds videos and no pictures; valid: frames of them, such as video2dataset's" in said
