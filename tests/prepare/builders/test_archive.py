"""A folder, a tar, a tar.gz and a zip of the same files read the same."""

import io
import random
import shutil
import tarfile
import zipfile

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
    with pytest.raises(UserError, match=r"is not a folder, tar or zip that can be read whole"):
        Archive(path)


def test_other_files_and_none(tmp_path):
    (tmp_path / "x").write_bytes(b"not an archive")
    for name in ("x", "none"):
        with pytest.raises(UserError, match="is not a folder, tar or zip that can be read whole"):
            Archive(tmp_path / name)


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_damage_inside_an_archive_is_the_users_error(kind, tmp_path):
    rng, path = random.Random(0), tmp_path / "a"
    members = [(f"{i}", rng.randbytes(3000).hex().encode()) for i in range(9)]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    else:
        with tarfile.open(path, kind) as archive:
            for name, data in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    packed, refused = path.read_bytes(), 0
    for _ in range(20):
        at = rng.randrange(len(packed) // 4, len(packed) // 2)
        path.write_bytes(packed[:at] + rng.randbytes(100) + packed[at + 100 :])
        try:
            found = Archive(path)
            for name in found.paths:
                found.read(name)
        except UserError as error:  # and nothing else
            assert "cannot be read" in str(error) or "that can be read whole" in str(error)
            refused += 1
    assert refused > 5
