"""Builds a labelled data set from pictures in one folder per class.

python -m maeclip_jax.prepare.builders.image_folder --src pets/ --name pets --data_dir data
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.archive import Archive
from maeclip_jax.prepare.formats import names

log = logging.getLogger(__name__)
SPLITS = {**{name: name for name in ("train", "val", "valid", "validation", "dev", "test")},
          "training": "train", "testing": "test"}  # fmt: skip
CLASSES = "classes.txt"
LAYOUT = f"""\
SRC/CLASS/*.jpg, or SRC/SPLIT/CLASS/*.jpg with splits named {", ".join(SPLITS)}, in small letters or capitals.
SRC/train.txt, SRC/test.txt and so on: a picture (its path below SRC) a line; they make the splits (optional).
    Pictures that none names are left out.
SRC/{CLASSES}: CLASS<TAB>readable name, a class a line; its order is that of the labels (optional; else by name).
Pictures: {", ".join(names.PICTURES)}; folders may be nested below CLASS."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """classes: folder -> readable name, in label order. splits: split -> paths below the root."""

    root: Path
    classes: dict[str, str]
    splits: dict[str, list[str]]


class ImageFolder(manual.Builder, skip_registration=True):
    """Pictures in one folder per class."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT
    OPTIONS = {"split": "train"}

    @functools.cached_property
    def layout(self) -> Layout:
        return read_layout(self.manual_dir, self.options["split"])

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "label": tfds.features.ClassLabel(names=list(self.layout.classes.values())),
            "file_name": tfds.features.Text(),
        }
        return manual.info(self, f"{self.__doc__} From {self.manual_dir}.", features)

    def splits(self, folder: Path) -> dict:
        return {split: (len(paths), self._examples(paths)) for split, paths in self.layout.splits.items()}

    def _examples(self, paths: list[str]) -> Iterator[dict]:
        numbers = {name: number for number, name in enumerate(self.layout.classes)}
        for path in paths:
            image = (self.layout.root / path).read_bytes()
            yield {"key": path, "image": image, "label": numbers[class_of(path)], "file_name": path}


def split_of(path: str) -> str:
    """The split whose folder `path` begins with, if a folder of a class is below it; "" otherwise."""
    first, *below = path.split("/")
    return SPLITS.get(first.lower(), "") if len(below) > 1 else ""


def class_of(path: str) -> str:
    """The folder that names the class: the first one, below that of the split if there is one."""
    return path.split("/")[1 if split_of(path) else 0]


def read_layout(root: Path, split: str = "train") -> Layout:
    """The content of `root`; see LAYOUT. `split`: the split of pictures without one. Raises UserError."""
    found = pictures_in(root)
    splitting = {path.split("/")[0] for path in found if split_of(path)}
    paths = [p for p in found if p.count("/") > (p.split("/")[0] in splitting)]
    if not paths:
        raise UserError(f"{root} holds no pictures in folders; {manual.listing(root)}; expected: {_one_line(LAYOUT)}")
    if len(paths) < len(found):
        loose = next(p for p in found if p not in set(paths))
        log.warning("%d of %d pictures of %s are in no folder of a class and left out, the first: %s",
                    len(found) - len(paths), len(found), root, loose)  # fmt: skip
    lists = read_lists(root)
    if lists:
        splits = {name: _listed(root, name, lines, set(paths)) for name, lines in lists.items()}
        check_apart(root, splits, paths)
    else:
        splits = collections.defaultdict(list)
        for path in paths:
            splits[split_of(path) or split].append(path)
    found = sorted({class_of(path) for paths in splits.values() for path in paths})
    return Layout(root, _names(root / CLASSES, found), dict(sorted(splits.items())))


def pictures_in(root: Path) -> list[str]:
    """The paths of the pictures below `root`. Warns of other files, but for texts that lie in `root` itself."""
    found, others = [], []
    for path in Archive(root).paths:
        (found if path.lower().endswith(names.PICTURES) else others).append(path)
    others = [path for path in others if "/" in path or not path.lower().endswith(".txt")]
    if others:
        counts = collections.Counter(names.suffix(path) or "none" for path in others)
        log.warning("%d files of %s are left out for their extensions (%s), the first: %s", len(others), root,
                    ", ".join(f"{name} {count}" for name, count in counts.most_common(8)), others[0])  # fmt: skip
    return found


def read_lists(root: Path) -> dict[str, list[str]]:
    """Split -> lines of `root/SPLIT.txt`, for the splits that have one; each line once. UserError for two of one."""
    files: dict[str, Path] = {}
    for path in sorted(root.glob("*.[tT][xX][tT]")):
        split = SPLITS.get(path.stem.lower())
        if split in files:
            raise UserError(f"{path} and {files[split].name} both name the pictures of {split!r}; valid: one of them")
        if split:
            files[split] = path
    told = [split for split in dict.fromkeys(SPLITS.values()) if split in files]
    return {split: list(dict.fromkeys(read_lines(files[split]))) for split in told}


def check_apart(root: Path, splits: Mapping[str, Collection[str]], pictures: Collection[str]) -> None:
    """Raises UserError for a picture that is named in two splits, and warns of `pictures` that are named in none."""
    first: dict[str, str] = {}
    both = [
        (p, first[p], split) for split, named in splits.items() for p in named if first.setdefault(p, split) != split
    ]
    if both:
        picture, one, other = both[0]
        raise UserError(
            f"{root}: {len(both)} pictures are in two splits, the first: {picture} in {one!r} and {other!r}; "
            "valid: a picture in one of them"
        )
    left = [p for p in pictures if p not in first]
    if left:
        log.warning("%d of %d pictures of %s are in no split and left out, the first: %s",
                    len(left), len(pictures), root, left[0])  # fmt: skip


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file; UserError if there are none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not lines:
        raise UserError(f"{path} is empty")
    return lines


def read_table(path: Path) -> dict[str, str]:
    """The lines `key<TAB>value` of a text file; a line without a tab is both. UserError for a key that comes twice."""
    table: dict[str, str] = {}
    for line in read_lines(path):
        key, _, value = line.partition("\t")
        if key in table:
            raise UserError(f"{path} names {key!r} twice")
        table[key] = value.strip() or key
    return table


def _listed(root: Path, split: str, lines: list[str], paths: set[str]) -> list[str]:
    lines = [line.replace("\\", "/").removeprefix("./") for line in lines]
    missing = [line for line in lines if line not in paths]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(lines)} pictures that {split}.txt names are not in {root}, the first: {missing[0]}"
        )
    return list(dict.fromkeys(lines))


def _names(file: Path, folders: list[str]) -> dict[str, str]:
    """Folder -> readable name, unique. Raises UserError where the file and the folders do not match."""
    names = read_table(file) if file.exists() else {folder: folder.replace("_", " ") for folder in folders}
    for folder in folders:
        if folder not in names:
            raise UserError(f"folder {folder!r} is not in {file}, which names: {_some(names)}")
    absent = [folder for folder in names if folder not in folders]
    if absent:
        raise UserError(
            f"{file} names {absent[0]!r} ({len(absent)} such), but there are no pictures of it; classes with pictures: "
            f"{_some(folders)}"
        )
    counts = collections.Counter(names.values())
    return {folder: name if counts[name] == 1 else f"{name} ({folder})" for folder, name in names.items()}


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def run() -> None:
    """The command line."""
    manual.run(ImageFolder, manual.folder_parser(ImageFolder).parse_args())


if __name__ == "__main__":
    sys.exit(guarded(run))
