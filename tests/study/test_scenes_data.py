"""`data=scenes,pairs=,diversity=`: what is drawn is as many pictures and combinations as was asked for."""

import dataclasses

import pytest

from experiments import scales
from maeclip_jax import config as configs
from maeclip_jax.data import pipeline, source
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders.scenes import RECIPES
from maeclip_jax.scenes import SceneSpec
from maeclip_jax.study import diversity

FILE = "experiments/clip.py"


def load(argument):
    return configs.load(f"{FILE}:data=scenes,{argument}")


def test_the_scenes_are_those_of_the_prepared_demo():
    assert SceneSpec(**scales.SCENES) == RECIPES["demo"].spec
    config = load("pairs=4000,diversity=0.25")
    assert dataclasses.replace(RECIPES["demo"].spec, diversity=0.25) == source.make(config.data.source).stream.spec


def test_size_and_diversity_are_what_training_reads():
    told = {}
    for share in (0.25, 1.0):
        made = source.make(load(f"pairs=300,diversity={share}").data.source.to_dict() | dict(truth="all"))
        told[share] = diversity.measure(made)
        assert told[share]["unique pictures"] == told[share]["unique pairs"] == len(made) == 300
    assert (told[0.25]["combinations"], told[1.0]["combinations"]) == (15, 60)  # of the 60 that are not held out
    assert told[0.25]["entropy of combinations (bits)"] < 4 < told[1.0]["entropy of combinations (bits)"]
    assert pipeline.open(load("pairs=300").data).length == 300 and pipeline.open(load("").data).length is None


def test_seen_and_unseen_combinations_are_tested_apart():
    config = load("pairs=300,diversity=0.25,runlocal")
    seen, unseen = (source.make(config.evals[f"zero_shot_{k}"].data.source.to_dict()) for k in ("seen", "unseen"))
    train = source.make(config.data.source.to_dict() | dict(truth="all"))
    shown = {int(k) for i in range(300) for k in train[i]["object_class"]}
    seen, unseen = ({int(made[i]["key"].split("-")[-1]) % 64 for i in range(80)} for made in (seen, unseen))
    assert (
        seen == shown and not seen & unseen and len(seen | unseen) == 64
    )  # picture i of `classify` is of class i % 64


def test_where_things_are_and_what_a_probe_reads_is_measured_after_the_last_step():
    """The probe learns from other pictures of `classify` than it is tested on; masks are those of the drawn objects."""
    evals = load("pairs=300,runlocal").evals
    last = ("grounding", "linear_probe", "segmentation")
    assert [evals[name].every for name in last] == ["100%"] * 3
    bank, probed = (source.make(evals.linear_probe[of].source.to_dict()) for of in ("train", "data"))
    assert len(bank) == len(probed) == 80 and bank.classes == probed.classes
    assert not any((bank[i]["image"] == probed[j]["image"]).all() for i in range(80) for j in range(i % 64, 80, 64))
    assert evals.grounding.data == evals.segmentation.data and evals.grounding.block == 2
    drawn = source.make(evals.grounding.data.source.to_dict())
    batch = next(iter(pipeline.evaluate(evals.grounding.data, batch_size=3)))
    assert batch["mask"].shape == (3, 32, 32) == batch["image"].shape[:3]
    for i in range(3):
        of = {f"{thing['colour']} {thing['shape']}" for thing in drawn[i]["objects"]}
        assert {drawn.mask_classes[k] for k in set(batch["mask"][i].ravel())} == of | {"background"}


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("data=scenes,pairs=-1", "pairs=-1; valid: the number of pictures"),
        ("diversity=0.5", "pairs= and diversity= are of data=scenes, not of none"),
        ("data=scenery", "unknown data 'scenery'"),
        ("data=scenes,scale=low", "not of scale=low"),
    ],
)
def test_what_does_not_go_together_is_refused(argument, text):
    with pytest.raises(UserError) as error:
        configs.load(f"{FILE}:{argument}")
    assert text in str(error.value)


def test_a_diversity_that_leaves_out_a_colour_is_refused():
    with pytest.raises(UserError, match=r"leave 3 of 64 pairs and 3 of 8 colours in training"):
        source.make(load("pairs=9,diversity=0.05").data.source)
    with pytest.raises(UserError, match="among=seen is of split='classify'"):
        source.make(dict(kind="scenes", among="seen"))
    with pytest.raises(UserError, match="training shows every class"):
        source.make(dict(kind="scenes", among="unseen", split="classify", count=3))
