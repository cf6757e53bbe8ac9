"""Finetuning on questions as a run: it starts from a pretrained run, keeps the names of its answers, refuses others."""

import json
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import clip, vqa
from maeclip_jax import main
from maeclip_jax.data import pipeline, source
from maeclip_jax.errors import UserError
from maeclip_jax.run import evaluate, train
from maeclip_jax.workdir import read_metrics, read_names
from tests import runs


def config(argument="runlocal", **settings):
    made = vqa.get_config(argument)
    made.update_from_flattened_dict(
        {"total": "2 steps", "checkpoint.every": "1 steps", "log.every": "1 steps"} | settings
    )
    return made


@pytest.fixture(scope="module")
def trained():
    workdir = runs.folder() / "vqa"
    train.run(config(), workdir)
    return workdir


def test_the_answers_are_kept_with_the_run(trained):
    names = json.loads((trained / "names.json").read_text())
    assert names["answer"] == source.make(config().data.source).answers
    assert names == read_names(trained) == read_names("", trained / "checkpoints" / "2")
    assert read_names(trained.parent / "nowhere") == {}


def test_it_continues_where_it_was(trained, tmp_path):
    workdir = runs.copy(trained, tmp_path / "run", step=1)
    shutil.rmtree(workdir / "evals")
    train.run(config(), workdir)
    for name in ("train/loss", "train/accuracy"):
        assert runs.series(workdir, name) == runs.series(trained, name)
    assert runs.metrics(workdir, 2) == runs.metrics(trained, 2)


def test_other_answers_under_the_same_run_are_refused(trained, tmp_path):
    workdir = runs.copy(trained, tmp_path / "run")
    names = json.loads((workdir / "names.json").read_text())
    (workdir / "names.json").write_text(json.dumps({"answer": names["answer"][::-1]}))
    with pytest.raises(
        UserError, match=r"names of answer in the training data are not those of .*names.json: the data"
    ):
        train.run(config(), workdir)
    with pytest.raises(UserError, match=r"vocabulary has (\d+) answers, the model was made for \1 others"):
        evaluate.run(config(), workdir)


def test_a_head_of_another_size_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"has (\d+) names of answer, the model is made for 7; set config.model.answers=\1"
    ):
        train.run(config(**{"model.answers": 7}), tmp_path)


@pytest.mark.parametrize(
    "objective, arg",
    [
        ("mae_clip", "steps=12,save=6"),
        pytest.param("slip", "objective=slip,steps=1,save=1,evals=false", marks=pytest.mark.long),
    ],
)
def test_towers_of_a_pretrained_run_are_taken_over(objective, arg, tmp_path, capsys):
    pretrained = runs.copy(runs.whole(8, arg), tmp_path / "pretrained")
    made = vqa.get_config(f"init={pretrained},runlocal")
    assert made.model.image_tower.to_dict() == runs.config(arg).model.image_tower.to_dict()
    assert made.tokenizer.to_dict() == runs.config(arg).tokenizer.to_dict() and made.arg.of == objective
    made.total, made.evals = "1 steps", ConfigDict()
    train.run(made, tmp_path / "run")
    assert re.search(
        rf"init_from {pretrained}: (\d+) of \d+ parameters loaded; fresh: \d+ \(fuse, head\)", capsys.readouterr().out
    )


def test_the_pretrained_decoder_is_taken_over(tmp_path, capsys):
    """The paper's arm with a decoder of its own need not throw it away."""
    pretrained = runs.copy(runs.whole(8, "steps=12,save=6"), tmp_path / "pretrained")
    made = vqa.get_config(f"init={pretrained},runlocal,fusion=decoder")
    made.total, made.evals = "1 steps", ConfigDict()
    train.run(made, tmp_path / "run")
    said = capsys.readouterr().out
    assert re.search(r"(\d+) of \d+ parameters loaded; fresh: \d+ \(head\)", said), said


