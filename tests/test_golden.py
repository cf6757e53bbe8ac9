"""Experiments still resolve to what was reviewed: config, parameters, their split and their decay."""

import json

import pytest

from experiments import recipes
from tests import golden

HINT = "{file} no longer says what the experiment is. If that is meant: `make golden`, and review the diff.\n\n{diff}"


@pytest.mark.parametrize("experiment, arg", golden.CASES, ids=lambda word: word)
def test_an_experiment_is_what_was_reviewed(experiment, arg):
    diff = golden.difference(experiment, arg)
    if diff:
        pytest.fail(HINT.format(file=golden.path(experiment, arg), diff=diff), pytrace=False)


def test_the_page_of_recipes_is_what_the_experiments_are():
    assert golden.RECIPES.read_text(encoding="utf-8") == recipes.page(), "`make golden`, and review the diff"


def test_there_are_no_files_of_experiments_that_are_gone():
    assert {p.name for p in golden.FOLDER.glob("*")} == {golden.path(*case).name for case in golden.CASES}


def test_a_difference_is_shown_line_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    content = {"argument": "scale=demo", "config": {"seed": 0, "model.loss": "softmax", "evals": {}}}
    monkeypatch.setattr(golden, "golden", lambda *_: content)
    golden.path("clip", "demo").write_text(golden.text(content))
    assert json.loads(golden.text(content)) == content
    assert golden.difference("clip", "demo") == ""
    monkeypatch.setattr(golden, "golden", lambda *_: content | {"config": content["config"] | {"seed": 1}})
    lines = golden.difference("clip", "demo").splitlines()
    assert lines[0].startswith("--- clip-demo.json") and lines[-2:] == ['-    "seed": 0,', '+    "seed": 1,']
    assert golden.difference("clip", "photos") != ""  # a file that is missing differs


@pytest.mark.parametrize(
    "experiment, arg", [c for c in golden.CASES if c[1] in ("low-B16", "high-H14")], ids=lambda word: word
)
def test_nearly_all_of_a_large_model_is_split_over_the_chips(experiment, arg):
    held = json.loads(golden.path(experiment, arg).read_text())
    assert held["mesh"] == {"replica": 1, "fsdp": 256, "tensor": 1}
    sizes = {name: line.split(" | ") for name, line in held["parameters"].items()}

    def size(shape):
        numbers = 1
        for n in shape.split()[0].replace("scalar", "1").split("x"):
            numbers *= int(n)
        return numbers

    whole = sum(size(shape) for shape, axes, _ in sizes.values() if "fsdp" not in axes)
    assert sum(size(shape) for shape, _, _ in sizes.values()) == held["parameter count"]
    assert whole < 0.01 * held["parameter count"]
    assert all(decay == "no decay" for name, (_, _, decay) in sizes.items() if name.endswith(("bias", "scale")))
