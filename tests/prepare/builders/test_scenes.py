import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import scenes
from maeclip_jax.scenes import SceneSpec, pool, scene, world


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return scenes.build("mu", folder)


@pytest.fixture(scope="module")
def builder(built):
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(built))


def records(builder, split):
    return list(builder.as_data_source(split))


def test_sizes_and_class_names_are_those_of_the_recipe(builder, built):
    recipe = scenes.RECIPES["mu"]
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == recipe.sizes
    assert builder.info.features["label"].names == recipe.spec.classes == [
        f"{c} {s}" for c in ("red", "green", "blue", "yellow") for s in ("square", "triangle", "star", "cross")
    ]  # fmt: skip
    assert builder.info.features["objects"]["colour"].names == ["red", "green", "blue", "yellow"]
    found = json.loads((built / "metadata.json").read_text())["recipe"]
    assert SceneSpec.of(**found["spec"]) == recipe.spec and found["train"] == recipe.train


@pytest.mark.parametrize(
    ("name", "version", "start"),
    [("demo", "3.0.0", "5ca014ba1bb4"), ("mu", "2.0.0", "3c8cb1670fe9"), ("full", "2.0.0", "030756eb912a")],
)
def test_other_pictures_have_another_version(name, version, start, tmp_path):
    """Who changes a recipe changes both: prepared pictures of before lie beside the new ones, not in their place."""
    spec = scenes.RECIPES[name].spec
    drawn = hashlib.sha256(b"".join(scene(spec, 0, i)["image"].tobytes() for i in range(3)))
    made = scenes.Scenes(data_dir=tmp_path, config=name, file_format="array_record")
    assert (str(made.version), drawn.hexdigest()[:12]) == (version, start)


@pytest.mark.parametrize("split", ["train", "classify", "heldout_multi"])
def test_what_is_read_is_what_was_drawn(builder, split):
    recipe = scenes.RECIPES["mu"]
    for record in records(builder, split)[:20]:
        index = int(record["key"].decode().split("-")[2])
        drawn = scene(recipe.spec, recipe.seed, index, split)
        assert record["key"].decode() == drawn["key"] and record["label"] == drawn["label"]
        np.testing.assert_array_equal(record["image"], drawn["image"])
        np.testing.assert_array_equal(record["mask"][..., 0], drawn["masks"])
        assert [t.decode() for t in record["texts"]] == drawn["texts"]
        assert [bool(n) for n in record["noisy"]] == drawn["noisy"]
        assert [q.decode() for q in record["questions"]["answer"]] == [q["answer"] for q in drawn["questions"]]
        things = record["objects"]
        for key, table in (("shape", world.SHAPES), ("colour", world.COLOUR_NAMES), ("size", world.SIZES),
                           ("texture", world.TEXTURES)):  # fmt: skip
            assert [table[i] for i in things[key]] == [t[key] for t in drawn["objects"]]
        np.testing.assert_allclose(np.array(things["box"]) * 32, [t["box"] for t in drawn["objects"]], atol=1e-4)
        np.testing.assert_array_equal(things["center"], [t["center"] for t in drawn["objects"]])


def pairs_of(record):
    return set(zip(record["objects"]["colour"], record["objects"]["shape"]))


def test_heldout_pairs_are_in_no_training_picture(builder):
    heldout = set(world.pairs(scenes.RECIPES["mu"].spec).heldout)
    assert len(heldout) == 2
    for split in ("train", "val", "test"):
        for record in records(builder, split):
            assert not pairs_of(record) & heldout
    for split in ("heldout", "heldout_multi"):
        for record in records(builder, split):
            assert pairs_of(record) & heldout
    assert all(r["label"] >= 0 for r in records(builder, "heldout"))


def test_classify_holds_every_class_equally_often(builder):
    labels = [r["label"] for r in records(builder, "classify")]
    assert np.bincount(labels, minlength=16).tolist() == [4] * 16


@pytest.mark.parametrize("split", ["val", "test", "heldout_multi"])
def test_captions_tell_pictures_apart(builder, split):
    contents = [tuple(sorted(zip(*(r["objects"][k] for k in ("shape", "colour", "size", "texture")))))
                for r in records(builder, split)]  # fmt: skip
    assert len(set(contents)) == len(contents)


def test_numbers_of_objects_are_mixed(builder):
    counts = np.bincount([len(r["objects"]["shape"]) for r in records(builder, "train")], minlength=4)
    assert counts[0] == 0 and min(counts[1:]) > 50


def test_building_again_changes_nothing(built):
    before = {p.name: p.stat().mtime for p in built.iterdir()}
    assert scenes.build("mu", built.parent.parent.parent) == built
    assert {p.name: p.stat().mtime for p in built.iterdir()} == before


