"""Sets of the TFDS catalogue, as they are once prepared: the features are those of the installed package, the values
are drawn, and every one is read back as it was written."""

import io

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import source
from maeclip_jax.data.ops import parse
from maeclip_jax.errors import UserError
from tests.data.labelled_sources import opened
from tests.data.test_source import write

tfds = pytest.importorskip("tensorflow_datasets")
f = tfds.features

LABELLED = (
    "imagenet2012", "imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch", "caltech101", "cifar10", "cifar100",
    "dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397", "svhn_cropped", "eurosat", "patch_camelyon", "resisc45",
    "diabetic_retinopathy_detection", "dmlab", "food101", "stl10", "cars196",
)  # fmt: skip
# Its builder cannot be made without TensorFlow, so the features stand here (coco.py, coco_captions.py).
COCO = f.FeaturesDict(
    {
        "image": f.Image(encoding_format="jpeg"),
        "image/filename": f.Text(),
        "image/id": np.int64,
        "objects": f.Sequence(
            {"id": np.int64, "area": np.int64, "bbox": f.BBoxFeature(), "label": f.ClassLabel(num_classes=80),
             "is_crowd": np.bool_}
        ),
        "captions": f.Sequence({"text": f.Text(), "id": np.int64}),
    }
)  # fmt: skip


def drawn(feature, rng, name=""):
    """A value that TFDS would take for a feature."""
    if isinstance(feature, f.FeaturesDict):
        return {key: drawn(child, rng, key) for key, child in feature.items()}
    if isinstance(feature, f.Sequence):
        return [drawn(feature.feature, rng, name) for _ in range(3)]
    if isinstance(feature, f.Image):
        height, width, channels = (given or size for given, size in zip(feature.shape, (9, 12, 3)))
        pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
        file = io.BytesIO()
        kind = "JPEG" if feature.encoding_format == "jpeg" else "PNG"
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, kind)
        return file.getvalue()
    if isinstance(feature, f.Text):
        return f"{name} {rng.integers(1000)}"
    if isinstance(feature, f.ClassLabel):
        return int(rng.integers(feature.num_classes))
    if isinstance(feature, f.BBoxFeature):
        return f.BBox(0.25, 0.0, 0.5, 0.75)
    dtype = np.dtype(feature.np_dtype)
    value = rng.integers(0, 2, feature.shape) if dtype.kind in "bi" else rng.random(feature.shape)
    return value.astype(dtype)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """name -> (source of a prepared set of three records, what they were made of, its features)."""
    root, made = tmp_path_factory.mktemp("catalogue"), {}

    def get(name):
        if name not in made:
            features = COCO if name == "coco_captions" else tfds.builder(name, data_dir=str(root)).info.features
            rng = np.random.default_rng(len(name))
            values = [drawn(features, rng) for _ in range(3)]
            write(root, name, dict(features.items()), lambda i: values[i], train=3)
            found = opened(root / name / "1.0.0", "train")
            records = [found[i] for i in range(3)]  # TFDS shuffles
            order = [next(v for v in values if v["image"] == r["image"]) for r in records]
            made[name] = (found, records, order, features)
        return made[name]

    return get


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_sets(catalogue, name):
    found, records, values, features = catalogue(name)
    assert found.classes == list(features["label"].names) and len(found.classes) == features["label"].num_classes
    ops = parse('decode|resize_small(8)|center_crop(8)|label|keep("image","label")')
    for record, value in zip(records, values):
        row = ops(record, np.random.default_rng())
        assert row["label"] == value["label"] and row["image"].shape == (8, 8, 3) and row["image"].dtype == np.uint8
        named = [value[k] for k in ("file_name", "filename", "id", "image/file_name") if k in value]
        assert record["key"] == named[0] if named else record["key"].startswith(f"{name}/1.0.0:train/")


@pytest.mark.parametrize("name", ["dsprites", "smallnorb", "cifar100"])
def test_a_set_with_several_labels(catalogue, name):
    found, records, values, features = catalogue(name)
    labels = [k for k, v in features.items() if isinstance(v, f.ClassLabel)]
    assert len(labels) >= 2
    for label in labels:
        row = parse(f'decode|label("{label}")|keep("image","label")')(records[0], np.random.default_rng())
        assert row["label"] == values[0][label] and row["image"].shape[2] == 3  # grey becomes three channels
        chosen = opened(found.folder, "train", features={"label": label})
        assert chosen.classes == list(features[label].names) and chosen[0]["label"] == values[0][label]


def test_masks_of_scene_parse150(catalogue):
    """The class in the red channel, the instance in the green one; 0 is everything else."""
    found, records, values, _ = catalogue("scene_parse150")
    ops = parse('decode|mask(channel=0,void=0)|keep("image","mask")')
    for record, value in zip(records, values):
        assert record["mask"] == value["annotation"]
        red = np.asarray(Image.open(io.BytesIO(value["annotation"])))[..., 0]
        np.testing.assert_array_equal(ops(record, np.random.default_rng())["mask"], np.where(red == 0, 255, red))
    assert found.mask_classes is None and found.classes is None  # it does not hold them


def test_masks_of_oxford_iiit_pet(catalogue):
    found, records, values, _ = catalogue("oxford_iiit_pet")
    assert records[0]["mask"] == values[0]["segmentation_mask"] and found.mask_classes is None


def test_captions_and_objects_of_coco(catalogue):
    _, records, values, _ = catalogue("coco_captions")
    for record, value in zip(records, values):
        assert record["texts"] == [c["text"] for c in value["captions"]] and record["key"] == value["image/filename"]
        assert record["objects"]["label"].tolist() == [o["label"] for o in value["objects"]]
        assert record["objects"]["bbox"].tolist() == [[0.25, 0.0, 0.5, 0.75]] * 3


def test_objects_of_clevr_and_kitti(catalogue):
    for name, parts in (("clevr", ("color", "shape", "pixel_coords")), ("kitti", ("type", "location", "bbox"))):
        _, records, values, _ = catalogue(name)
        for part in parts:
            wrote = [list(o[part]) if part == "bbox" else o[part] for o in values[0]["objects"]]
            np.testing.assert_allclose(records[0]["objects"][part], np.asarray(wrote, np.float64), rtol=1e-6)
        assert "object_class" not in records[0]  # only scenes have classes of (colour, shape)


def test_versions_and_configs_are_found(catalogue, tmp_path):
    """As the catalogue lies on disk: name/config/version."""
    found, *_ = catalogue("cifar10")
    (tmp_path / "eurosat" / "rgb").mkdir(parents=True)
    (tmp_path / "eurosat" / "rgb" / "2.0.0").symlink_to(found.folder)
    for name in ("eurosat/rgb", "eurosat/rgb:2.0.0"):
        assert len(source.make({"kind": "tfds", "dir": str(tmp_path), "name": name})) == 3


@pytest.mark.parametrize("name", ["cifar10", "eurosat/rgb", "coco_captions"])
def test_a_missing_set_of_the_catalogue_says_how_it_is_built(tmp_path, name):
    with pytest.raises(UserError) as e:
        source.make({"kind": "tfds", "dir": str(tmp_path), "name": name})
    command = f"tfds.builder('{name}', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()"
    assert command in str(e.value) and "[catalog]" in str(e.value) and "\n" not in str(e.value)
