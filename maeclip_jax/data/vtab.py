"""The 19 tasks of VTAB (Zhai et al. 2020, arXiv 1910.04867): data sets of the TFDS catalogue, splits and label rules.

Splits, bins and numbers of classes are those of google-research/task_adaptation (task_adaptation/data/*.py); names of
features those of tensorflow_datasets 4.9. VTAB-1k learns from the first 800 pictures of a task's training split and
validates on the first 200 of its validation split. Pictures are squashed to a square, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from maeclip_jax.data.image_ops import field
from maeclip_jax.data.text_ops import label
from maeclip_jax.errors import BadRecord, UserError, unknown

GROUPS = ("natural", "specialized", "structured")


@dataclass(frozen=True)
class Task:
    """A data set `name` (`:version` left open), its TFDS splits, its number of `classes` and where the label is from.

    `val1k`: the first 200 pictures of `val`, which itself is mostly a slice. `rule`: a feature, or record -> int.
    """

    group: str
    name: str
    train: str
    val: str
    val1k: str
    test: str
    classes: int
    rule: str | Callable[[Mapping], int] = "label"

    @property
    def train1k(self) -> str:
        return f"{self.train.partition('[')[0]}[:800]"


def bin_of(value: float, edges: tuple[float, ...]) -> int:
    """The bin (edge i, edge i + 1] that holds `value`."""
    return int(np.searchsorted(edges, value, side="left")) - 1


def clevr_count(record: Mapping) -> int:
    """Number of objects: 3..10 -> 0..7."""
    return len(_objects(record, "size")) - 3


def clevr_distance(record: Mapping) -> int:
    """Bin of the depth (third pixel coordinate) of the nearest object."""
    depth_N = np.reshape(_objects(record, "pixel_coords"), (-1, 3))[:, 2]
    return bin_of(depth_N.min(), (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0))


def kitti_distance(record: Mapping) -> int:
    """Bin of the distance in metres of the nearest car, van or truck; the last one is "none in sight"."""
    kind_N = np.asarray(field(field(record, "objects"), "type"))
    depth_N = np.reshape(field(record["objects"], "location"), (-1, 3))[:, 2]
    return bin_of(min(depth_N[kind_N < 3], default=1000.0), (-100.0, 8.0, 20.0, 999.0))


def dsprites(feature: str, values: int) -> Callable[[Mapping], int]:
    """Neighbouring values of a latent factor grouped to 16 classes."""
    return lambda record: int(field(record, feature) * 16 // values)


def _objects(record: Mapping, name: str) -> np.ndarray:
    values = np.asarray(field(field(record, "objects"), name))
    if not len(values):
        raise BadRecord("no_label", "the scene has no objects (CLEVR's test split has no annotations)")
    return values


_CLEVR = ("structured", "clevr", "train[:90%]", "train[90%:]", "train[63000:63200]", "validation")
_DSPRITES = ("structured", "dsprites", "train[:80%]", "train[80%:90%]", "train[589824:590024]", "train[90%:]")
_NORB = ("structured", "smallnorb", "train", "test[:50%]", "test[:200]", "test[50%:]")
_THREE = ("train", "validation", "validation[:200]", "test")
TASKS: dict[str, Task] = {
    "caltech101": Task("natural", "caltech101", "train[:90%]", "train[90%:]", "train[2753:2953]", "test", 102),
    "cifar100": Task("natural", "cifar100", "train[:90%]", "train[90%:]", "train[45000:45200]", "test", 100),
    "dtd": Task("natural", "dtd", *_THREE, 47),
    "oxford_flowers102": Task("natural", "oxford_flowers102", *_THREE, 102),
    "oxford_iiit_pet": Task("natural", "oxford_iiit_pet", "train[:80%]", "train[80%:]", "train[2944:3144]", "test", 37),
    "sun397": Task("natural", "sun397/tfds", *_THREE, 397),
    "svhn": Task("natural", "svhn_cropped", "train[:90%]", "train[90%:]", "train[65931:66131]", "test", 10),
    "eurosat": Task(
        "specialized", "eurosat/rgb", "train[:60%]", "train[60%:80%]", "train[16200:16400]", "train[80%:]", 10
    ),
    "patch_camelyon": Task("specialized", "patch_camelyon", *_THREE, 2),
    "resisc45": Task(
        "specialized", "resisc45", "train[:60%]", "train[60%:80%]", "train[18900:19100]", "train[80%:]", 45
    ),
    "diabetic_retinopathy": Task("specialized", "diabetic_retinopathy_detection/btgraham-300", *_THREE, 5),
    "clevr_count_all": Task(*_CLEVR, 8, clevr_count),
    "clevr_closest_object_distance": Task(*_CLEVR, 6, clevr_distance),
    "dmlab": Task("structured", "dmlab", *_THREE, 6),
    "dsprites_label_x_position": Task(*_DSPRITES, 16, dsprites("label_x_position", 32)),
    "dsprites_label_orientation": Task(*_DSPRITES, 16, dsprites("label_orientation", 40)),
    "kitti_closest_vehicle_distance": Task("structured", "kitti", *_THREE, 4, kitti_distance),
    "smallnorb_label_azimuth": Task(*_NORB, 18, "label_azimuth"),
    "smallnorb_label_elevation": Task(*_NORB, 9, "label_elevation"),
}


def vtab(example, rng, task):
    """What the benchmark makes of a record of `task`: its `label`, int32. Put it after decode.

    The pictures of dSprites are stored as 0 and 1 and become 0 and 255.
    """
    rule = TASKS[task].rule
    key = rule if isinstance(rule, str) else "label"
    made = example if isinstance(rule, str) else {**example, "label": rule(example)}
    made = label(made, rng, key)
    if not 0 <= made["label"] < TASKS[task].classes:
        raise BadRecord("no_label", f"label {made['label']} of {task}, which has {TASKS[task].classes} classes")
    if TASKS[task].name == "dsprites":
        image = field(example, "image")
        if isinstance(image, bytes):
            raise UserError("the picture is encoded; put decode before vtab")
        made["image"] = (image if isinstance(image, np.ndarray) else image.read()) * np.uint8(255)
    return made


def select(which: str | Iterable[str]) -> list[str]:
    """Task names: "all", a group, a task, or several of these; UserError for an unknown one."""
    out: list[str] = []
    for word in [which] if isinstance(which, str) else which:
        found = [n for n, t in TASKS.items() if word in ("all", t.group, n)]
        if not found:
            raise unknown("VTAB task", word, ["all", *GROUPS, *TASKS])
        out += [n for n in found if n not in out]
    return out
