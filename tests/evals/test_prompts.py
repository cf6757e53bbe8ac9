import json
import re

import pytest

from maeclip_jax.evals.prompts.lists import FOLDER, class_names, read_templates


def test_every_class_of_imagenet_has_a_name_of_its_own():
    value = json.loads((FOLDER / "imagenet.json").read_text(encoding="utf-8"))
    names = value["classes"]
    assert len(names) == 1000 and list(names) == sorted(names)
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in names)
    assert len({n.lower() for n in names.values()}) == 1000 and all(n == n.strip() and n for n in names.values())
    crane = {synset: n for synset, n in names.items() if "crane" in n}
    assert crane == {"n02012849": "crane bird", "n03126707": "construction crane"}


@pytest.mark.parametrize("packaged", ["imagenet", "actions"])
def test_templates_are_different_and_have_one_place_for_the_name(packaged):
    templates = read_templates(packaged)
    assert len(set(templates)) == len(templates) >= 10 and all(t.count("{}") == 1 for t in templates)


def test_labels_are_the_sorted_synsets():
    synsets = list(json.loads((FOLDER / "imagenet.json").read_text(encoding="utf-8"))["classes"])
    names = class_names("imagenet", synsets)
    assert [names[i] for i in (0, 134, 517, 638, 639, 999)] == [
        "tench", "crane bird", "construction crane", "maillot", "one-piece swimsuit", "toilet paper",
    ]  # fmt: skip
