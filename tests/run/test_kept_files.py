"""A run keeps the files that its config names, uses them wherever it is moved, and notices others of the same name."""

import json
import shutil

import numpy as np
import pytest
from etils import epath

import maeclip_jax as mc
from maeclip_jax import config as configs
from maeclip_jax.data.tokenizer import PACKAGED
from maeclip_jax.errors import UserError
from maeclip_jax.run import evaluate, train
from maeclip_jax.workdir.claim import claim_data
from maeclip_jax.workdir.identity import identity
from tests import runs

ARG = "objective=clip,steps=6,save=3,examples=false,evals=false"
TEXTS = ["a red circle", "a blue star on the left", "two green squares"]


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A folder to stand in, with a vocabulary of its own; returns the vocabulary's path."""
    monkeypatch.chdir(tmp_path)
    packaged = epath.resource_path("maeclip_jax") / "data" / PACKAGED["scenes"]
    (tmp_path / "words.txt").write_text(packaged.read_text())
    return tmp_path / "words.txt"


def other(path):
    """The same words in another order, under the same name."""
    first, *rest = path.read_text().splitlines()
    special = [w for w in rest if w.startswith("[")]
    path.write_text("\n".join([first, *special, *reversed([w for w in rest if w not in special])]) + "\n")


def config(arg=ARG, **settings):
    return runs.config(arg, **{"tokenizer.path": "words.txt"} | settings)


def test_moved_run_has_its_words_with_it(words, tmp_path, monkeypatch):
    whole = runs.series(runs.run(tmp_path / "whole", ARG))  # with the same words, from the package
    train.run(config(), "run")
    shutil.rmtree("run/checkpoints/6")
    before = mc.load("run").embed(texts=TEXTS)["text"]
    shutil.move("run", tmp_path / "moved")
    words.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(mc.load(tmp_path / "moved").embed(texts=TEXTS)["text"], before)
    train.run(config(), tmp_path / "moved")  # the command of before, whose file is not there
    assert runs.series(tmp_path / "moved") == whole
    evaluate.run(configs.load(tmp_path / "moved" / "config.json"), tmp_path / "moved")


def test_another_file_of_the_same_name_is_refused(words):
    train.run(config(total="3 steps"), "run")
    before = mc.load("run").embed(texts=TEXTS)["text"]
    other(words)
    np.testing.assert_array_equal(mc.load("run").embed(texts=TEXTS)["text"], before)
    with pytest.raises(UserError, match=r"run holds another run: tokenizer.path is a file of SHA-256 \w+\.\.\., not a"):
        train.run(config(), "run")
    train.run(configs.load("run/config.json", {"total": "6 steps"}), "run")  # the way out that the message names


def test_other_words_are_refused_for_a_state_and_said_for_parameters(words, caplog):
    train.run(config(total="3 steps"), "run")
    other(words)
    with pytest.raises(UserError, match=r"config\.resume=run was trained with other words: tokenizer.path is a file"):
        train.run(config(resume="run"), "new")
    train.run(config(init_from="run", total="1 steps"), "newer")
    assert "config.init_from=run: it was trained with other words" in caplog.text


def test_a_copy_that_was_changed_is_refused(words):
    train.run(config(total="3 steps"), "run")
    (kept,) = (words.parent / "run" / "files").iterdir()
    other(kept)
    with pytest.raises(UserError, match="was changed since the run kept it"):
        train.run(configs.load("run/config.json"), "run")


def test_identity_is_of_content(words, tmp_path):
    def of(name):
        train.run(config(total="1 steps"), name)
        return identity(json.loads((tmp_path / name / "config.json").read_text()))

    first = of("a")
    (tmp_path / "b.txt").write_text(words.read_text())
    train.run(config(total="1 steps", **{"tokenizer.path": str(tmp_path / "b.txt")}), "b")
    assert identity(json.loads((tmp_path / "b" / "config.json").read_text())) == first
    other(words)
    assert of("c") != first


