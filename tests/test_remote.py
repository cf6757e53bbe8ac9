"""The room of buckets as the libraries of a process meet it."""

import pytest
from etils.epath import backend

from maeclip_jax import remote

gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is missing: pip install -e '.[test]'")
fsspec = pytest.importorskip("fsspec")


def test_who_has_used_a_bucket_before_waits_as_told_from_then_on(bucket, monkeypatch):
    """etils keeps a file system of its own, so that orbax would go on with one that knows no patience."""
    from maeclip_jax.remote.gcs import Gcs

    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, gcsfs.GCSFileSystem, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    assert not isinstance(backend.fsspec_backend.fs("gs://name/file"), Gcs)
    monkeypatch.setattr(remote, "_registered", False)
    assert remote.is_remote("gs://name/file")
    assert isinstance(backend.fsspec_backend.fs("gs://name/file"), Gcs)
    assert isinstance(remote.system("gs://name/file"), Gcs)


def test_one_request_says_what_is_in_a_folder(fresh_bucket, remote):
    from etils import epath

    from maeclip_jax import remote as files

    for name in ("a.json", "b/c.json", "b/d/e"):
        files.write(f"{remote}/{name}", b"12")
    here = epath.Path(remote)
    fresh_bucket.reset()
    assert files.names(here) == ["a.json", "b"] and files.names(here / "nothing") == []
    assert files.sizes(here) == {"a.json": 2, "b/c.json": 2, "b/d/e": 2} and files.sizes(here / "nothing") == {}
    assert fresh_bucket.counts().requests == 4
    assert not (here / "no.json").exists() and not (here / "no").exists()
    assert fresh_bucket.counts().requests == 7  # what may be a folder is asked for twice
    with files.known(here):
        assert (here / "b").is_dir() and (here / "b" / "d").exists() and not (here / "b" / "c").exists()
        assert sorted(p.name for p in (here / "b").iterdir()) == ["c.json", "d"]
        assert sorted(p.name for p in here.glob("b/*/e")) == ["e"]
        assert (here / "b" / "c.json").stat().length == 2
        assert fresh_bucket.counts().requests == 8
        (here / "b" / "new").write_text("1")
        assert (here / "b" / "new").exists()
        files.remove_folder(here / "b")
        assert not (here / "b").exists() and files.names(here) == ["a.json"]
    with files.known(here / "nothing"), files.known("/tmp"):
        assert not (here / "nothing").exists()


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """remote.copies, with its copies in a folder of the test's own."""
    import tempfile

    from maeclip_jax.remote import copies

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return copies


def test_a_copy_follows_weights_of_the_same_size(fresh_bucket, remote, copies):
    """Exports of one architecture differ in no size."""
    from maeclip_jax import remote as files

    where = f"{remote}/model"
    for name, data in (("config.json", b"{}"), ("model.safetensors", b"old"), ("a/merges.txt", b"x")):
        files.write(f"{where}/{name}", data)
    here = copies.download(where, "weights")
    assert (here / "model.safetensors").read_bytes() == b"old" and (here / "a" / "merges.txt").read_bytes() == b"x"
    (here / "config.json").write_text("[]")  # shows whether it is fetched again
    fresh_bucket.reset()
    assert copies.download(where, "weights") == here
    listed = fresh_bucket.counts().requests
    files.write(f"{where}/model.safetensors", b"new")
    files.delete(f"{where}/a/merges.txt")
    fresh_bucket.reset()
    assert copies.download(where, "weights") == here
    assert (here / "model.safetensors").read_bytes() == b"new" and (here / "config.json").read_text() == "[]"
    assert not (here / "a" / "merges.txt").exists()
    assert fresh_bucket.counts().requests > listed
    (here.parent / "model.versions").write_text("{")
    copies.download(where, "weights")
    assert (here / "config.json").read_text() == "{}"


@pytest.mark.parametrize("tells", [True, False])
def test_where_nothing_is_told_of_versions_all_is_fetched(tells, copies, monkeypatch):
    """And what was cut off on its way is fetched again, though a version is known."""
    from maeclip_jax import remote as files

    class Store:
        fetched, content, fails = [], {"b/m/config.json": b"{}", "b/m/w": b"old"}, False

        def invalidate_cache(self, path):
            pass

        def ls(self, path, **_):
            return list(self.content) if path.endswith("/m") else ["b/m"]

        def find(self, path, detail):
            more = {name: {"ETag": str(hash(data))} if tells else {} for name, data in self.content.items()}
            return {name: {"type": "file", "size": len(data)} | more[name] for name, data in self.content.items()}

        def get_file(self, name, here):
            name = name.partition("://")[2]
            self.fetched.append(name)
            with open(here, "wb") as f:
                f.write(self.content[name])
            if self.fails:
                raise RuntimeError("cut off")

    store = Store()
    monkeypatch.setattr(files, "system", lambda path: store)
    here = copies.download("gs://b/m", "weights")
    copies.download("gs://b/m", "weights")
    assert len(store.fetched) == (2 if tells else 4)
    store.content["b/m/w"], store.fails = b"new", True
    with pytest.raises(RuntimeError, match="cut off"):
        copies.download("gs://b/m", "weights")
    store.content["b/m/w"], store.fails = b"old", False  # it is put back, in a version that was known
    copies.download("gs://b/m", "weights")
    assert (here / "w").read_bytes() == b"old"
