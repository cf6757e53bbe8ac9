import collections
import io

import numpy as np
import pytest
from PIL import Image

from experiments.eval.vtab import evaluators
from maeclip_jax.data import ops, tfds_record, vtab
from maeclip_jax.errors import BadRecord, UserError

RNG = np.random.default_rng(0)


def run(task, **record):
    image = np.zeros((8, 10, 3), np.uint8)
    return ops.parse(f'decode|vtab("{task}")|resize(4)|keep("image","label")')({"image": image} | record, RNG)


def label(task, **record):
    made = run(task, **record)["label"]
    assert made.dtype == np.int32
    return int(made)


def test_the_19_tasks():
    groups = collections.Counter(t.group for t in vtab.TASKS.values())
    assert groups == {"natural": 7, "specialized": 4, "structured": 8}
    assert vtab.select("natural") == vtab.select(["caltech101", "natural"])
    assert len(vtab.select("all")) == 19 and vtab.select("dmlab") == ["dmlab"]


@pytest.mark.parametrize("count", [3, 7, 10])
def test_clevr_counts_from_three(count):
    assert label("clevr_count_all", objects={"size": np.ones(count, np.int64)}) == count - 3


@pytest.mark.parametrize("nearest,expected", [(7.9, 0), (8.0, 0), (8.01, 1), (9.2, 3), (9.7, 4), (11.0, 5)])
def test_clevr_distance_is_the_bin_of_the_nearest_object(nearest, expected):
    coordinates = np.array([[5, 5, 30.0], [1, 1, nearest], [2, 2, 12.0]], np.float32)
    assert label("clevr_closest_object_distance", objects={"pixel_coords": coordinates}) == expected


@pytest.mark.parametrize("kinds,depths,expected", [
    ([0, 3], [7.0, 1.0], 0),  # pedestrians do not count as vehicles
    ([1, 2], [30.0, 12.0], 1),
    ([2], [20.5], 2),
    ([3, 5], [4.0, 5.0], 3),
    ([], [], 3),
])  # fmt: skip
def test_kitti_distance_is_the_bin_of_the_nearest_vehicle(kinds, depths, expected):
    places = np.array([[0.0, 0.0, z] for z in depths], np.float32)
    objects = {"type": np.array(kinds, np.int64), "location": places}
    assert label("kitti_closest_vehicle_distance", objects=objects) == expected


def test_dsprites_groups_neighbouring_values_and_brightens():
    # floor(40 / 16 * k) are the first values of the groups of the 40 orientations; 2 positions to a group.
    orientations = [label("dsprites_label_orientation", label_orientation=n) for n in range(40)]
    assert orientations == [int(n // 2.5) for n in range(40)] and set(orientations) == set(range(16))
    assert [label("dsprites_label_x_position", label_x_position=n) for n in (0, 1, 2, 31)] == [0, 0, 1, 15]
    made = run("dsprites_label_x_position", label_x_position=0, image=np.ones((4, 4, 3), np.uint8))
    assert (made["image"] == 255).all()


def test_other_labels_are_features():
    assert label("smallnorb_label_azimuth", label_azimuth=17) == 17
    assert label("smallnorb_label_elevation", label_elevation=8) == 8
    assert label("cifar100", label=99) == 99


def test_a_label_outside_the_task_is_a_bad_record():
    with pytest.raises(BadRecord, match="no_label: label -1 of diabetic_retinopathy, which has 5 classes"):
        run("diabetic_retinopathy", label=-1)
    with pytest.raises(BadRecord, match="no_label: the scene has no objects"):
        run("clevr_count_all", objects={"size": []})


def test_wrong_words_and_records():
    with pytest.raises(UserError, match=r"task='cifar' is not valid; valid: caltech101 \| cifar100"):
        ops.parse('vtab("cifar")|keep("label")')
    with pytest.raises(UserError, match="the record has no 'label_azimuth'; it has: image"):
        run("smallnorb_label_azimuth")
    with pytest.raises(UserError, match=r"unknown VTAB task 'natura' \(did you mean 'natural'\?\); valid: all"):
        evaluators(32, which="natura")
    with pytest.raises(UserError, match="unknown size of VTAB '2k'; valid: 1k, full"):
        evaluators(32, size="2k")


def test_evaluators_are_probes_on_800_and_200():
    found = evaluators(64, "somewhere", pool="max")
    assert len(found) == 19
    probe = found["vtab_svhn"]
    assert probe["type"] == "linear_probe" and probe["classes"] == 10 and probe["pool"] == "max"
    splits = {k: probe[k]["source"]["split"] for k in ("train", "val", "data")}
    assert splits == {"train": "train[:800]", "val": "train[65931:66131]", "data": "test"}
    assert probe["train"]["source"]["dir"] == "somewhere"
    for config in found.values():
        for name in ("train", "val", "data"):
            ops.parse(config[name]["ops"])


# Examples of each split that is cut by a percentage, from the catalogue: val1k must begin where val does.
COUNTS = {
    "caltech101": {"train": 3059}, "cifar100": {"train": 50000}, "oxford_iiit_pet": {"train": 3680},
    "svhn_cropped": {"train": 73257}, "eurosat/rgb": {"train": 27000}, "resisc45": {"train": 31500},
    "clevr": {"train": 70000}, "dsprites": {"train": 737280}, "smallnorb": {"test": 24300},
}  # fmt: skip


@pytest.mark.parametrize("task", list(vtab.TASKS))
def test_the_200_are_the_first_of_the_validation_split(task):
    import tensorflow_datasets as tfds

    task = vtab.TASKS[task]
    infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0, filename_template=None)
             for name, n in COUNTS.get(task.name, {}).items()}  # fmt: skip
    if task.val.partition("[")[0] not in infos:
        assert task.val1k == f"{task.val}[:200]"
        return

    from tensorflow_datasets.core import splits

    table = splits.SplitDict(list(infos.values()))
    bounds = {}
    for which in ("val", "val1k"):
        (read,) = tfds.core.ReadInstruction.from_spec(getattr(task, which)).to_absolute(table)
        bounds[which] = (read.from_ or 0, read.to)
    assert bounds["val1k"] == (bounds["val"][0], bounds["val"][0] + 200)


