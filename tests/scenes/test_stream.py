import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.scenes import SceneSpec, SceneStream, sample, scene

RICH = SceneSpec(objects=(1, 5), shapes=16, colours=12, textures=6, heldout_pairs=16, caption_noise=0.1)

# Bits of the data set. If a change moves them on purpose, raise VERSION in maeclip_jax/data/builders/scenes.py.
DIGESTS = {
    ("demo", "train"): "797eb90afea81f2531e1cb1912f64e2c265bab4b592ea12c5f515eb93eab34f5",
    ("demo", "classify"): "00f043c8918fbb34446f46515036168cd134571e2c0a502e4e7a9cac8bda937f",
    ("rich", "train"): "a0f2cc6450e55032e27bbfe895d9b723f4f836471d88b4aa8ad54ff1a9c39cf7",
    ("rich", "test"): "db35c0a50f7032b716e235bb0f1fff53e03788153b9226f17874c756b84fa5f5",
    ("rich", "heldout_multi"): "9494dcd2a10a3305d70f0c7273b7b607be485835df980695c44fb6adfe82a602",
    ("large", "heldout"): "9e32bd1d354f5ecd7833d9d6e82ac78fa0612632e50279f91bb7c5251cb283b4",
    ("large", "train"): "347562e3686e6ecff07746422022c43cbe6e0f87d5f6f85ee79b9928e9a531dc",
}  # fmt: skip


def digest(spec, split):
    found = hashlib.sha256()
    for index in (0, 1, 2, 3, 4, 5, 6, 7, 10**9):
        record = scene(spec, 7, index, split)
        found.update(record.pop("image").tobytes())
        found.update(record.pop("masks").tobytes())
        found.update(json.dumps(record, sort_keys=True).encode())
    return found.hexdigest()


@pytest.mark.parametrize(("name", "split"), DIGESTS)
def test_the_bits_are_those_of_every_other_machine(name, split):
    spec = {"demo": SceneSpec(), "rich": RICH, "large": SceneSpec(resolution=224, objects=(1, 5), heldout_pairs=4)}[
        name
    ]
    assert digest(spec, split) == DIGESTS[name, split]


def test_sample_is_the_scene_without_the_truth():
    for index in range(40):
        full, fast = scene(RICH, 0, index), sample(RICH, 0, index)
        assert set(fast) == {"key", "image", "texts", "noisy"}
        np.testing.assert_array_equal(full["image"], fast["image"])
        assert all(full[k] == fast[k] for k in ("key", "texts", "noisy"))
        assert fast["image"].shape == (64, 64, 3) and fast["image"].dtype == np.uint8


def test_masks_agree_with_boxes_and_colours():
    for index in range(60):
        record = scene(SceneSpec(textures=1, objects=(1, 5)), 0, index)
        masks = record["masks"]
        assert masks.dtype == np.uint8 and masks.shape == (64, 64) and masks.max() == len(record["objects"])
        for i, thing in enumerate(record["objects"]):
            rows, columns = np.nonzero(masks == i + 1)
            top, left, bottom, right = thing["box"]
            assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == (top, left, bottom, right)
            x, y = thing["center"]
            assert left <= x <= right and top <= y <= bottom
            r, g, b = np.median(record["image"][masks == i + 1], axis=0)
            looks = {
                "red": r > 150 > 110 > max(g, b),
                "green": g > 90 and g > r + 50,
                "blue": b > 150 and b > r + 80,
                "yellow": min(r, g) > 170 > 110 > b,
                "purple": b > g + 60 and r > g + 40,
                "cyan": min(g, b) > 160 > 110 > r,
                "white": min(r, g, b) > 200,
                "black": max(r, g, b) < 70,
            }
            assert looks[thing["colour"]], (thing, r, g, b)


def test_backgrounds_have_no_colour_with_a_name():
    for index in range(60):
        record = scene(RICH, 0, index)
        grey = record["image"][record["masks"] == 0].astype(int)
        chroma = grey.max(-1) - grey.min(-1)
        assert np.percentile(chroma, 80) < 60  # the rest is the soft edge of objects
        assert 40 < np.median(grey) < 200


def test_labels_only_where_there_is_one_object():
    spec = SceneSpec()
    for index in range(60):
        record = scene(spec, 0, index)
        names = [f"{t['colour']} {t['shape']}" for t in record["objects"]]
        assert record["label"] == -1 if len(names) > 1 else spec.classes[record["label"]] == names[0]


def test_stream_is_long_pickles_and_reads_from_threads():
    stream = SceneStream(SceneSpec(resolution=32), seed=5)
    assert len(stream) == 2**40 and stream[2**40 - 1]["image"].shape == (32, 32, 3)
    copy = pickle.loads(pickle.dumps(stream))
    assert len(pickle.dumps(stream)) < 1000
    order = list(range(64))
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(copy.__getitem__, order))
    for index, record in zip(order, threaded):
        np.testing.assert_array_equal(record["image"], stream[index]["image"])
        assert record["texts"] == stream[index]["texts"] and record["key"] == f"train-5-{index}"
    keys = {stream[i]["image"].tobytes() for i in order}
    assert len(keys) == 64 and stream[0]["image"].tobytes() != SceneStream(stream.spec, 6)[0]["image"].tobytes()


def test_grain_reads_the_stream():
    grain = pytest.importorskip("grain")
    stream = SceneStream(SceneSpec(resolution=32), seed=1)
    dataset = grain.MapDataset.source(stream)
    np.testing.assert_array_equal(dataset[2**33]["image"], stream[2**33]["image"])


@pytest.mark.parametrize("index", [-1, 2**40])
def test_stream_ends(index):
    with pytest.raises(UserError, match=rf"scenes: index {index}; valid: 0 to 1099511627775"):
        SceneStream(SceneSpec())[index]


def test_stream_refuses_at_once():
    with pytest.raises(UserError, match="unknown split of scenes 'tset'"):
        SceneStream(SceneSpec(), split="tset")
    with pytest.raises(UserError, match="split 'heldout' is empty"):
        SceneStream(SceneSpec(), split="heldout")
