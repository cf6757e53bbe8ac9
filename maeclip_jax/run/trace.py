"""Which examples each step saw: the proof that none is lost or repeated."""

from __future__ import annotations

import json

import jax
from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import storage
from maeclip_jax.remote import outbox
from maeclip_jax.workdir import EXAMPLES


class ExampleTrace:
    """One line per step with the keys of this process's examples: the proof that no sample is lost or repeated.

    A restart from step n begins a file of its own, `examples/<n>-of-<processes>-<process>.jsonl`; later files win.
    In a bucket, where nothing can be appended to, the file is written whole before every checkpoint (`flush`).
    """

    def __init__(self, workdir: epath.Path, first: int):
        folder = workdir / EXAMPLES
        self._path = folder / f"{first:08}-of-{jax.process_count()}-{jax.process_index()}.jsonl"
        self._lines: list[str] = []
        if remote.is_remote(workdir):
            self._file = None
            return
        with storage.writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")

    def write(self, step: int, keys: list[str]) -> None:
        line = json.dumps({"step": step, "keys": keys}) + "\n"
        if self._file is None:
            self._lines.append(line)
            return
        with storage.writing(self._path):
            self._file.write(line)
            self._file.flush()

    def flush(self) -> None:
        """What was written is in the workdir, or on its way there."""
        if self._file is None:
            outbox.write(self._path, "".join(self._lines).encode())

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()
