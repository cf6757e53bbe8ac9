from collections import Counter, defaultdict

import pytest
import scene_language as language

from maeclip_jax.scenes import SceneSpec, scene, world

RICH = SceneSpec(resolution=32, objects=(1, 5), shapes=16, colours=12, textures=6, questions=8)
FEW = SceneSpec(resolution=32, objects=(1, 5), shapes=3, colours=3, textures=1, questions=8)  # every pair may occur
DEMO = SceneSpec(resolution=32, objects=(1, 3))


@pytest.mark.parametrize("spec", [RICH, FEW, DEMO])
def test_answers_agree_with_the_scene(spec):
    for index in range(200):
        record = scene(spec, 1, index)
        for q in record["questions"]:
            assert language.answer(q["question"], record["objects"]) == q["answer"], (q, record["objects"])


@pytest.mark.parametrize("spec", [RICH, DEMO])
def test_answers_are_balanced(spec):
    answers = defaultdict(Counter)
    for index in range(900):
        for q in scene(spec, 2, index)["questions"]:
            asked = q["question"].split()
            answers[q["kind"] if q["kind"] != "query" else " ".join(asked[:2])][q["answer"]] += 1
    for kind in ("exist", "compare"):
        assert 0.45 < answers[kind]["yes"] / answers[kind].total() < 0.55
    count = answers["count"]
    assert max(count.values()) / count.total() < 0.45 and len(count) == spec.objects[1] + 1
    for kind in ("what colour", "what shape", "what texture", "how large"):
        found = answers[kind]
        assert found.total() > 100 and max(found.values()) / found.total() < 2 / len(found), kind


def test_wrong_descriptions_are_made_of_what_is_there():
    mixed = denied = 0
    for index in range(300):
        record = scene(SceneSpec(resolution=32, objects=(2, 3)), 0, index)
        question, answer = record["questions"][0]["question"], record["questions"][0]["answer"]
        asked = language.parts(question.removeprefix("is there a").strip(" n?"))
        if answer == "no" and len(asked) == 2:
            denied += 1
            mixed += all(any(t[k] == v for t in record["objects"]) for k, v in asked.items())
    assert mixed / denied > 0.5  # where objects share a concept there is nothing to mix


def test_kinds_come_in_turn():
    kinds = [q["kind"] for q in scene(RICH, 0, 0)["questions"]]
    assert kinds[:2] == ["exist", "count"] and kinds[3] == "compare" and len(kinds) == 8


def test_training_asks_only_for_pairs_that_it_shows():
    """Who had learnt that there never is a pair of the held-out ones answered half of the questions about them."""
    spec = SceneSpec(resolution=24, heldout_pairs=16)
    heldout = {f"{world.COLOUR_NAMES[c]} {world.SHAPES[s]}" for c, s in world.pairs(spec).heldout}
    answers, asked = Counter(), Counter()
    for split in ("train", "val", "heldout"):
        for index in range(400):
            for q in scene(spec, 0, index, split)["questions"]:
                if q["kind"] == "exist":
                    answers[split, q["answer"]] += 1
                    asked[split] += any(pair in q["question"] for pair in heldout)
    assert asked["train"] == asked["val"] == 0 and asked["heldout"] > 50
    assert 0.45 < answers["train", "yes"] / (answers["train", "yes"] + answers["train", "no"]) < 0.55
    few = SceneSpec(resolution=24, shapes=3, colours=3, textures=1, objects=(5, 5), diversity=1 / 3, questions=8)
    for index in range(60):  # pictures that often show all three pairs
        record = scene(few, 0, index)
        for q in record["questions"]:
            assert language.answer(q["question"], record["objects"]) == q["answer"]
