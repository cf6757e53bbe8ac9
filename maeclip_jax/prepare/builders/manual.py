"""Shared parts of the builders of data sets whose files were downloaded or made by hand.

A builder names its FILES, turns them into examples (`splits`), and is run by

    python -m maeclip_jax.prepare.builders.NAME --manual_dir DIR [--data_dir data]

without TensorFlow, into ArrayRecord. Pictures are stored byte for byte after they have been decoded once; those that
cannot be are dropped, counted by class of failure, and listed in `dropped.jsonl` beside the data.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import re
import time
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maeclip_jax import cli
from maeclip_jax.data import decode, source
from maeclip_jax.errors import BadRecord, UserError, storage, unknown
from maeclip_jax.prepare import tfds_shards

_AHEAD = 64  # pictures that are being checked while others are written


@dataclasses.dataclass(frozen=True)
class File:
    """A file or folder that a person has to put into the manual directory, under any one of `names`."""

    names: tuple[str, ...]  # the official one first
    page: str  # where to download it
    size: str
    what: str  # a description of its content
    optional: bool = False

    def find(self, folder: Path) -> Path | None:
        return next((folder / n for n in self.names if (folder / n).exists()), None)

    def need(self, folder: Path) -> Path:
        """The path of the file; a UserError names the expected file and folder."""
        found = self.find(folder)
        if found is None:
            raise UserError(f"{folder / self.names[0]} is expected: {self}; {listing(folder)}")
        return found

    def read_json(self, folder: Path, *keys: str) -> Any:
        """The content of the file; UserError unless it is a JSON object with `keys`."""
        path = self.need(folder)
        try:
            tree = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as JSON ({error}); expected: {self}") from None
        missing = [k for k in keys if not isinstance(tree, dict) or k not in tree]
        if missing:
            raise UserError(f"{path} is another file: it has no {missing[0]!r}; expected: {self}")
        return tree

    def __str__(self) -> str:
        others = f", or as {', '.join(self.names[1:])}" if len(self.names) > 1 else ""
        return f"{self.names[0]}{others} ({self.what}; {self.size}; {self.page})"


def instructions(*files: File) -> str:
    """MANUAL_DOWNLOAD_INSTRUCTIONS of `files`."""
    lines = [f"- {file}{' - optional' if file.optional else ''}" for file in files]
    return "Put these into the manual directory (--manual_dir):\n" + "\n".join(lines)


def listing(folder: Path) -> str:
    """A short listing of a folder's content."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    names = sorted(p.name for p in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{folder} holds {', '.join(names[:8]) or 'nothing'}{more}"


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set from files in a manual directory. Examples have `key` (unique in a split) and `image` (bytes)."""

    VERSION = tfds.core.Version("1.0.0")
    FILES: tuple[File, ...] = ()
    OPTIONS: dict[str, Any] = {}  # name -> default; `build` takes them as keyword arguments
    manual_dir: Path | None = None
    options: dict[str, Any] = {}
    workers = 1
    bar = None

    # To be written: `_info`, and

    def splits(self, folder: Path) -> dict[str, tuple[int, Iterable[dict]]]:
        """Split -> (number of examples to come, the examples). Raises UserError for what is missing or wrong."""
        raise NotImplementedError

    def finish(self, example: dict) -> dict:
        """The example to store; called in a thread. BadRecord drops the example; UserError ends the build."""
        decode.decode(example["image"])
        return example

    def _split_generators(self, dl_manager):
        self.dropped = []
        found = self.splits(Path(dl_manager.manual_dir))
        if self.bar is not None:
            self.bar.reset(sum(count for count, _ in found.values()))
        return {split: self._generate_examples(split, examples) for split, (_, examples) in found.items()}

    def _generate_examples(self, split: str, examples: Iterable[dict]) -> Iterator[tuple[str, dict]]:
        kept, dropped = 0, []
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            for example, done in _ahead(pool, self.finish, examples):
                if self.bar is not None:
                    self.bar.update()
                try:
                    yield example["key"], done.result()
                    kept += 1
                except BadRecord as bad:
                    dropped.append({"split": split, "key": example["key"], "kind": bad.kind, "detail": bad.detail})
        self.dropped += dropped
        if len(dropped) > kept or not kept:
            last = f"; the last: {dropped[-1]['key']}: {dropped[-1]['detail']}" if dropped else ""
            raise UserError(
                f"{len(dropped)} of {kept + len(dropped)} pictures of split {split!r} cannot be used "
                f"({by_kind(dropped)}){last}"
            )


def _ahead(pool, function, items) -> Iterator[tuple[Any, concurrent.futures.Future]]:
    """(item, future of function(item)) in order, a few items ahead of the reader."""
    waiting = collections.deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def by_kind(dropped: list[dict]) -> str:
    counts = collections.Counter(entry["kind"] for entry in dropped)
    return ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items())) or "there are none"


def build(
    cls: type[Builder], manual_dir: str | Path, data_dir: str | Path = "data", name: str = "", *,
    workers: int = 2, progress: bool = False, overwrite: bool = False, **options,
) -> epath.Path:  # fmt: skip
    """Builds `cls` from the files in `manual_dir` and returns the folder that `tfds.builder_from_directory` reads.

    `name`: of the data set (default: the builder's). `options`: those of `cls.OPTIONS`. A data set that is there
    already is left alone if it was made from the same folder with the same options, and refused otherwise. Raises
    UserError for a missing or wrong file, an unknown option, a name that TFDS does not take.
    """
    for option in options:
        if option not in cls.OPTIONS:
            raise unknown(f"option of {cls.name}:", option, cls.OPTIONS)
    name, folder = name or cls.name, Path(manual_dir).expanduser()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"name {name!r} is not a TFDS name; valid: small letters, digits and _")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; {' '.join(cls.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}")
    for file in cls.FILES:
        if not file.optional:
            file.need(folder)
    options = cls.OPTIONS | options
    made_from = {"manual_dir": str(folder.resolve()), "options": options}
    # A class of its own: TFDS takes the name of a data set from its class, and asks for the features at once.
    body = {"name": name, "manual_dir": folder, "options": options, "workers": workers, "__doc__": cls.__doc__}
    body["__module__"] = cls.__module__
    own = types.new_class(cls.__name__, (cls,), {"skip_registration": True}, lambda namespace: namespace.update(body))
    builder = own(data_dir=str(data_dir), file_format="array_record")
    target = epath.Path(builder.data_dir)
    if target.exists() and overwrite:
        target.rmtree()
    if target.exists():  # TFDS writes elsewhere and renames, so what exists is whole
        found = builder.info.metadata or {}
        if found.get("made_from") != made_from:
            raise UserError(f"{target} holds another data set; valid: another --name or --data_dir, or --overwrite")
        return target
    builder.info.metadata["made_from"] = made_from
    with storage.writing(target), shown(builder, name, progress):
        builder.download_and_prepare(download_config=tfds_shards.DownloadConfig(manual_dir=str(folder)))
        if builder.dropped:
            lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in builder.dropped]
            (target / "dropped.jsonl").write_text("".join(lines))
    return target


@contextlib.contextmanager
def shown(builder: Any, name: str, progress: bool, total: int | None = None) -> Iterator[None]:
    """Shows one progress bar for the whole build (`builder.bar`) instead of the many bars of TFDS."""
    from tqdm import tqdm

    tfds.display_progress_bar(enable=False)
    try:
        with (
            tqdm(total=total, desc=name, unit=" pictures", disable=not progress) as builder.bar,
            contextlib.redirect_stdout(io.StringIO()),  # TFDS prints "Downloading", but nothing is downloaded
        ):
            yield
    finally:
        tfds.display_progress_bar(enable=True)


def info(builder: Builder, description: str, features: dict, **metadata) -> tfds.core.DatasetInfo:
    """`_info` of a builder: `features` beside `key` and `image`."""
    common = {"key": tfds.features.Text(), "image": tfds.features.Image()}
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict({**common, **features}),
        metadata=tfds.core.MetadataDict(metadata),
    )


def parser(cls: type[Builder], flag: str = "--manual_dir") -> cli.Parser:
    """The command line that all builders share; a builder adds its OPTIONS by `add_argument`."""
    module = cls.__module__ if cls.__module__ != "__main__" else f"maeclip_jax.prepare.builders.{cls.name}"
    description = f"{cls.__doc__}\n\n{cls.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    p = cli.Parser(module, description)
    p.add_argument(flag, dest="manual_dir", required=True, metavar="DIR", help="folder with the files")
    p.add_argument("--data_dir", default="", help="where data sets live (default: $MAECLIP_DATA_DIR or data)")
    p.add_argument("--name", default="", help=f"name of the data set (default: {cls.name})")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that check pictures")
    p.add_argument("--overwrite", action="store_true", help="replace an existing data set of this name")
    return p


def folder_parser(cls: type[Builder]) -> cli.Parser:
    """The command line of builders of one's own folders, whose pictures may belong to no split."""
    p = parser(cls, "--src")
    p.add_argument("--split", default="train", help="split of pictures without one (%(default)s)")
    return p


def run(cls: type[Builder], arguments: argparse.Namespace) -> epath.Path:
    """Builds according to the command line and reports the result."""
    began, values = time.time(), vars(arguments)
    data_dir = source.data_dir(values.pop("data_dir"))
    target = build(cls, data_dir=data_dir, progress=True, **values)
    builder = tfds.builder_from_directory(str(target))
    counts = ", ".join(f"{name} {split.num_examples:,}" for name, split in sorted(builder.info.splits.items()))
    print(f"{target}: {counts} ({time.time() - began:.1f} s)")
    bad = target / "dropped.jsonl"
    if bad.exists():
        dropped = [json.loads(line) for line in bad.read_text().removesuffix("\n").split("\n")]
        print(f"{len(dropped):,} pictures dropped ({by_kind(dropped)}); they are named in {bad}")
    return target
