"""Which run a workdir holds: every leaf of every experiment is of one class, and identity follows the classes."""

import importlib

import pytest

from maeclip_jax.config import leaves, plain
from maeclip_jax.workdir.identity import (
    COMPUTED,
    DESCRIBED,
    LEARNT,
    LENGTH,
    LOOKED_AT,
    ORIGIN,
    SEED,
    classify,
    identity,
)
from tests.golden import ARGS, CASES

CONFIGS = {f"{e}-{a}": (e, a) for e, a in CASES}


def config(case: str) -> dict:
    """The config of a golden case, as config.json holds it."""
    experiment, arg = CONFIGS[case]
    return plain(importlib.import_module(f"experiments.{experiment}").get_config(ARGS[arg]))


def changed(tree: dict, name: str) -> dict:
    """The tree with another value at a leaf."""
    head, _, rest = name.partition(".")
    value = changed(tree[head], rest) if rest else {"another": "value"} if tree[head] == {} else f"not {tree[head]}"
    return tree | {head: value}


@pytest.mark.parametrize("case", CONFIGS)
def test_every_leaf_is_classified_and_identity_follows(case):
    tree = config(case)
    before, names = identity(tree), dict(leaves(tree))
    assert [n for n in names if not classify(n)] == [], "give these a class in workdir.identity.CLASSES"
    for name in names:
        kind = classify(name)
        same = identity(changed(tree, name)) == before
        part = kind in (LEARNT, LENGTH, ORIGIN) and name != "init_rules"  # rules of an origin that there is not
        moved = name.endswith(".dir")  # of data with a name
        assert same == (not part or moved), name


def test_what_no_class_knows_is_learnt():
    tree = config("clip-demo")
    assert identity(tree | {"my_own": 1}) != identity(tree | {"my_own": 2})


@pytest.mark.parametrize(
    "name, kind",
    {
        "seed": SEED, "total": LENGTH, "batch_size": LEARNT, "optim.lr": LEARNT, "model.compute.dtype": LEARNT,
        "model.compute.attention": COMPUTED, "mesh.fsdp": COMPUTED, "init_from": ORIGIN,
        "model.image_tower.pool": LEARNT, "resume": ORIGIN, "arg.pool": DESCRIBED, "sharding_rules": COMPUTED,
        "data.num_threads": COMPUTED, "evals.val.every": LOOKED_AT, "max_skipped_in_row": LOOKED_AT,
        "data.ops": LEARNT, "preprocess.image": LOOKED_AT, "my_own": "",
    }.items(),
)  # fmt: skip
def test_classes(name, kind):
    assert classify(name) == kind


def test_a_config_and_its_json_are_the_same_run():
    made = importlib.import_module("experiments.mae_clip").get_config("scale=demo")
    assert identity(made) == identity(plain(made))


def test_a_run_from_before_a_setting_is_as_its_default():
    """A contrast had no `duplicates`: they were negatives."""
    now = config("clip-demo")
    before = now | {"model": {k: v for k, v in now["model"].items() if k != "duplicates"}}
    assert identity(before) == identity(now)
    assert identity(before) != identity(now | {"model": now["model"] | {"duplicates": "positive"}})
    assert not any(n.startswith("model.duplicates") for n in identity(config("mae-demo")))


def test_a_decay_was_scaled_by_the_learning_rate():
    now = config("siglip-low-B16")
    before = now | {"optim": {k: v for k, v in now["optim"].items() if k != "decay_by"}}
    assert identity(before) == identity(now | {"optim": now["optim"] | {"decay_by": "lr"}})
    assert identity(before) != identity(now | {"optim": now["optim"] | {"decay_by": "schedule"}})


def test_views_were_cut_out_of_the_picture_that_clip_sees():
    now = config("slip-demo")
    simclr = {k: v for k, v in now["model"]["simclr"].items() if k != "views"}
    assert identity(now | {"model": now["model"] | {"simclr": simclr}}) == identity(now)
    assert "model.simclr.views" not in identity(config("clip-demo"))


def test_rules_count_where_parameters_come_from_elsewhere():
    tree = config("clip-demo") | {"init_from": "runs/a"}
    assert identity(tree) != identity(tree | {"init_rules": [["text.*", ""]]})