def test_run_of_a_version_that_kept_no_files_goes_on_and_keeps_them(words, tmp_path):
    train.run(config(total="3 steps"), "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(configs.with_leaves(json.loads(path.read_text()), {"tokenizer.path": "words.txt"})))
    shutil.rmtree(tmp_path / "run" / "files")
    train.run(config(), "run")
    assert json.loads(path.read_text())["tokenizer"]["path"].startswith("files/words-")


def test_prompts_of_another_content_are_measured_again(words, tmp_path):
    train.run(config(total="1 steps"), "run")
    made = configs.load("run/config.json")
    (tmp_path / "prompts.txt").write_text("a {}\n")
    pictures = dict(kind="scenes", split="classify", resolution=32, count=16, truth="all", seed=3)
    data = dict(source=pictures, ops='decode|keep("image","label")')
    with made.unlocked():
        made.evals = dict(zero=dict(type="zero_shot", data=data, templates=str(tmp_path / "prompts.txt"), length=16))
    first = evaluate.run(made, "run")
    assert first and not evaluate.run(made, "run")
    (tmp_path / "prompts.txt").write_text("a drawing of {a} {}\n")
    assert evaluate.run(made, "run")


@pytest.mark.parametrize("how", ("resume", pytest.param("init_from", marks=pytest.mark.long)))
def test_an_origin_that_would_do_nothing_is_refused(words, how):
    train.run(config(total="3 steps"), "origin")
    train.run(config(total="3 steps"), "run")
    with pytest.raises(UserError, match=f"config.{how}=origin would do nothing: run holds a run under way, .*without"):
        train.run(config(**{how: "origin"}), "run")
    train.run(config(total="4 steps", **{how: "origin"}), "new")
    train.run(config(total="5 steps", **{how: "origin"}), "new")  # the same command goes on
    train.run(config(total="6 steps"), "new")
    assert len(runs.series("new")) >= 3


def test_a_checkpoint_alone_is_enough_to_go_on_from(words, tmp_path):
    """Copied out of its workdir, without config.json: nothing can be compared, and nothing is missed."""
    train.run(config(), "run")
    shutil.copytree("run/checkpoints/3", tmp_path / "alone" / "checkpoints" / "3")
    train.run(config(resume="alone"), "new")
    assert runs.series("new")[6] == runs.series("run")[6]


def test_going_back_is_refused_and_done_as_the_message_says(words, tmp_path):
    train.run(config(), "run")
    with pytest.raises(
        UserError, match=r"config\.resume=run/checkpoints/3 is an earlier step of run, which goes on from"
    ):
        train.run(config(resume="run/checkpoints/3"), "run")
    whole = runs.series("run")
    shutil.move("run/checkpoints/6", tmp_path / "later")
    train.run(config(), "run")
    assert runs.series("run") == whole and mc.load("run").step == 6


def test_another_length_says_what_it_does_to_the_learning_rate(words, capsys):
    train.run(config(total="4 steps"), "run")
    train.run(config(total="6 steps"), "run")
    (said,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("total was")]
    assert "total was 4 steps (4 steps) and is 6 steps (6 steps): the learning rate goes on at " in said
    now, then = (
        float(x) for x in said.replace("which the schedule of before has at ", "").split(" at ")[1].split(", ")
    )
    assert now > then


def test_data_that_changed_under_the_same_name_are_refused(tmp_path):
    account = {"": {"name": "photos/1.0.0:train", "records": 100, "bytes": 5000, "manifest": "abc"}}
    claim_data(account, epath.Path(tmp_path), continued=False)
    claim_data(account, epath.Path(tmp_path), continued=True)
    grown = {"": account[""] | {"records": 120, "manifest": "abd"}}
    with pytest.raises(UserError, match=r"changed since .*: manifest is abd, not abc; records is 120, not 100; use"):
        claim_data(grown, epath.Path(tmp_path), continued=True)
