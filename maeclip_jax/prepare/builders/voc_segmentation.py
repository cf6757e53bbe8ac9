"""Pascal VOC 2012 with its segmentation masks: 1,464 train, 1,449 val (the catalogue's `voc` has boxes only).

    python -m maeclip_jax.prepare.builders.voc_segmentation --manual_dir ~/downloads/voc --data_dir data

`trainval` of VOC is the split `train+val`. Masks hold 0 background, 1 to 20 classes, 255 = void, which counts nowhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import image_mask_folder, manual
from maeclip_jax.prepare.builders.archive import Archive

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = ("train", "val")
ROOT = "VOCdevkit/VOC2012"
TAR = manual.File(
    ("VOCtrainval_11-May-2012.tar", "VOCdevkit"),
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "2.0 GB",
    f"{ROOT} with JPEGImages, SegmentationClass and ImageSets/Segmentation",
)


class VocSegmentation(manual.Builder):
    """Pascal VOC 2012: pictures with class masks of 20 classes and background."""

    FILES = (TAR,)
    MANUAL_DOWNLOAD_INSTRUCTIONS = manual.instructions(*FILES)

    def _info(self) -> tfds.core.DatasetInfo:
        mask = tfds.features.LabeledImage(labels=list(CLASSES), shape=(None, None, 1), encoding_format="png")
        return manual.info(self, self.__doc__, {"mask": mask})

    def splits(self, folder: Path) -> dict:
        path = TAR.need(folder)
        inside = Voc(Archive(path), ROOT if path.name == TAR.names[0] else ROOT.partition("/")[2])
        return {split: (len(names), inside.examples(names)) for split, names in inside.lists().items()}

    def finish(self, example: dict) -> dict:
        ids = image_mask_folder.checked(f"{example['key']}.png in SegmentationClass", example)
        unknown = [i for i in np.unique(ids).tolist() if len(CLASSES) <= i < 255]
        if unknown:
            raise UserError(f"the mask of {example['key']} holds id {unknown[0]}; VOC has 0 to 20, and 255")
        return example


class Voc:
    """VOC2012 inside an archive, below `root`."""

    def __init__(self, archive: Archive, root: str):
        self.archive, self.root = archive, root

    def lists(self) -> dict[str, list[str]]:
        """Split -> names of its pictures; UserError where a list or what it names is missing."""
        found = {}
        for split in SPLITS:
            names = self._read(f"ImageSets/Segmentation/{split}.txt").decode("utf-8", "replace").split()
            for part, extension in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
                missing = [n for n in names if f"{self.root}/{part}/{n}.{extension}" not in self.archive]
                if missing or not names:
                    raise UserError(
                        f"{self.archive.path} has no {part}/{(missing or ['*'])[0]}.{extension} below {self.root} "
                        f"({len(missing)} of {len(names)} of split {split} are missing); expected: {TAR}"
                    )
            found[split] = names
        return found

    def examples(self, names: list[str]) -> Iterator[dict]:
        for name in names:
            image, mask = self._read(f"JPEGImages/{name}.jpg"), self._read(f"SegmentationClass/{name}.png")
            yield {"key": name, "image": image, "mask": mask}

    def _read(self, path: str) -> bytes:
        path = f"{self.root}/{path}"
        if path not in self.archive:
            raise UserError(f"{self.archive.path} has no {path}; expected: {TAR}")
        return self.archive.read(path)


if __name__ == "__main__":
    sys.exit(guarded(lambda: manual.run(VocSegmentation, manual.parser(VocSegmentation).parse_args())))
