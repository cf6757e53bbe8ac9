"""COCO-a (Ronchi and Perona 2015, arXiv 1506.02203): what people do in COCO photographs, in 140 visual actions.

    python -m maeclip_jax.prepare.builders.coco_a --manual_dir ~/downloads/coco --data_dir data

Read here as follows; the paper's own protocol for its "COCOA" columns is not known. One record is one whole picture.
Its `labels` are the actions, of any subject, that at least two of the three annotators agreed on (--min_agreement).
`interactions` keeps who does what to whom, with the subject's box where COCO's instances are there. The only split is
`test`: the data set has no official one, and nothing is trained on it.
"""

from __future__ import annotations

import collections
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.archive import Archive

AGREEMENTS, PARTS = ("1", "2", "3"), ("train", "val")
NO_BOX = tfds.features.BBox(0.0, 0.0, 0.0, 0.0)  # where COCO's instances are not there
PAGE, COCO = "http://www.vision.caltech.edu/~mronchi/projects/Cocoa/", "https://cocodataset.org/#download"
INTERACTIONS = manual.File(("cocoa_beta2015.json",), PAGE, "a few MB, in a zip", "who does what to whom")
VERBS = manual.File(("visual_verbnet_beta2015.json",), PAGE, "under 1 MB, in a zip", "names of the actions")
PICTURES = tuple(
    manual.File(
        (f"{part}2014", f"{part}2014.zip", f"images/{part}2014"),
        COCO,
        size,
        f"pictures COCO_{part}2014_000000000000.jpg",
        optional=True,  # whichever holds the pictures
    )
    for part, size in zip(PARTS, ("13.5 GB", "6.6 GB"))
)
INSTANCES = tuple(
    manual.File(
        (f"instances_{part}2014.json", f"annotations/instances_{part}2014.json"),
        COCO,
        "in annotations_trainval2014.zip, 253 MB",
        "boxes",
        optional=True,
    )
    for part in PARTS
)


class CocoA(manual.Builder, skip_registration=True):  # its classes are read from the files
    """COCO-a: photographs with the visual actions that are seen in them."""

    FILES = (INTERACTIONS, VERBS, *PICTURES, *INSTANCES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = manual.instructions(*FILES)
    OPTIONS = {"min_agreement": 2}

    @functools.cached_property
    def actions(self) -> dict[int, str]:
        return read_actions(self.manual_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        f, action = tfds.features, tfds.features.ClassLabel(names=list(self.actions.values()))
        interactions = {"subject": np.int64, "object": np.int64, "action": action, "box": f.BBoxFeature()}
        features = {"labels": f.Sequence(action), "interactions": f.Sequence(interactions)}
        return manual.info(self, f"{self.__doc__} Agreement of {self.options['min_agreement']} or more.", features)

    def splits(self, folder: Path) -> dict:
        seen = read_interactions(folder, self.options["min_agreement"], list(self.actions))
        found = {part: Archive(path) for part, file in zip(PARTS, PICTURES) if (path := file.find(folder))}
        names = _names(folder, list(seen), found)
        boxes = read_boxes(folder, {subject for rows in seen.values() for subject, _, _ in rows})
        return {"test": (len(names), self._examples(seen, names, found, boxes))}

    def _examples(self, seen: dict, names: dict, found: dict[str, Archive], boxes: dict) -> Iterator[dict]:
        numbers = {action: number for number, action in enumerate(self.actions)}
        for part, archive in found.items():
            images = {_name(part, image): image for image, where in names.items() if where == part}
            for name, data in archive.pictures(images):
                rows = [
                    {"subject": subject, "object": thing, "action": numbers[action], "box": boxes.get(subject, NO_BOX)}
                    for subject, thing, action in seen[images[name]]
                ]
                labels = sorted({row["action"] for row in rows})
                yield {"key": name, "image": data, "labels": labels, "interactions": rows}


def read_actions(folder: Path) -> dict[int, str]:
    """id -> readable name of every action, in the order of the file (by category)."""
    actions = VERBS.read_json(folder, "visual_actions")["visual_actions"]
    try:
        names = {int(action["id"]): action["name"].replace("_", " ").replace("?", "").strip() for action in actions}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{VERBS.find(folder)} is another file: an action has no {error}; expected: {VERBS}") from None
    if len(set(names.values())) < len(actions) or not actions:
        raise UserError(f"{VERBS.find(folder)} names {len(actions)} actions, {len(set(names.values()))} different ones")
    return names


def read_interactions(folder: Path, min_agreement: int, actions: Iterable[int]) -> dict[int, list[tuple]]:
    """Image id -> (subject, object or -1, action) of at least `min_agreement` annotators, each once, sorted.

    The lists of the file are by agreement. It does not matter whether that of 2 holds that of 3: all are joined.
    """
    if str(min_agreement) not in AGREEMENTS:
        raise UserError(f"min_agreement={min_agreement}; valid: {', '.join(AGREEMENTS)}")
    lists = INTERACTIONS.read_json(folder, "annotations")["annotations"]
    path, actions, seen = INTERACTIONS.find(folder), set(actions), collections.defaultdict(set)
    try:
        for entry in (e for level in AGREEMENTS if int(level) >= min_agreement for e in lists[level]):
            for action in entry["visual_actions"]:
                if action not in actions:
                    raise UserError(f"{path} has action {action}, which {VERBS.find(folder)} does not name")
                seen[entry["image_id"]].add((entry["subject_id"], entry.get("object_id", -1), action))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is another file: an annotation has no {error}; expected: {INTERACTIONS}") from None
    return {image: sorted(rows) for image, rows in sorted(seen.items())}


def read_boxes(folder: Path, subjects: set[int]) -> dict[int, tfds.features.BBox]:
    """Instance id -> its box, from the files of COCO's instances that are there."""
    boxes = {}
    for file in INSTANCES:
        if file.find(folder):
            tree = file.read_json(folder, "annotations", "images")
            sizes = {image["id"]: (image["width"], image["height"]) for image in tree["images"]}
            for thing in tree["annotations"]:
                if thing["id"] in subjects:
                    (x, y, w, h), (width, height) = thing["bbox"], sizes[thing["image_id"]]
                    right, bottom = min(1, (x + w) / width), min(1, (y + h) / height)
                    boxes[thing["id"]] = tfds.features.BBox(y / height, x / width, bottom, right)
    return boxes


def _name(part: str, image: int) -> str:
    return f"COCO_{part}2014_{image:012d}.jpg"


def _names(folder: Path, images: list[int], found: dict[str, Archive]) -> dict[int, str]:
    """Image id -> the part of COCO that holds it."""
    where = {i: next((part for part, a in found.items() if _name(part, i) in a.named), None) for i in images}
    missing = [i for i, part in where.items() if part is None]
    if missing or not images:
        wanted = " and ".join(str(file) for part, file in zip(PARTS, PICTURES) if part not in found) or "all pictures"
        raise UserError(
            f"{len(missing)} of {len(images)} pictures of COCO-a are not in {folder}, the first: "
            f"{_name('train', missing[0]) if missing else 'there are none'}; expected: {wanted}"
        )
    return where


def run() -> None:
    """The command line."""
    parser = manual.parser(CocoA)
    parser.add_argument("--min_agreement", type=int, default=2, help="annotators who agree: 1, 2 or 3 (%(default)s)")
    manual.run(CocoA, parser.parse_args())


if __name__ == "__main__":
    sys.exit(guarded(run))
