"""The folder of a prepared TFDS data set: where it is, what it says of itself, and the files of a split."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import pkgutil
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maeclip_jax import remote
from maeclip_jax.data.shards import Shard
from maeclip_jax.errors import UserError, unknown

_INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+$")


def read(path) -> str | None:
    """The text of a small file of a data set; None if it is not there. Those of buckets are read once a process."""
    return _read_once(str(path)) if remote.is_remote(path) else remote.read_text(path)


_read_once = functools.lru_cache(maxsize=256)(remote.read_text)


def builder(folder):
    """The TFDS builder of a version folder. That of a bucket comes from a copy of its few small files.

    TFDS asks a bucket some 50 times, one question after another, whether this or that file exists.
    """
    return _copied(str(folder)) if remote.is_remote(folder) else _builder(str(folder))


def _builder(folder: str):
    import tensorflow_datasets as tfds

    made = tfds.builder_from_directory(folder)
    if made.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        others = {f.value for f in made.info.alternative_file_formats}
        if "array_record" not in others:
            raise UserError(
                f"{folder} cannot be read at random; prepare it again with file_format='array_record' "
                f"(it holds {made.info.file_format and made.info.file_format.value})"
            )
        made = tfds.builder_from_directory(folder, file_format="array_record")
    return made


@functools.lru_cache(maxsize=64)
def _copied(folder: str):
    from etils import epath

    with tempfile.TemporaryDirectory(prefix="maeclip-") as copy:

        def fetch(name: str) -> None:
            text = read(epath.Path(folder) / name)
            if text is not None:
                (Path(copy) / name).write_text(text)

        fetch(_INFO)
        fetch("features.json")
        made = _builder(copy)
        for name in _label_files(made.info.features):
            fetch(name)
        made.info.features.load_metadata(copy)
        return made


def _label_files(feature: Any, name: str | None = None) -> Iterator[str]:
    """The names of the files that hold the class names of a feature and of those in it."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        for child, inner in feature.items():
            file = tfds.core.features.feature.convert_feature_name_to_filename(feature_name=child, parent_name=name)
            yield from _label_files(inner, file)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _label_files(feature.feature, name)
    elif isinstance(feature, tfds.features.ClassLabel | tfds.features.LabeledImage):
        yield f"{name}.labels.txt"


def version(folder) -> object:
    """What changes when a data set is made anew at the same place; of a bucket, None: nobody asks it again."""
    return None if remote.is_remote(folder) else (Path(folder) / _INFO).stat().st_mtime_ns


def shards(folder, builder, split: str) -> list[Shard]:
    """The files of a split (or slice, or sum of them), in order."""
    pieces = builder.info.splits[split].file_instructions
    names = [str(folder / Path(piece.filename).name) for piece in pieces]
    return [Shard(name, piece.skip, piece.take) for name, piece in zip(names, pieces)]


def locate(root: str, name: str):
    """The version folder of data set `name` under `root`."""
    from etils import epath

    base, _, version = name.partition(":")
    path = epath.Path(root) / base if base else epath.Path(root)
    if version:
        path = path / version
    if (version or not base) and read(path / _INFO) is not None:
        return path
    if not version:
        versions = [p for p in _folders(path) if _VERSION.match(p.name)]
        for found in sorted(versions, key=lambda p: tuple(int(n) for n in p.name.split(".")), reverse=True):
            if read(found / _INFO) is not None:
                return found
        if read(path / _INFO) is not None:
            return path
    raise UserError(_missing(epath.Path(root), base, path))


def _missing(root, base: str, path) -> str:
    parts, why = base.split("/"), ""
    if parts[0] == "scenes":
        config = parts[1] if len(parts) > 1 else "demo"
        command = f"python -m maeclip_jax.prepare.builders.scenes --config {config} --data_dir {root}"
    elif flag := _builder_flag(parts[0]):
        command = f"python -m maeclip_jax.prepare.builders.{parts[0]} {flag} <downloaded files> --data_dir {root}"
    elif _in_catalogue(parts[0]):  # building these, unlike reading them, needs TensorFlow: setup.cfg, [catalog]
        build = f"tfds.builder('{base}', data_dir='{root}', file_format='array_record').download_and_prepare()"
        command = f'pip install -e ".[catalog]"; python -c "import tensorflow_datasets as tfds; {build}"'
        lacks = [p for p in ("tensorflow", "h5py") if importlib.util.find_spec(p) is None]
        why = f", which the catalogue's builders need: {' and '.join(lacks)} not installed" if lacks else ""
    else:
        folder = root / base if base else root
        folder = folder.parent if _VERSION.match(folder.name) else folder
        where = f"--out {folder.parent} --name {folder.name}"  # which writes there what is looked for here
        command = f"python -m maeclip_jax.prepare --src <pictures and captions> {where}"
    there = []
    for pattern in ("*/dataset_info.json", "*/*/dataset_info.json", "*/*/*/dataset_info.json"):
        for info in sorted(root.glob(pattern)) if root.exists() else ():
            *folders, version = info.parent.parts[len(root.parts) :]
            there.append(f"{'/'.join(folders)}:{version}" if _VERSION.match(version) else "/".join([*folders, version]))
    note = f"data sets in {root}: {', '.join(there)}" if there else f"{root} holds no data set"
    return f"no data set {base!r} at {path} ({note}); prepare it with `{command}`{why}"


def _builder_flag(name: str) -> str:
    """How our own builder `name` is told where its files are; "" where there is none that is a command."""
    from etils import epath

    path = epath.resource_path("maeclip_jax") / "prepare" / "builders" / f"{name}.py"
    text = path.read_text() if path.exists() else ""
    if 'if __name__ == "__main__"' not in text:
        return ""
    return "--src" if "folder_parser" in text else "--manual_dir"


def _in_catalogue(name: str) -> bool:
    """Whether the TFDS package has a builder of this name, also one that it does not list here.

    It imports its folders of builders one after another and stops, silently, at the first that needs a package which is
    not installed (h5py): those after it, such as vision_language with laion400m, are then not listed.
    """
    import tensorflow_datasets as tfds

    if name in tfds.list_builders(with_community_datasets=False):
        return True
    for module in pkgutil.iter_modules(tfds.__path__):
        if module.ispkg and module.name not in ("core", "scripts", "testing"):
            with contextlib.suppress(Exception):  # its builders cannot be had without what is missing
                importlib.import_module(f"tensorflow_datasets.{module.name}")
    return name in tfds.list_builders(with_community_datasets=False)


def _folders(path) -> list:
    try:
        found = list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found if remote.is_remote(path) else [p for p in found if p.is_dir()]


def check_split(split: str, builder) -> None:
    """Rejects unknown names, slices that cannot be parsed and empty splits."""
    valid = sorted(builder.info.splits)
    if not valid:
        raise UserError(f"{builder.info.full_name} has no splits, so no records; prepare it again")
    for part in split.split("+"):
        base = part.partition("[")[0].strip()
        if base not in valid and base != "all":
            problem = unknown(f"split of {builder.info.full_name}:", base, valid)
            raise UserError(f"{problem}, or a slice such as {valid[0]}[99%:]")
    try:
        empty = builder.info.splits[split].num_examples == 0
    except (ValueError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"split {split!r} cannot be read ({reason}); valid: {valid[0]}, {valid[0]}[:90%], ...") from e
    if empty:
        raise UserError(f"split {split!r} of {builder.info.full_name} is empty; valid: {', '.join(valid)}")
