"""Folders of a bucket as folders here, for libraries that read and write local files alone."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from maeclip_jax import remote
from maeclip_jax.errors import UserError

# By which a store tells one content of a file from the next, in the names of gcsfs, s3fs, adlfs and huggingface_hub.
VERSION = ("generation", "md5Hash", "etag", "ETag", "blob_id", "updated", "LastModified", "last_modified", "mtime")


def download(path: str | os.PathLike, what: str) -> Path:
    """A local path as it is; of a file or a folder in a bucket, the copy here, in which is what lies there now.

    Of a folder, files are fetched again whose size or version has changed, or whose version the store does not tell,
    and those that are gone there are removed here; a single file is always fetched. The copy has the same place on
    every host, below the folder of temporary files. UserError, with `what` it is, where nothing is there.
    """
    if not remote.is_remote(path):
        return Path(path)
    name = os.fspath(path).rstrip("/")
    remote.check_scheme(name, what)
    parent, _, last = name.rpartition("/")
    alone = remote.names(parent).count(last) and not remote.names(name)
    there: dict[str, Mapping] = {"": {}} if alone else remote.files(name)
    if not there:
        raise UserError(f"{what} {name!r} are not there; valid: a file or a folder in that bucket")
    copy = Path(tempfile.gettempdir()) / "maeclip-copies" / hashlib.sha256(name.encode()).hexdigest()[:12] / last
    kept = copy.parent / f"{last}.versions"
    versions = {inside: _version(info) for inside, info in there.items()}
    had = _read(kept)
    same = {
        inside
        for inside, version in versions.items()
        if version and had.get(inside) == version and (copy / inside).is_file()
    }
    for gone in (p for p in copy.rglob("*") if p.is_file() and p.relative_to(copy).as_posix() not in there):
        gone.unlink()
    if len(same) == len(there):
        return copy
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({inside: versions[inside] for inside in same}))  # what is being fetched is not whole
    with remote.failing("read", name):
        for inside in (inside for inside in there if inside not in same):
            here = copy / inside if inside else copy
            here.parent.mkdir(parents=True, exist_ok=True)
            remote.system(name).get_file(f"{name}/{inside}".rstrip("/"), str(here))
    kept.write_text(json.dumps(versions))
    return copy


def _version(info: Mapping) -> dict[str, str]:
    """What a store tells of a file's content, with its size; empty where it tells nothing."""
    told = {key: str(info[key]) for key in VERSION if info.get(key) is not None}
    return told | {"size": str(info.get("size"))} if told else {}


def _read(kept: Path) -> dict:
    """The versions of the copies here; empty where none are known."""
    try:
        return dict(json.loads(kept.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def upload(folder: Path, to: str | os.PathLike) -> None:
    """Writes the files of a folder, and those below, into a folder of a bucket."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        remote.write(f"{os.fspath(to).rstrip('/')}/{path.relative_to(folder).as_posix()}", path.read_bytes())
