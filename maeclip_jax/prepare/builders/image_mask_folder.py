"""A folder of pictures and one of class masks become a data set for segmentation.

python -m maeclip_jax.prepare.builders.image_mask_folder --src rooms/ --name rooms --data_dir data
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from maeclip_jax.cli import guarded
from maeclip_jax.data import decode, mask_ops
from maeclip_jax.errors import BadRecord, UserError
from maeclip_jax.prepare.builders import image_folder, manual
from maeclip_jax.prepare.builders.archive import Archive

UNLABELLED = ("unlabeled", "unlabelled", "void", "ignore")
LAYOUT = f"""\
SRC/images/NAME.jpg (or .png, ...) and SRC/masks/NAME.png, one channel, of the same size, an id a pixel.
SRC/classes.txt: id<TAB>name, a class a line. Ids need not be contiguous; 255, and ids named {", ".join(UNLABELLED)},
    count nowhere.
SRC/split.jsonl: {{"image": "NAME.jpg", "mask": "NAME.png", "split": "train"}} a line; or SRC/train.txt, SRC/test.txt
    and so on, a NAME (or NAME.jpg) a line (optional). Pictures that are named nowhere are left out."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """ids: id in the files -> name, without those that count nowhere. splits: split -> (picture, mask) paths."""

    root: Path
    ids: dict[int, str]
    ignored: dict[int, str]
    splits: dict[str, list[tuple[str, str]]]


class ImageMaskFolder(manual.Builder, skip_registration=True):
    """Pictures with class masks.

    The stored ids are 0, 1, 2, ... in the order of the ids in the files, and 255 = ignored.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT
    OPTIONS = {"split": "train"}

    @functools.cached_property
    def layout(self) -> Layout:
        return read_layout(self.manual_dir, self.options["split"])

    @functools.cached_property
    def table(self) -> np.ndarray:
        """int [256]: id in the files -> stored id, -1 = not in classes.txt."""
        table = np.full(256, -1)
        table[[mask_ops.VOID, *self.layout.ignored]] = mask_ops.VOID
        table[list(self.layout.ids)] = np.arange(len(self.layout.ids))
        return table

    def _info(self) -> tfds.core.DatasetInfo:
        names = list(self.layout.ids.values())
        features = {
            "mask": tfds.features.LabeledImage(labels=names, shape=(None, None, 1), encoding_format="png"),
            "file_name": tfds.features.Text(),
        }
        ids = {str(number): name for number, name in self.layout.ids.items()}
        return manual.info(self, f"{self.__doc__.splitlines()[0]} From {self.manual_dir}.", features, ids_in_files=ids)

    def splits(self, folder: Path) -> dict:
        return {split: (len(pairs), self._examples(pairs)) for split, pairs in self.layout.splits.items()}

    def _examples(self, pairs: list[tuple[str, str]]) -> Iterator[dict]:
        for image, mask in pairs:
            pixels, ids = ((self.layout.root / path).read_bytes() for path in (image, mask))
            yield {"key": Path(image).name, "image": pixels, "mask": ids, "file_name": mask}

    def finish(self, example: dict) -> dict:
        file = self.layout.root / example["file_name"]
        ids = checked(file, example)
        unknown = sorted({int(i) for i in np.unique(ids)} - set(np.flatnonzero(self.table >= 0).tolist()))
        if unknown:
            known = ", ".join(f"{i} {name}" for i, name in list((self.layout.ignored | self.layout.ids).items())[:6])
            raise UserError(
                f"{file} holds ids {', '.join(map(str, unknown))}, which {self.layout.root / 'classes.txt'} does not "
                f"name; it names: {known}, ... ({len(self.layout.ids) + len(self.layout.ignored)} ids)"
            )
        stored = cv2.imencode(".png", self.table[ids].astype(np.uint8))[1].tobytes()
        return {**example, "mask": stored, "file_name": Path(example["file_name"]).name}


