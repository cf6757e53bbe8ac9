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
