"""No folder of a source is passed over without a word: links are followed, and what cannot be read is named."""

import os

import dump_sources
import pair_sources
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare import crawl, near
from maeclip_jax.prepare.builders.archive import Archive
from maeclip_jax.prepare.formats import folders


def _pairs(folder, count: int, start: int = 0):
    folder.mkdir(parents=True)
    for i in range(start, start + count):
        (folder / f"{i}.jpg").write_bytes(pair_sources.picture(i))
        (folder / f"{i}.txt").write_text(f"c{i}")
    return folder


@pytest.fixture
def source(tmp_path):
    """`src/a`, `src/b`, which is a link to a folder elsewhere, and links in both that lead back."""
    src = _pairs(tmp_path / "src" / "a", 3).parent
    (src / "b").symlink_to(_pairs(tmp_path / "elsewhere", 5, start=10))
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (src / "a" / "up").symlink_to(src)
    return src


def test_links_to_folders_are_followed_and_lead_nowhere_twice(source):
    found = dump_sources.read(source)
    assert [raw.key for raw in found] == [f"a/{i}" for i in range(3)] + [f"b/{i}" for i in range(10, 15)]
    assert not any(raw.error for raw in found)
    pair_sources.webdataset(source.parent / "tars", shards=2)
    (source.parent / "linked").mkdir()
    (source.parent / "linked" / "x").symlink_to(source.parent / "tars")
    assert len(dump_sources.read(source.parent / "linked")) == 8


def test_pictures_behind_links_are_compared_and_of_archives(source):
    pytest.importorskip("imagehash")
    (source / ".cache").mkdir()
    (source / ".cache" / "99.jpg").write_bytes(pair_sources.picture(99))
    assert near.read(str(source), True).names == (
        ".cache/99.jpg", *(f"a/{i}.jpg" for i in range(3)), *(f"b/{i}.jpg" for i in range(10, 15)),
    )  # fmt: skip
    paths = [f"a/{i}.{e}" for i in range(3) for e in ("jpg", "txt")]
    assert Archive(source).paths == paths + [f"b/{i}.{e}" for i in range(10, 15) for e in ("jpg", "txt")]


def test_a_folder_that_cannot_be_read_is_named(source, monkeypatch):
    scan = os.scandir

    def denied(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    said = f"cannot read the folder {source}/b: Permission denied; valid: folders that can all be read"
    assert dump_sources.message(source) == said
    with pytest.raises(UserError, match=said):
        list(folders.walk(source))


def test_what_a_disk_keeps_for_itself_is_passed_over(source, monkeypatch):
    scan = os.scandir
    (source / "lost+found").mkdir()

    def denied(path):
        assert not str(path).endswith("lost+found")
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert len(dump_sources.read(source)) == 8


def test_links_to_nothing_and_pipes_are_named(source):
    (source / "a" / "gone.jpg").symlink_to(source / "no.jpg")
    (source / "a" / "itself.jpg").symlink_to(source / "a" / "itself.jpg")
    os.mkfifo(source / "a" / "pipe.jpg")
    notes = crawl.plan(str(source)).notes
    assert "Left out: a/gone.jpg, a/itself.jpg, a/pipe.jpg: links to what is not there, pipes or devices." in notes
    assert len(dump_sources.read(source)) == 8
