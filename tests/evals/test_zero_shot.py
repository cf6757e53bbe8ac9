import json

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals.prompt_lists import class_names, fill, read_templates
from maeclip_jax.evals.zero_shot import ZeroShot
from tests.evals.found import notes, values

NAMES = ["red cube", "blue ball", "green cone", "orange ring", "white star", "black disc"]


def prompts_by_class(fns_class, data, **kwargs):
    """A fake whose prompts of class c all embed as the unit vector e_c: the first word, the colour, decides."""
    context = fns_class(data, text=np.eye(8, dtype=np.float32)[[7, *range(6)]], classes=NAMES, **kwargs)
    for name in NAMES:
        context.tokenizer(name.split()[0], 1)
    return context


def make(context, **config):
    return ZeroShot(context, data={}, length=4, **{"templates": ["{}"], "batch_size": 4} | config)


def test_accuracy_counts_each_row_once(fake, pictures):
    # 7 rows in batches of 4: picture value v embeds as e_v; labels agree in 4 of 7 rows.
    labels, seen = np.array([0, 1, 2, 3, 4, 5, 0], np.int32), [0, 1, 2, 4, 4, 0, 1]
    context = prompts_by_class(fake, {"image": pictures(seen), "label": labels}, image=np.eye(8, dtype=np.float32))
    got = values(make(context).run(None))
    assert got["top1"] == pytest.approx(100 * 4 / 7)
    assert got["mean_per_class"] == pytest.approx(100 * (0.5 + 1 + 1 + 0 + 1 + 0) / 6)
    assert got["chance"] == pytest.approx(100 / 6) and got["chance_top5"] == pytest.approx(500 / 6)
    rows = {r[0]: r for r in got["classes"]["rows"]}
    assert rows["red cube"][1:] == [2, 50.0, "blue ball"] and rows["orange ring"][1:] == [1, 0.0, "white star"]
    json.dumps(got)


