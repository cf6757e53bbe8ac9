"""Which examples each step saw: the proof that none is lost or repeated."""

from __future__ import annotations

import json

import jax
from etils import epath

from maeclip_jax.errors import storage
from maeclip_jax.workdir import EXAMPLES


class ExampleTrace:
    """One line per step with the keys of this process's examples: the proof that no sample is lost or repeated.

    A restart from step n begins a file of its own, `examples/<n>-of-<processes>-<process>.jsonl`; later files win.
    """

    def __init__(self, workdir: epath.Path, first: int):
        folder = workdir / EXAMPLES
        self._path = folder / f"{first:08}-of-{jax.process_count()}-{jax.process_index()}.jsonl"
        with storage.writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")

    def write(self, step: int, keys: list[str]) -> None:
        with storage.writing(self._path):
            self._file.write(json.dumps({"step": step, "keys": keys}) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()