def test_an_interrupted_build_is_built_again_and_tidied(tmp_path, monkeypatch):
    few = dict(train=8, val=0, test=0, classify=0, heldout=0, heldout_multi=0)
    draw = pool.draw

    def fails(job, workers):
        for i, record in enumerate(draw(job, workers)):
            if i == 4:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(scenes, "draw", fails)
    with pytest.raises(KeyboardInterrupt):
        scenes.build("mu", tmp_path, **few)
    (config,) = [p for p in (tmp_path / "scenes").iterdir() if p.name.startswith("mu-")]
    assert not (config / scenes.VERSION).exists()
    killed = config / f"incomplete.ABCDEF_{scenes.VERSION}"  # what kill -9 leaves
    young = config / f"incomplete.GHIJKL_{scenes.VERSION}"  # what another process is writing
    for path, age in ((killed, 3600), (young, 0)):
        path.mkdir()
        (path / "part").write_text("x")
        for p in (path, path / "part"):
            os.utime(p, (time.time() - age,) * 2)
    monkeypatch.setattr(scenes, "draw", draw)
    path = scenes.build("mu", tmp_path, **few)
    assert (path / "dataset_info.json").exists() and not killed.exists() and young.exists()


def test_overrides_have_their_own_directory(tmp_path):
    few = dict(val=0, test=0, classify=0, heldout=0, heldout_multi=0)
    one = scenes.build("mu", tmp_path, train=4, objects=(2, 2), **few)
    two = scenes.build("mu", tmp_path, train=4, objects=[2, 2], **few)
    other = scenes.build("mu", tmp_path, train=4, objects=(2, 2), seed=1, **few)
    assert one == two != other and one.parent.name.startswith("mu-")
    import tensorflow_datasets as tfds

    found = list(tfds.builder_from_directory(str(one)).as_data_source("train"))
    assert len(found) == 4 and all(len(r["objects"]["shape"]) == 2 for r in found)


def test_jpeg_is_nearly_the_picture(tmp_path):
    import tensorflow_datasets as tfds

    path = scenes.build("mu", tmp_path, train=4, val=0, test=0, classify=0, heldout=0, heldout_multi=0, encoding="jpeg")
    for record in tfds.builder_from_directory(str(path)).as_data_source("train"):
        drawn = scene(scenes.RECIPES["mu"].spec, 0, int(record["key"].decode().split("-")[2]))["image"].astype(int)
        assert 0 < abs(record["image"].astype(int) - drawn).mean() < 4


def test_any_number_of_workers_draws_the_same_in_the_same_order():
    job = pool.Job(SceneSpec(resolution=32), 0, "train", range(200), "png")
    alone, many = list(pool.draw(job, 1)), list(pool.draw(job, 3))
    assert [r["key"] for r in many] == [f"train-0-{i}" for i in range(200)]
    assert alone == many


def test_a_worker_that_dies_is_reported():
    job = pool.Job(SceneSpec(resolution=32), -1, "train", range(200), "png")  # refused seed
    with pytest.raises(RuntimeError, match=r"a process that draws scenes ended early \(exit code 1\)"):
        list(pool.draw(job, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="dmo"), "unknown config of scenes 'dmo' (did you mean 'demo'?); valid: demo, full, mu"),
        (
            dict(name="mu", divrsity=1),
            "unknown override of scenes 'divrsity' (did you mean 'diversity'?); valid: resolution,",
        ),
        (dict(name="mu", train=-1), "scenes: train=-1 pictures; valid: 0 or more"),
        (dict(name="mu", encoding="gif"), "unknown encoding 'gif'; valid: png, jpeg"),
        (
            dict(name="mu", val=0, test=500, objects=(1, 1)),
            "scenes: test=500 pictures that captions can tell apart cannot be had",
        ),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        scenes.build(data_dir=tmp_path, **{"train": 4, **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_command_line_needs_no_tensorflow(tmp_path):
    version = tmp_path / "scenes" / "mu" / scenes.VERSION
    code = (
        "import sys\n"
        "from maeclip_jax.prepare.builders import scenes\n"
        f"assert scenes.main(['--config', 'mu', '--data_dir', {str(tmp_path)!r}]) == 0\n"
        "import tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({str(version)!r}).as_data_source('train')\n"
        "assert source[0]['image'].shape == (32, 32, 3)\n"
        "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
        "assert scenes.main(['--config', 'x']) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ready after" in done.stdout and "pictures" in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: unknown config of scenes 'x'; valid: demo, full, mu"


def test_recipes_can_be_drawn():
    for recipe in scenes.RECIPES.values():
        few = dataclasses.replace(recipe, train=3, val=3, test=3, classify=3, heldout=3, heldout_multi=3)
        for split in few.sizes:
            assert len(scenes.indices(few, split)) == 3
