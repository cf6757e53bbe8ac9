import json
import re

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals.prompt_lists import FOLDER, class_names, read_templates, set_of_prompts


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


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_every_packaged_list_says_where_its_words_come_from(path):
    value = json.loads(path.read_text(encoding="utf-8"))
    assert "this project" in value["source"] and ("classes" not in value or "WordNet" in value["source"])


def test_published_lists_are_read_as_they_are(tmp_path):
    """OpenAI's 80 prompts and 1,000 names are handed on in files of several data sets, with "{c}" or "{}"."""
    prompts, names, other = (tmp_path / f"{name}.json" for name in ("prompts", "names", "other"))
    prompts.write_text('{"cifar10": ["a {c}."], "imagenet1k": ["a bad photo of a {c}.", "itap of a {c}."]}')
    names.write_text('{"imagenet": ["tench", "goldfish"], "cars": ["Audi"]}')
    other.write_text('{"cifar10": ["a {c}."], "cars": ["a {c}."]}')
    assert read_templates(str(prompts)) == ["a bad photo of a {}.", "itap of a {}."]
    assert class_names(str(names), ["n01440764", "n01443537"]) == ["tench", "goldfish"]
    assert re.fullmatch(r"prompts prompts.json \(2, \w{8}\), names names.json \(\w{8}\)",
                        set_of_prompts(str(prompts), str(names)))  # fmt: skip
    lines = tmp_path / "lines.txt"
    lines.write_text("tench\x85\n\ngold\u2028fish\r\n")
    assert class_names(str(lines), ["a", "b"]) == ["tench\x85", "gold\u2028fish"]  # a line ends at \n alone
    lines.write_text("tench\ngoldfish\n", encoding="utf-8-sig")
    names.write_text('["tench", "goldfish"]', encoding="utf-8-sig")
    assert class_names(str(lines), ["a", "b"]) == class_names(str(names), ["a", "b"]) == ["tench", "goldfish"]
    with pytest.raises(UserError, match=r"holds templates of cifar10, cars; valid: those of imagenet1k or imagenet"):
        read_templates(str(other))


def test_a_set_of_prompts_has_a_name(tmp_path):
    assert set_of_prompts("imagenet", "imagenet") == "prompts imagenet (28, ours), names imagenet (ours)"
    assert set_of_prompts("plain", None) == "prompts plain (1, ours), names of the data"
    file = tmp_path / "openai.json"
    file.write_text('["a {}", "the {}"]')
    named = set_of_prompts(str(file), None)
    assert re.fullmatch(r"prompts openai.json \(2, [0-9a-f]{8}\), names of the data", named)
    file.write_text('["a {}", "one {}"]')
    assert set_of_prompts(str(file), None) != named  # other words under the same name
    lists = set_of_prompts(["a {}"], ["x", "y"])
    assert re.fullmatch(r"prompts of a list \(1, [0-9a-f]{8}\), names of a list \([0-9a-f]{8}\)", lists)
    assert set_of_prompts(["a {}"], ["x", "z"]) != lists
