"""Where a data set comes to be: a local folder that appears as a whole, or a bucket that is filled file by file.

`check` looks whether the place is free, `begin` takes it, `place` moves a finished file there, `holds` says whether
that was done before, and `finish` makes a data set of what is there. Before that nothing reads as one: the local folder
has another name, and the bucket has no dataset_info.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from etils import epath

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.formats import remote

_LAST = "dataset_info.json"
_MARK = "unfinished.txt"


@dataclasses.dataclass(frozen=True)
class Folder:
    out: Path
    building: Path  # beside it

    def check(self, fresh: bool) -> None:
        del fresh

    def begin(self) -> None:
        pass

    def holds(self, file: str, size: int) -> bool:
        path = self.building / file
        return path.exists() and os.path.getsize(path) == size

    def place(self, path: Path, file: str) -> None:
        os.rename(path, self.building / file)

    def finish(self) -> None:
        os.rename(self.building, self.out)


@dataclasses.dataclass(frozen=True)
class Bucket:
    out: str
    building: Path  # local: the small files until they are uploaded
    there: dict[str, int | None] = dataclasses.field(default_factory=dict)  # at the beginning

    def check(self, fresh: bool) -> None:
        """`fresh`: nothing of this data set was made before from here. UserError where the folder holds something."""
        self.there.update(remote.names(self.out))
        if fresh and self.there:
            first = min(self.there)
            raise UserError(
                f"{self.out} holds files of an unfinished data set ({first}, {len(self.there)} in all); valid: "
                "the same --scratch as before, which continues, another --name, or --overwrite"
            )

    def begin(self) -> None:
        """A bucket that may not be written says so now, and not when the work is done."""
        if _MARK not in self.there:
            remote.write(epath.Path(self.out) / _MARK, f"maeclip_jax.prepare makes a data set here; see {_LAST}.\n")

    def holds(self, file: str, size: int) -> bool:
        return self.there.get(file) == size

    def place(self, path: Path, file: str) -> None:
        remote.upload(path, epath.Path(self.out) / file)
        path.unlink()

    def finish(self) -> None:
        with contextlib.suppress(UserError):  # who may write need not be allowed to delete
            remote.remove_file(epath.Path(self.out) / _MARK)
        for path in sorted(self.building.iterdir(), key=lambda p: (p.name == _LAST, p.name)):
            remote.upload(path, epath.Path(self.out) / path.name)
