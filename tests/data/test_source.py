"""Sources: a prepared TFDS data set read without TensorFlow, noise, and every way to name one wrongly."""

import pickle
import re
import sys

import numpy as np
import pytest

from maeclip_jax.data import source
from maeclip_jax.data.tfds_record import Reader
from maeclip_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

JPEG, PNG = b"\xff\xd8 not decoded here", b"\x89PNG nor here"


def write(root, name, features, examples, version="1.0.0", **splits):
    """A TFDS data set at root/name/version with the splits' numbers of `examples`."""

    class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(n) for split, n in splits.items()}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, examples(i)

    Set.name = name
    tfds.disable_progress_bar()
    Set(data_dir=str(root), file_format="array_record").download_and_prepare()


def image():
    return tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")


RICH = {
    "key": tfds.features.Text(),
    "image": image(),
    "texts": tfds.features.Sequence(tfds.features.Text()),
    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    "weight": tfds.features.Scalar(np.float32),
    "flag": tfds.features.Scalar(np.bool_),
    "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
    "mask": tfds.features.LabeledImage(labels=3, shape=(None, None, 1), encoding_format="png"),
    "meta": {"url": tfds.features.Text(), "id": tfds.features.Scalar(np.int64)},
    "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "name": tfds.features.Text()}),
    "packed": tfds.features.Tensor(shape=(2, 2), dtype=np.uint8, encoding="zlib"),
}