@pytest.mark.parametrize("task", list(vtab.TASKS))
def test_features_are_those_of_the_catalogue(task, tmp_path):
    """Against the builders of the installed catalogue, which need no data for that."""
    import tensorflow_datasets as tfds

    name, _, config = vtab.TASKS[task].name.partition("/")
    features = tfds.builder_cls(name)(data_dir=tmp_path, **({"config": config} if config else {})).info.features
    rule = vtab.TASKS[task].rule
    if isinstance(rule, str):
        assert features[rule].num_classes == vtab.TASKS[task].classes
    elif name == "dsprites":
        feature = f"label_{task.partition('_label_')[2]}"
        assert rule({feature: features[feature].num_classes - 1}) == vtab.TASKS[task].classes - 1 == 15
    else:
        assert {"clevr": {"size", "pixel_coords"}, "kitti": {"type", "location"}}[name] <= set(
            features["objects"].feature
        )
        if name == "kitti":
            assert features["objects"]["type"].names[:4] == ["Car", "Van", "Truck", "Pedestrian"]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def stored(name, tmp_path, **example):
    """A record as it is read from a file of the catalogue's builder; `image` in PNG bytes."""
    import tensorflow_datasets as tfds

    features = tfds.builder_cls(name)(data_dir=tmp_path).info.features
    example["image"] = io.BytesIO(example["image"])
    return tfds_record.Reader(features, {})(features.serialize_example(features.encode_example(example)))


def test_records_of_the_catalogue(tmp_path):
    import tensorflow_datasets as tfds

    box, common = tfds.features.BBox(0.0, 0.0, 1.0, 1.0), dict(truncated=0.0, occluded=0, alpha=0.0, rotation_y=0.0)
    seen = [dict(type=t, location=np.float32([1, 2, z]), bbox=box, dimensions=np.ones(3, np.float32), **common)
            for t, z in (("Car", 21.0), ("Tram", 2.0))]  # fmt: skip
    black = png(np.zeros((8, 8, 3), np.uint8))
    record = stored("kitti", tmp_path, image=black, objects=seen, **{"image/file_name": "000001.png"})
    assert label("kitti_closest_vehicle_distance", **record) == 2

    ball = dict(color="red", material="metal", shape="sphere", size="large", rotation=0.0)
    balls = [
        ball | {"3d_coords": np.zeros(3, np.float32), "pixel_coords": np.float32([9, 9, z])} for z in (9.7, 8.2, 12, 11)
    ]
    record = stored("clevr", tmp_path, image=black, file_name="a.png", objects=balls, question_answer=[])
    assert label("clevr_count_all", **record) == 1 and label("clevr_closest_object_distance", **record) == 1

    latents = {f"label_{n}": 0 for n in ("shape", "scale", "y_position")} | {
        f"value_{n}": 0.0 for n in ("shape", "scale", "orientation", "x_position", "y_position")
    }
    latents |= dict(label_orientation=39, label_x_position=31)
    record = stored("dsprites", tmp_path, image=png(np.ones((64, 64), np.uint8)), **latents)
    made = run("dsprites_label_orientation", **record)
    assert made["label"] == 15 and made["image"].shape == (4, 4, 3) and (made["image"] == 255).all()