def test_every_number_names_its_prompts(fake, pictures, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("{}\n")
    data = {"image": pictures([0, 1]), "label": np.array([0, 1], np.int32)}
    context = prompts_by_class(fake, data, image=np.eye(8, dtype=np.float32))
    for templates, named in (
        (str(file), "prompts mine.txt (1, "),
        (["{}"], "prompts of a list (1, "),
    ):
        found = notes(make(context, templates=templates).run(None))
        assert set(found) == {"top1", "top5", "mean_per_class"} and len(set(found.values())) == 1
        assert found["top1"].startswith(named) and found["top1"].endswith("), names of the data")


def test_one_class_is_found_by_anything(fake, pictures):
    context = prompts_by_class(fake, {"image": pictures([0, 1]), "label": np.zeros(2, np.int32)}, image=np.eye(8))
    with pytest.raises(UserError, match="zero_shot: 1 class occurs in the data, which any picture finds; set among to"):
        values(make(context, among="occurring").run(None))
    assert values(make(context).run(None))["top1"] == 50
    context.classes = ["red cube"]
    with pytest.raises(UserError, match="zero_shot: 1 class, which any picture finds; at least 2 are needed"):
        make(context)


def test_two_processes_give_what_one_gives(fake, processes, pictures):
    data = {"image": pictures([0, 1, 2, 4, 4, 0, 1]), "label": np.array([0, 1, 2, 3, 4, 5, 0], np.int32)}
    one = values(make(prompts_by_class(fake, data, image=np.eye(8, dtype=np.float32))).run(None))
    context = prompts_by_class(fake, data)
    tables = {"image": np.eye(8, dtype=np.float32), "text": context.text, "tokenizer": context.tokenizer}
    two = processes(make, data, classes=NAMES, **tables)
    assert one == two


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_collapsed_or_broken_model_scores_nothing(fake, pictures, value):
    data = {"image": pictures([0, 1, 2]), "label": np.array([0, 1, 2], np.int32)}
    context = prompts_by_class(fake, data, image=np.full((8, 8), value, np.float32))
    got = values(make(context).run(None))
    assert got["top1"] == got["top5"] == got["mean_per_class"] == 0


def test_prompts_are_ensembled_as_the_mean_of_unit_vectors(fake, pictures):
    # Word 1 embeds as (10, 0), word 2 as (0, 1): after normalisation both count the same.
    context = fake({"image": pictures([0])}, text=np.array([[0, 0], [10, 0], [0, 1], [1, 0], [1, 0]], np.float32))
    evaluator = ZeroShot(context, data={}, length=2, classes=["x", "y"], templates=["p {}", "q {}"], batch_size=3)
    # p -> 1, x -> 2, q -> 3, y -> 4: the first word decides, so the templates' rows are 1 and 3.
    context.text = np.array([[0, 0], [10, 0], [0, 0], [0, 1], [0, 0]], np.float32)
    np.testing.assert_allclose(evaluator.class_embeddings(None), np.full((2, 2), 0.5**0.5), rtol=1e-6)


def test_a_label_without_a_name_is_an_error(fake, pictures):
    context = prompts_by_class(fake, {"image": pictures([0]), "label": np.array([9], np.int32)}, image=np.eye(8))
    with pytest.raises(UserError, match=r"label 9 in the data, but there are 6 class names \(valid labels: 0 to 5\)"):
        values(make(context).run(None))


def test_names_must_match_the_source(tmp_path):
    assert class_names(None, ["red_cube"]) == ["red cube"]
    assert class_names(["a", "b"], None) == ["a", "b"]
    with pytest.raises(UserError, match="no class names; set `classes`"):
        class_names(None, None)
    with pytest.raises(UserError, match=r"has 2 class names, the data source 3 \(x, y, z, \.\.\.\); they must match"):
        class_names(["a", "b"], ["x", "y", "z"])
    renamed = tmp_path / "classes.txt"
    renamed.write_text("n01\ta goldfish\nn00\ta tench\n")
    assert class_names(str(renamed), ["n00", "n01"]) == ["a tench", "a goldfish"]
    with pytest.raises(UserError, match=r"has no name for class 'n02' \(1 of 3 missing\)"):
        class_names(str(renamed), ["n00", "n01", "n02"])
    with pytest.raises(UserError, match=r"cannot read classes from '.*absent.json'"):
        class_names(str(tmp_path / "absent.json"), None)
    (tmp_path / "odd.json").write_text('{"classes": [1, 2]}')
    with pytest.raises(UserError, match="holds no classes; valid: a JSON list of strings"):
        class_names(str(tmp_path / "odd.json"), None)


def test_templates():
    assert fill("a photo of {a} {}", "orange ring") == "a photo of an orange ring"
    heard = {
        "hourglass": "an",
        "umbrella": "an",
        "unicycle": "a",
        "house": "a",
        "Airedale": "an",
        "European fox": "a",
        "one-piece": "a",
        "onion": "an",
    }
    assert {n: fill("{a} {}", n).split()[0] for n in heard} == heard
    for name in ("plain", "scenes", "photos"):
        assert all("{}" in t for t in read_templates(name))
    words = r"prompt templates 'plane' \(did you mean 'plain'\?\); valid: actions, imagenet, photos, plain"
    with pytest.raises(UserError, match=words):
        read_templates("plane")
    with pytest.raises(UserError, match=r"prompt template 'a photo' .* has no \{\} for the class name"):
        read_templates(["a photo"])


def test_several_labels_finding_any_is_right(fake, pictures):
    """Four classes on the axes, seven pictures between two of them."""
    z = np.eye(6, dtype=np.float32)
    images = np.stack([3 * z[0] + 2 * z[1], 3 * z[2] + 2 * z[0], z[5] + 2 * z[3], z[1], z[4]])
    labels = np.array([[1, 3, -1], [0, -1, -1], [3, 5, -1], [-1, -1, -1], [0, 1, 2]], np.int32)
    context = fake({"image": pictures(range(5)), "labels": labels}, image=images, text=z[[0, 0, 1, 2, 3, 4, 5]])
    found = values(
        ZeroShot(context, data={}, length=1, templates=["{}"], classes=list("abcdef"), batch_size=2).run(None)
    )
    # Places of the best right class: 1 (after a), 1 (after c), 0, none to find, 3 (after e; the rest ties).
    assert found["top1"] == 25 and found["top5"] == 100 and "mean_per_class" not in found
    assert found["chance"] == pytest.approx(100 * np.mean([2, 1, 2, 3]) / 6)
    assert found["chance_top5"] == pytest.approx(100 * np.mean([1, 5 / 6, 1, 1]))
    assert "1 pictures without a label are left out" in found["classes"]["note"]
    assert [r[1] for r in found["classes"]["rows"]] == [2, 2, 1, 2, 1]  # class e, of no picture, is not listed


def test_only_the_classes_that_occur_may_compete(fake, pictures):
    z = np.eye(3, dtype=np.float32)
    context = fake({"image": pictures([0, 1]), "label": np.array([0, 1], np.int32)},
               image=np.stack([z[0] + 2 * z[2], z[1]]), text=z[[0, 0, 1, 2]])  # fmt: skip
    results = {
        among: values(
            ZeroShot(context, data={}, length=1, templates=["{}"], classes=list("abc"), among=among).run(None)
        )
        for among in ("all", "occurring")
    }
    assert results["all"]["top1"] == 50 and results["all"]["chance"] == pytest.approx(100 / 3)
    assert results["occurring"]["top1"] == 100 and results["occurring"]["chance"] == 50
    with pytest.raises(UserError, match="unknown zero_shot among 'some'; valid: all, occurring"):
        ZeroShot(context, data={}, length=1, templates=["{}"], classes=list("abc"), among="some")


def test_packaged_names_go_by_the_names_of_the_source():
    assert class_names("imagenet", ["n12998815", "n01440764"]) == ["agaric mushroom", "tench"]
    with pytest.raises(UserError, match="has no name for class 'tench'"):
        class_names("imagenet", ["tench", "n01440764"])
