"""Folders of a bucket as folders here, for libraries that read and write local files alone."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from maeclip_jax import remote
from maeclip_jax.errors import UserError


def download(path: str | os.PathLike, what: str) -> Path:
    """A local path as it is; of a file or a folder in a bucket, the copy here, made anew where the sizes differ.

    The copy has the same place on every host, below the folder of temporary files. UserError, with `what` it is, where
    nothing is there.
    """
    if not remote.is_remote(path):
        return Path(path)
    name = os.fspath(path).rstrip("/")
    remote.check_scheme(name, what)
    parent, _, last = name.rpartition("/")
    alone = remote.names(parent).count(last) and not remote.names(name)
    sizes = {"": None} if alone else remote.sizes(name)
    if not sizes:
        raise UserError(f"{what} {name!r} are not there; valid: a file or a folder in that bucket")
    copy = Path(tempfile.gettempdir()) / "maeclip-copies" / hashlib.sha256(name.encode()).hexdigest()[:12] / last
    with remote.failing("read", name):
        for inside, size in sizes.items():
            here = copy / inside if inside else copy
            if size is not None and here.is_file() and here.stat().st_size == size:
                continue
            here.parent.mkdir(parents=True, exist_ok=True)
            remote.system(name).get_file(f"{name}/{inside}".rstrip("/"), str(here))
    return copy


def upload(folder: Path, to: str | os.PathLike) -> None:
    """Writes the files of a folder, and those below, into a folder of a bucket."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        remote.write(f"{os.fspath(to).rstrip('/')}/{path.relative_to(folder).as_posix()}", path.read_bytes())