def rich(i):
    boxes = [{"bbox": tfds.features.BBox(0.0, 0.25, 0.5, 1.0), "name": f"thing {k}"} for k in range(i % 3)]
    return {
        "key": f"key-{i}",
        "image": JPEG + bytes([i]),
        "texts": [f"caption {k} of {i} é" for k in range(i % 4)],
        "label": i % 2,
        "weight": i / 2,
        "flag": i % 2 == 1,
        "size": [i, i + 1],
        "mask": PNG,
        "meta": {"url": f"u{i}", "id": 10**12 + i},
        "objects": boxes,
        "packed": np.full((2, 2), i, np.uint8),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write(root, "rich", RICH, rich, train=20, test=6)
    write(root, "rich", RICH, rich, version="1.10.0", train=3)
    coco = {
        "image": image(),
        "image/filename": tfds.features.Text(),
        "image/id": tfds.features.Scalar(np.int64),
        "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
    }
    write(
        root,
        "coco",
        coco,
        lambda i: {
            "image": JPEG,
            "image/filename": f"{i:06}.jpg",
            "image/id": i,
            "captions": [{"id": k, "text": f"caption {k}"} for k in range(5)],
        },
        val=4,
    )
    laion = {"image": image(), "caption": tfds.features.Text(), "similarity": np.float64}
    write(root, "laion", laion, lambda i: {"image": JPEG, "caption": "a picture", "similarity": 0.25}, train=2)
    return root


def open_(root, name="rich:1.0.0", **kwargs):
    return source.make({"kind": "tfds", "dir": str(root), "name": name, **kwargs})


def test_record_of_every_kind_of_feature(root):
    found = open_(root, split="train")
    assert "tensorflow" not in sys.modules
    records = {r["key"]: r for r in (found[i] for i in range(len(found)))}
    assert len(found) == len(records) == 20 and found.classes == ["cat", "dog"] and not found.endless
    for i in range(20):
        got, wrote = records[f"key-{i}"], rich(i)
        for name in ("image", "mask", "texts", "label", "weight", "flag", "meta"):
            assert got[name] == wrote[name] and type(got[name]) is type(wrote[name]), name
        assert got["size"].tolist() == wrote["size"] and got["size"].dtype == np.int32
        assert got["objects"]["bbox"].shape == (i % 3, 4) and got["objects"]["name"] == [
            f"thing {k}" for k in range(i % 3)
        ]
        np.testing.assert_array_equal(got["packed"], wrote["packed"])


def test_fast_reading_equals_tfds(root):
    """Against TFDS's own numpy reader, value by value."""
    builder = tfds.builder_from_directory(str(root / "rich" / "1.0.0"))
    skip = tfds.decode.SkipDecoding()
    theirs = builder.as_data_source("train", decoders={"image": skip, "mask": skip})
    ours = open_(root, split="train")

    def equal(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(b, bytes) and isinstance(a, str):
            return a == b.decode()
        if isinstance(a, list):
            return len(a) == len(b) and all(map(equal, a, b))
        return np.array_equal(a, b) or len(a) == len(b) == 0  # no boxes: theirs forgets the 4

    for i in range(20):
        assert equal(ours[i], theirs[i])


def test_records_are_read_without_the_slow_decoding_of_tfds(root, monkeypatch):
    builder = tfds.builder_from_directory(str(root / "rich" / "1.0.0"))
    raw = open_(root, split="train").read(3, 4)[0]
    read = Reader(builder.info.features, {"packed": None})
    for name in ("deserialize_example", "deserialize_example_np", "decode_example", "decode_example_np"):
        monkeypatch.setattr(type(builder.info.features), name, None)
    assert "packed" not in read(raw) and read(raw)["key"]


def test_catalogue_layouts_become_records(root):
    record = open_(root, "coco", split="val")[0]
    assert record["texts"] == [f"caption {k}" for k in range(5)] and record["key"].endswith(".jpg")
    record = open_(root, "laion")[1]
    assert record["texts"] == ["a picture"] and record["similarity"] == 0.25
    assert record["key"] == "laion/1.0.0:train/1"  # no name of its own


def test_features_can_be_renamed(root):
    record = open_(root, "coco", split="val", features={"texts": "image/filename", "key": "image/id"})[2]
    assert record["texts"][0].endswith(".jpg") and record["key"] in {"0", "1", "2", "3"}
    with pytest.raises(UserError, match=r"unknown feature for 'texts': 'caption' .*valid: captions/id, captions/text"):
        open_(root, "coco", split="val", features={"texts": "caption"})


def test_splits(root):
    assert len(open_(root, split="train[:90%]")) == 18
    assert len(open_(root, split="train[5:7]+test")) == 8
    whole = [open_(root, split="train")[i]["key"] for i in range(20)]
    parts = [open_(root, split=s) for s in ("train[:30%]", "train[30%:]")]
    assert [p[i]["key"] for p in parts for i in range(len(p))] == whole


@pytest.mark.parametrize(
    "name, split, message",
    [
        (
            "rich:1.0.0",
            "tset",
            "unknown split of rich/1.0.0: 'tset' (did you mean 'test'?); valid: test, train, or a slice",
        ),
        ("rich:1.0.0", "train[:x]", "split 'train[:x]' cannot be read"),
        ("rich:1.0.0", "", "unknown split of rich/1.0.0: ''"),
        ("rich:1.0.0", "train[3:3]", "split 'train[3:3]' of rich/1.0.0 is empty"),
        ("laion", "train[:0%]", "split 'train[:0%]' of laion/1.0.0 is empty; valid: train"),
    ],
)
def test_wrong_splits(root, name, split, message):
    with pytest.raises(UserError) as e:
        open_(root, name, split=split)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_newest_version_unless_named(root):
    assert len(open_(root, "rich")) == 3  # 1.10.0, which sorts before 1.9
    assert len(source.make({"kind": "tfds", "dir": str(root / "rich" / "1.0.0")})) == 20


def test_missing_data_set_names_the_command(root, tmp_path):
    with pytest.raises(UserError) as e:
        open_(root, "photos")
    assert f"no data set 'photos' at {root}/photos" in str(e.value)
    command = "prepare it with `python -m maeclip_jax.prepare --src <pictures and captions>"
    assert f"{command} --out {root} --name photos`" in str(e.value)
    assert "coco:1.0.0, laion:1.0.0, rich:1.0.0, rich:1.10.0" in str(e.value)
    with pytest.raises(UserError) as e:
        open_(tmp_path, "scenes/mu")
    assert f"`python -m maeclip_jax.prepare.builders.scenes --config mu --data_dir {tmp_path}`" in str(e.value)
    assert f"{tmp_path} holds no data set" in str(e.value) and "\n" not in str(e.value)
    for dir, name in (("mine/photos", ""), ("mine/photos/1.0.0", ""), ("", "mine/photos")):
        with pytest.raises(UserError, match=re.escape(f"{command} --out {tmp_path}/mine --name photos`")):
            source.make(dict(kind="tfds", dir=str(tmp_path / dir), name=name))
    with pytest.raises(UserError, match=r"builders.vqav2 --manual_dir <downloaded files> --data_dir"):
        open_(tmp_path, "vqav2")


def test_data_directory_comes_from_the_environment(root, monkeypatch):
    monkeypatch.delenv("MAECLIP_DATA_DIR", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert source.data_dir() == "data"
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    assert source.data_dir() == "/nowhere"
    monkeypatch.setenv("MAECLIP_DATA_DIR", str(root))
    assert len(source.make({"kind": "tfds", "name": "coco", "split": "val"})) == 4
    assert source.data_dir("~/x").startswith("/") and source.data_dir("y") == "y"


@pytest.mark.parametrize(
    "config, message",
    [
        ({"kind": "tar"}, "unknown source kind 'tar'"),
        ({"dir": "x"}, "unknown source kind None; valid: noise, questions, scenes, subset, tfds"),
        ({"kind": "tfds", "path": "x"}, "unknown argument of source 'tfds': 'path'; valid: dir, name, split, features"),
        ("scenes", "a source is a dict with a kind"),
    ],
)
def test_wrong_sources(config, message):
    with pytest.raises(UserError) as e:
        source.make(config)
    assert message in str(e.value)


def test_sources_travel_to_other_processes(root):
    for made in (open_(root), source.make({"kind": "noise", "seed": 3})):
        again = pickle.loads(pickle.dumps(made))
        assert again[2]["key"] == made[2]["key"] and np.array_equal(again[2]["image"], made[2]["image"])


def test_noise_is_a_function_of_seed_and_index():
    a, b, c = (source.make({"kind": "noise", "resolution": 32, "seed": s}) for s in (0, 0, 1))
    assert a.endless and a[5]["image"].shape == (32, 32, 3) and a[5]["image"].dtype == np.uint8
    np.testing.assert_array_equal(a[5]["image"], b[5]["image"])
    assert a[5]["texts"] == b[5]["texts"] != a[6]["texts"]
    assert (a[5]["image"] != a[6]["image"]).mean() > 0.9 and (a[5]["image"] != c[5]["image"]).mean() > 0.9
    words = {w for i in range(2000) for w in a[i]["texts"][0].split()}
    assert 950 < len(words) <= 1000 and len({a[i]["label"] for i in range(200)}) == len(a.classes) == 10


def test_noise_is_no_bottleneck():
    """Pictures are windows into one buffer, so a record draws nothing and copies nothing."""
    made = source.make({"kind": "noise"})
    assert all(np.shares_memory(made[i]["image"], made._pixels) for i in (0, 1, 10**9))


def test_scenes_are_a_function_of_seed_and_index():
    pytest.importorskip("maeclip_jax.scenes.stream", reason="the renderer is not there")
    made = source.make({"kind": "scenes", "seed": 3})
    again = pickle.loads(pickle.dumps(made))
    assert made.endless and isinstance(made[4]["key"], str) and made[4]["image"].dtype == np.uint8
    np.testing.assert_array_equal(made[4]["image"], again[4]["image"])
    assert made[4]["texts"] == again[4]["texts"]
    assert (made[4]["image"] != source.make({"kind": "scenes", "seed": 4})[4]["image"]).any()
    assert len(source.make({"kind": "scenes", "count": 7})) == 7
    assert len(set(made.classes)) == 64
    with pytest.raises(UserError, match=r"unknown argument of source 'scenes': 'colors'.*did you mean 'colours'"):
        source.make({"kind": "scenes", "colors": 3})