def checked(file: Path | str, example: dict) -> np.ndarray:
    """The ids of an example's mask, uint8 [H,W]. BadRecord if the picture is bad; UserError if the mask `file` is,
    or is not as large as the picture."""
    height, width = decode.decode(example["image"]).shape[:2]
    try:
        ids = mask_ops.read_mask(example["mask"])
        mask_ops.check_size(ids, height, width)
    except BadRecord as bad:
        raise UserError(f"{file}, the mask of {example['key']}: {bad.detail}") from None
    return ids


def read_layout(root: Path, split: str = "train") -> Layout:
    """The content of `root`; see LAYOUT. `split`: the split of pictures without one. Raises UserError."""
    for part in ("images", "masks", "classes.txt"):
        if not (root / part).exists():
            raise UserError(f"{root / part} is expected; {manual.listing(root)}; see --help for the layout")
    named = read_ids(root / "classes.txt")
    ignored = {number: name for number, name in named.items() if name.lower() in UNLABELLED}
    ids = {number: name for number, name in sorted(named.items()) if number not in ignored}
    images = image_folder.pictures_in(root / "images")
    stems = {Path(p).with_suffix("").as_posix(): p for p in images}
    masks = {Path(p).with_suffix("").as_posix(): p for p in Archive(root / "masks").paths}
    if (root / "split.jsonl").exists():
        splits = _rows(root / "split.jsonl")
    elif lists := image_folder.read_lists(root):
        splits = {
            name: [(p, masks.get(Path(p).with_suffix("").as_posix(), "")) for p in (stems.get(i, i) for i in lines)]
            for name, lines in lists.items()
        }
    else:
        splits = {split: [(path, masks.get(stem, "")) for stem, path in stems.items()]}
    for name, pairs in splits.items():
        _check_pairs(root, name, pairs, set(images), set(masks.values()))
    image_folder.check_apart(root, {name: [image for image, _ in pairs] for name, pairs in splits.items()}, images)
    paths = {name: [(f"images/{image}", f"masks/{mask}") for image, mask in pairs] for name, pairs in splits.items()}
    return Layout(root, ids, ignored, dict(sorted(paths.items())))


def read_ids(path: Path) -> dict[int, str]:
    """id -> name, from lines `id<TAB>name`; UserError for an id above 254, or a name that comes twice."""
    table: dict[int, str] = {}
    for key, name in image_folder.read_table(path).items():
        if not key.isdecimal() or int(key) > 254:
            raise UserError(f"{path} has a line that begins with {key!r}; expected: id<TAB>name, ids 0 to 254")
        if name in table.values() and name.lower() not in UNLABELLED:
            raise UserError(f"{path} gives the name {name!r} to two ids")
        table[int(key)] = name
    return table


def _rows(path: Path) -> dict[str, list[tuple[str, str]]]:
    splits: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(image_folder.read_lines(path), 1):
        try:
            row = json.loads(line)
            splits.setdefault(row["split"], []).append((row["image"], row["mask"]))
        except (ValueError, TypeError, KeyError):
            wanted = '{"image": ..., "mask": ..., "split": ...}'
            raise UserError(f"{path}, line {number}: {line[:60]!r}; expected: {wanted}") from None
    return splits


def _check_pairs(root: Path, split: str, pairs: list[tuple[str, str]], images: set[str], masks: set[str]) -> None:
    for what, there, column in (("images", images, 0), ("masks", masks, 1)):
        missing = [pair for pair in pairs if pair[column] not in there]
        if missing:
            name = missing[0][column] or f"a mask of {missing[0][0]}"
            raise UserError(
                f"{len(missing)} of {len(pairs)} pictures of split {split!r} have no file in {root / what}, "
                f"the first: {name}"
            )


def run() -> None:
    """The command line."""
    manual.run(ImageMaskFolder, manual.folder_parser(ImageMaskFolder).parse_args())


if __name__ == "__main__":
    sys.exit(guarded(run))
