"""A folder, a tar, a tar.gz and a zip of the same files read the same."""

import shutil

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders.archive import Archive
from tests.data.labelled_sources import write_tree

FILES = {"top/b.jpg": b"bb", "top/in/a.jpg": b"a", "c.txt": b""}


@pytest.mark.parametrize("kind", ["folder", "tar", "gztar", "zip"])
def test_every_kind_reads_the_same(tmp_path, kind):
    root = write_tree(tmp_path / "files", FILES)
    path = root if kind == "folder" else shutil.make_archive(str(tmp_path / "packed"), kind, root)
    found = Archive(path)
    assert sorted(found.paths) == sorted(FILES) and "c.txt" in found and "top" not in found
    assert {p: found.read(p) for p in found.paths} == FILES
    assert sorted(found.pictures(["b.jpg", "a.jpg"])) == [("a.jpg", b"a"), ("b.jpg", b"bb")]
    assert [n for n, _ in found.pictures(found.named)] == [p.split("/")[-1] for p in found.paths]  # in stored order
    with pytest.raises(UserError) as e:
        next(found.pictures(["a.jpg", "x.jpg", "y.jpg"]))
    assert f"2 of 3 pictures are not in {path}, the first: x.jpg" in str(e.value)


def test_hidden_files_and_what_archives_of_other_systems_add(tmp_path):
    assert Archive(write_tree(tmp_path, {".x/a": b"", ".b": b"", "c": b""})).paths == ["c"]


@pytest.mark.parametrize("kind", ["tar", "gztar", "zip"])
def test_a_cut_archive_is_the_users_error(tmp_path, kind):
    path = shutil.make_archive(str(tmp_path / "a"), kind, write_tree(tmp_path / "files", {"x": bytes(range(256)) * 99}))
    with open(path, "rb+") as file:
        file.truncate(90)
    with pytest.raises(UserError, match=r"is not a folder or a complete tar or zip"):
        Archive(path)


def test_other_files_and_none(tmp_path):
    (tmp_path / "x").write_bytes(b"not an archive")
    for name in ("x", "none"):
        with pytest.raises(UserError, match="is not a folder or a complete tar or zip"):
            Archive(tmp_path / name)
