import dataclasses

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.scenes import SceneSpec, render, world


def things(spec, index, split="train", seed=0):
    return world.layout(spec, world.tapes(seed, split, index)[0], split, index)


@pytest.mark.parametrize(("shapes", "colours", "heldout"), [(8, 8, 4), (16, 12, 16), (4, 4, 2), (5, 12, 7)])
def test_heldout_pairs_are_never_in_training_but_their_concepts_are(shapes, colours, heldout):
    spec = SceneSpec(shapes=shapes, colours=colours, heldout_pairs=heldout, objects=(1, 5))
    parts = world.pairs(spec)
    assert len(parts.heldout) == heldout and len(parts.train) == shapes * colours - heldout
    assert not set(parts.heldout) & set(parts.train)
    seen = {(t.colour, t.shape) for i in range(600) for s in ("train", "val", "test") for t in things(spec, i, s)}
    assert not seen & set(parts.heldout)
    assert {c for c, _ in seen} == set(range(colours)) and {s for _, s in seen} == set(range(shapes))


def test_heldout_splits_hold_heldout_pairs():
    spec = SceneSpec(heldout_pairs=4)
    heldout = set(world.pairs(spec).heldout)
    for i in range(100):
        assert {(t.colour, t.shape) for t in things(spec, i, "heldout")} <= heldout
        several = things(spec, i, "heldout_multi")
        assert len(several) >= 2 and {(t.colour, t.shape) for t in several} & heldout
    assert {(t.colour, t.shape) for i in range(4) for t in things(spec, i, "heldout")} == heldout


def test_heldout_pairs_spread_over_colours_and_shapes():
    heldout = world.pairs(SceneSpec(heldout_pairs=8)).heldout
    assert len({c for c, _ in heldout}) == 8 and len({s for _, s in heldout}) == 8


def test_smaller_diversity_is_a_subset_and_leaves_the_test_alone():
    specs = [SceneSpec(heldout_pairs=4, diversity=d) for d in (0.3, 0.6, 1.0)]
    small, middle, large = (set(world.pairs(s).train) for s in specs)
    assert small < middle < large and len(small) == 18
    for split in ("test", "classify", "heldout"):
        assert [things(specs[0], i, split) for i in range(20)] == [things(specs[2], i, split) for i in range(20)]
    drawn = {(t.colour, t.shape) for i in range(300) for t in things(specs[0], i)}
    assert drawn == small


def test_classify_is_balanced_with_one_object():
    spec = SceneSpec(shapes=5, colours=4)
    drawn = [things(spec, i, "classify") for i in range(40)]
    assert all(len(t) == 1 for t in drawn)
    numbers = [t[0].colour * 5 + t[0].shape for t in drawn]
    assert np.bincount(numbers).tolist() == [2] * 20
    assert spec.classes[numbers[7]] == f"{world.COLOUR_NAMES[drawn[7][0].colour]} {world.SHAPES[drawn[7][0].shape]}"


@pytest.mark.parametrize("objects", [(1, 1), (3, 3), (1, 3), (5, 5), (1, 5)])
@pytest.mark.parametrize("resolution", [32, 64])
def test_objects_stay_inside_and_mostly_visible(objects, resolution):
    spec = SceneSpec(resolution=resolution, objects=objects, shapes=16)
    numbers, least, sizes = set(), 1.0, {0: [], 1: []}
    for i in range(150):
        scene = things(spec, i)
        numbers.add(len(scene))
        masks = render.masks(spec, scene)
        for k, thing in enumerate(scene):
            alone = (render.masks(spec, [thing._replace(x=resolution // 2, y=resolution // 2)]) > 0).sum()
            least = min(least, (masks == k + 1).sum() / alone)
            sizes[thing.size].append(thing.diameter)
    assert numbers == set(range(objects[0], objects[1] + 1))
    assert least > 0.6, least
    assert max(sizes[0]) < min(sizes[1])  # "large" has one meaning


def test_half_of_the_later_objects_share_a_concept():
    spec = SceneSpec(objects=(2, 2))
    pairs = [things(spec, i) for i in range(400)]
    shared = sum(a.colour == b.colour or a.shape == b.shape for a, b in pairs) / 400
    assert 0.5 < shared < 0.75


def test_relation_is_antisymmetric_and_clear():
    spec = SceneSpec(objects=(2, 2))
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}
    found = [(world.relation(a, b), world.relation(b, a)) for a, b in (things(spec, i) for i in range(200))]
    assert all(opposite[x] == y for x, y in found)
    assert {x for x, _ in found} == set(opposite)


def test_tape_goes_on_beyond_its_words_and_is_uniform():
    tape = world.tapes(0, "train", 5)[0]
    lots = [tape.below(10) for _ in range(5000)]
    again = world.tapes(0, "train", 5)[0]
    assert lots == [again.below(10) for _ in range(5000)]
    assert max(np.bincount(lots, minlength=10)) < 600 and min(np.bincount(lots, minlength=10)) > 400
    assert sorted(again.shuffled(range(9))) == list(range(9))


def test_streams_seeds_splits_and_indices_differ():
    numbers = [tape.number() for seed in (0, 1) for split in ("train", "val") for i in (0, 1, 2**39)
             for tape in world.tapes(seed, split, i)]  # fmt: skip
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (dict(colors=8), "unknown knob of scenes 'colors' (did you mean 'colours'?); valid: resolution, objects,"),
        (dict(shapes=99), "scenes: shapes=99; valid: 3 to 16"),
        (dict(scale=2.0), "scenes: scale=2.0; valid: 0.5 to 1.0"),
        (dict(objects=(0, 3)), "scenes: objects=(0, 3); valid: (fewest, most) with 1 <= fewest <= most <= 5"),
        (dict(caption_noise=1.5), "scenes: caption_noise=1.5; valid: 0.0 to 1.0"),
        (
            dict(diversity=0.05),
            "diversity=0.05 leave 3 of 64 pairs and 3 of 8 colours in training; valid: fewer held out",
        ),
    ],
)
def test_wrong_knobs_are_named(knobs, message):
    with pytest.raises(UserError) as error:
        SceneSpec.of(**knobs)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "trian", 0), "unknown split of scenes 'trian' (did you mean 'train'?); valid: train, val, test, classify"),
        ((-1, "train", 0), "scenes: seed=-1; valid: 0 to 2**56 - 1"),
    ],
)
def test_wrong_streams_are_named(arguments, message):
    with pytest.raises(UserError) as error:
        world.tapes(*arguments)
    assert message in str(error.value)


def test_heldout_without_heldout_pairs_is_refused():
    with pytest.raises(UserError, match="split 'heldout' is empty because heldout_pairs=0; valid: heldout_pairs >= 1"):
        things(SceneSpec(), 0, "heldout")


def test_spec_is_a_hashable_value():
    assert SceneSpec(objects=[1, 2]) == SceneSpec(objects=(1, 2))
    assert len({SceneSpec(), SceneSpec(), dataclasses.replace(SceneSpec(), colours=5)}) == 2
