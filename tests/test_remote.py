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