def test_every_arm_fuses_alike_unless_told(tmp_path):
    made = {of: vqa.get_config(f"of={of}").model for of in ("clip", "mae_clip", "m3ae", "slip")}
    assert len({(m.fusion, str(m.fusion_tower)) for m in made.values()}) == 1 and made["clip"].fusion == "fresh"
    assert vqa.get_config("of=m3ae,fusion=joint").model.fusion == "joint"
    assert vqa.get_config("of=mae_clip,fusion=decoder").model.decoder_tower.depth > 0


def test_gqa_has_the_answers_of_train_and_validation():
    made = vqa.get_config("data=gqa,of=clip,scale=low")
    assert made.data.source.vocabulary.split == "train+validation" and made.model.answers == 1842
    assert made.data.source.of.split == "train" and made.evals.vqa.data.source.of.split == "testdev"
    assert vqa.get_config("data=clevr,of=clip,scale=low").data.source.vocabulary.split == "train"


def test_a_pretrained_run_says_its_scale(tmp_path):
    """Recipe, precision and layers are those of a run of that scale and size, unless the argument names another."""
    pretrained = clip.get_config("scale=high,size=H/14")
    (tmp_path / "config.json").write_text(pretrained.to_json_best_effort())
    made, of, other = (
        vqa.get_config(f"data=clevr,{word}")
        for word in (f"init={tmp_path}", "of=clip,scale=high,size=H/14", f"init={tmp_path},scale=demo")
    )
    assert made.arg.to_dict() == of.arg.to_dict() | dict(init=str(tmp_path))
    for name in ("batch_size", "total", "optim", "mesh", "model"):
        assert made[name] == of[name], name
    assert made.optim.lr == 5e-5 and made.model.compute.layers == "scan" and made.model.compute.dtype == "bfloat16"
    assert other.optim.lr == 1e-3 and other.batch_size == 128 and other.arg.scale == "high"


@pytest.mark.parametrize("argument, text", [
    ("init=runs/nowhere", "init='runs/nowhere' is not a workdir: it has no config.json; valid: a run's --workdir"),
    ("of=mae", "unknown of 'mae' (did you mean 'm3ae'?); valid: clip, m3ae, mae_clip, silc, slip, tips"),
    ("of=clip,fusion=joint", "fusion=joint is M3AE's; clip encodes one stream at a time; valid: fresh"),
    ("of=slip,fusion=decoder", "fusion=decoder needs a decoder of pictures and words, which this slip has not; valid"),
    ("fusion=late", "unknown fusion 'late'; valid: decoder, fresh, joint"),
    ("data=nowhere", "no data set 'nowhere' at "),
])  # fmt: skip
def test_a_mistake_in_the_argument_is_one_line(argument, text, capfd):
    assert main.main([f"--config=experiments/vqa.py:{argument}", "--workdir=unused"]) == 2
    assert runs.without_alarms(capfd.readouterr().err)[-1].startswith(f"error: {text}")


def test_a_run_that_reads_no_text_cannot_be_asked(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"objective": "mae"}))
    with pytest.raises(
        UserError,
        match="is a run of 'mae', which does not read text; valid: runs of clip, mae_clip, m3ae, slip, ",
    ):
        vqa.get_config(f"init={tmp_path}")


def test_blind_pictures_are_grey():
    data = config("runlocal,blind").data
    batch = next(iter(pipeline.evaluate(data, batch_size=4, tokenizer=lambda text, length: np.ones(length, np.int32))))
    assert (batch["image"] == 128).all() and batch["image"].shape == (4, 32, 32, 3)


def test_names_of_a_mix_must_agree():
    spec = dict(kind="noise", count=4, resolution=32)

    def mix(labels):
        parts = [(f"p{n}", 1.0, dict(source=spec | dict(labels=n))) for n in labels]
        return dict(mix=parts, ops='decode|label|keep("image","label")')

    assert pipeline.open(mix([3])).names == {"label": ["class 0", "class 1", "class 2"]}
    with pytest.raises(UserError, match="mix component 'p4' has other names of label than those before it"):
        _ = pipeline.open(mix([3, 4])).names


def test_metrics_of_training_are_logged(trained):
    row = read_metrics(trained)[-1]
    assert {"train/accuracy", "train/answerable", "vqa/accuracy"} <= row.keys()
