import pytest
import scene_language as language

from maeclip_jax.scenes import SceneSpec, scene, world

RICH = SceneSpec(objects=(1, 5), shapes=16, colours=12, textures=6, captions=6, heldout_pairs=8)


@pytest.mark.parametrize("split", ["train", "test", "classify", "heldout_multi"])
def test_captions_are_true(split):
    for index in range(150):
        record = scene(RICH, 0, index, split)
        for text in record["texts"]:
            assert not language.faults(text, record["objects"], 64), (text, record["objects"])


def test_the_reader_sees_lies():
    objects = [
        dict(shape="star", colour="red", size="small", texture="plain", center=(10, 30)),
        dict(shape="ring", colour="blue", size="large", texture="dotted", center=(50, 32)),
    ]
    assert not language.faults("a small red star left of a dotted blue ring", objects, 64)
    for lie in (
        "a blue star left of a blue ring",
        "a red star right of a blue ring",
        "three objects: a red star, a blue ring",
        "a striped blue ring and a red star",
        "a red star in the top right",
        "a red star and a red star",
        "a large red star",
    ):
        assert language.faults(lie, objects, 64), lie


@pytest.mark.parametrize("split", ["test", "val", "heldout"])
def test_captions_outside_training_name_everything(split):
    for index in range(80):
        record = scene(RICH, 0, index, split)
        for text in record["texts"]:
            for thing in record["objects"]:
                words = [thing["size"], *([thing["texture"]] if thing["texture"] != "plain" else [])]
                assert " ".join([*words, thing["colour"], thing["shape"]]) in text


def test_training_captions_are_of_many_styles_and_lengths():
    texts = [t for i in range(300) for t in scene(SceneSpec(), 0, i)["texts"]]
    lengths = sorted(len(t.split()) for t in texts)
    assert lengths[0] <= 3 and lengths[-1] >= 18
    for sign in (
        "a photo of",
        "there is",
        "objects:",
        "left of",
        "above",
        "in the top left",
        ". the",
        "small",
        "striped",
    ):
        assert sum(sign in t for t in texts) > 10, sign
    assert sum(" a " in t or t.startswith("a ") for t in texts) < len(texts)  # terse ones have no articles
    assert not any(" a orange" in t or " a hourglass" in t or " an red" in t for t in texts)


def test_caption_noise_is_as_asked_marked_and_only_in_training():
    spec = SceneSpec(caption_noise=0.3)
    marked, wrong, silent = 0, 0, 0
    for index in range(400):
        record = scene(spec, 0, index)
        for text, noisy in zip(record["texts"], record["noisy"]):
            fault = bool(language.faults(text, record["objects"], 64))
            marked += noisy
            wrong += noisy and fault
            silent += fault and not noisy
    assert 0.25 < marked / 1200 < 0.35
    assert wrong / marked > 0.6 and silent == 0  # the others leave things out
    assert not any(any(scene(spec, 0, i, "test")["noisy"]) for i in range(100))


def test_noise_leaves_pictures_and_clean_captions_count_alone():
    clean, noisy = scene(SceneSpec(), 0, 3), scene(SceneSpec(caption_noise=1.0), 0, 3)
    assert (clean["image"] == noisy["image"]).all() and len(noisy["texts"]) == 3 and all(noisy["noisy"])


def untrained(spec):
    """ "red star", ...: the pairs that training never shows."""
    shown = world.pairs(spec).train
    return {
        f"{world.COLOUR_NAMES[c]} {world.SHAPES[s]}"
        for c in range(spec.colours)
        for s in range(spec.shapes)
        if (c, s) not in shown
    }


@pytest.mark.parametrize(("heldout", "diversity"), [(16, 1.0), (0, 0.125), (20, 0.5)])
def test_noise_names_only_pairs_that_training_shows(heldout, diversity):
    """At diversity 0.125 no object can have another colour. Noise is as wrong as ever."""
    spec = SceneSpec(caption_noise=0.5, resolution=24, heldout_pairs=heldout, diversity=diversity)
    unseen, marked, wrong = untrained(spec), 0, 0
    for index in range(300):
        record = scene(spec, 0, index)
        for text, noisy in zip(record["texts"], record["noisy"]):
            assert not any(pair in text for pair in unseen), text
            marked += noisy
            wrong += noisy and bool(language.faults(text, record["objects"], 24))
    assert len(unseen) >= 16 and wrong / marked > 0.6
