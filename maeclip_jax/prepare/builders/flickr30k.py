"""Flickr30k with the splits of Karpathy and Li (2015): 29,000 train, 1,014 val, 1,000 test, 5 captions a picture.

python -m maeclip_jax.prepare.builders.flickr30k --manual_dir ~/downloads/flickr30k --data_dir data
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.archive import Archive

SPLITS = ("train", "val", "test")
KARPATHY = manual.File(
    ("dataset_flickr30k.json", "flickr30k/dataset.json"),
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "37 MB, in a zip of 36 MB with Flickr8k and COCO",
    "captions and splits",
    optional=True,
)
TABLES = tuple(
    manual.File(
        (f"flickr30k_{split}_karpathy.txt",),
        "https://github.com/mehdidc/retrieval_annotations/releases/tag/1.0.0",
        "under 15 MB",
        f"captions of split {split}, instead of {KARPATHY.names[0]}",
        optional=True,
    )
    for split in SPLITS
)
PICTURES = manual.File(
    ("flickr30k-images", "flickr30k_images", "images", "Images", "flickr30k-images.tar.gz", "flickr30k-images.tar",
     "flickr30k-images.zip", "flickr30k_images.zip"),
    "https://shannon.cs.illinois.edu/DenotationGraph/ (on request)",
    "4.4 GB",
    "31,783 pictures, 1000092795.jpg and so on",
)  # fmt: skip


class Flickr30k(manual.Builder):
    """Flickr30k: photographs with five captions each, in the splits of Karpathy and Li."""

    FILES = (KARPATHY, *TABLES, PICTURES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = manual.instructions(*FILES)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"texts": tfds.features.Sequence(tfds.features.Text())}
        return manual.info(self, self.__doc__, features)

    def splits(self, folder: Path) -> dict:
        captions = read_captions(folder)
        pictures = Archive(PICTURES.need(folder))
        return {split: (len(of), _examples(of, pictures)) for split, of in captions.items()}


def _examples(captions: dict[str, list[str]], pictures: Archive) -> Iterator[dict]:
    for name, image in pictures.pictures(captions):
        yield {"key": name, "image": image, "texts": captions[name]}


def read_captions(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Split -> file name -> captions, from the json of Karpathy or else from the tables, one a split."""
    if not KARPATHY.find(folder):
        found = {split: path for split, table in zip(SPLITS, TABLES) if (path := table.find(folder))}
        if not found:
            KARPATHY.need(folder)
        return {split: _table(path) for split, path in found.items()}
    splits: dict[str, dict[str, list[str]]] = {}
    for image in KARPATHY.read_json(folder, "images")["images"]:
        try:
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
            splits.setdefault(image["split"], {})[image["filename"]] = captions
        except (KeyError, TypeError) as error:
            path = KARPATHY.find(folder)
            raise UserError(f"{path} is another file: an image of it has no {error}; expected: {KARPATHY}") from None
    return splits


def _table(path: Path) -> dict[str, list[str]]:
    """A csv with the header image,caption and a line a caption."""
    captions: dict[str, list[str]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file):
            if len(row) < 2:
                raise UserError(f"{path} is another file: a line of it is {row!r}; expected: image,caption")
            if row[0].strip() != "image":
                captions.setdefault(row[0].strip(), []).append(",".join(row[1:]).strip())
    return captions


if __name__ == "__main__":
    sys.exit(guarded(lambda: manual.run(Flickr30k, manual.parser(Flickr30k).parse_args())))
