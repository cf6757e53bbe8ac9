"""Durations: every unit means the same number of steps, and a wrong one is answered with the valid forms."""

import pytest

from maeclip_jax.config import load, to_steps
from maeclip_jax.errors import UserError


@pytest.mark.parametrize(
    "duration, steps",
    [
        ("200 steps", 200),
        ("1 step", 1),
        ("200steps", 200),
        ("1.5k steps", 1500),
        ("1e3 steps", 1000),
        ("12.8B examples", 50_000_000),
        ("2.8M examples", 10_938),  # 10937.5, to even
        ("1 example", 1),  # never none at all ...
        ("0 steps", 0),  # ... unless that is what was asked for
        ("0 epochs", 0),
        ("30 epochs", 117),  # 1000 examples an epoch
        ("0.5 epochs", 2),
        ("5%", 50),
        ("0.5 %", 5),
        ("100%", 1000),
    ],
)
def test_durations_are_steps(duration, steps):
    assert to_steps(duration, "total", batch_size=256, epoch=1000, total=1000) == steps


@pytest.mark.parametrize(
    "wrong", ["", "200", "steps", "-3 steps", "3 hours", "3 steps 2", "1.2.3 steps", "5%%", "5k%", 200, None]
)
def test_what_is_no_duration_is_refused(wrong):
    with pytest.raises(UserError) as error:
        to_steps(wrong, "checkpoint.every", batch_size=256, epoch=1000, total=1000)
    assert str(error.value) == (
        f"checkpoint.every={wrong!r} is not a duration; valid: a number and one of steps, epochs, examples, FLOPs, %, "
        "such as '30 epochs'"
    )


def test_units_that_need_what_is_not_there_are_refused():
    with pytest.raises(UserError) as error:
        to_steps("3 epochs", "total", batch_size=8)
    assert str(error.value) == "total='3 epochs', but endless data has no epochs; use steps or examples"
    with pytest.raises(UserError) as error:
        to_steps("3%", "total", batch_size=8, epoch=100)
    assert str(error.value) == "total='3%': a percentage needs a total; use steps, epochs or examples"


@pytest.mark.parametrize(
    "duration, steps", [("2.1e19 FLOPs", 2_100_000), ("2.1e+19 FLOPs", 2_100_000), ("15000B FLOPs", 2), ("0 FLOPs", 0)]
)
def test_flops_are_steps_of_the_counted_size(duration, steps):
    assert to_steps(duration, "total", batch_size=8, flops=lambda: 1e13) == steps


def test_flops_that_are_not_a_step_or_not_counted_are_refused():
    with pytest.raises(UserError) as error:
        to_steps("5e12 FLOPs", "total", batch_size=8, flops=lambda: 1e13)
    assert str(error.value) == "total='5e12 FLOPs' is 0.5 steps of 1e+13 FLOPs; valid: one step or more"
    with pytest.raises(UserError) as error:
        to_steps("5e12 FLOPs", "optim.warmup", batch_size=8)
    assert str(error.value) == (
        "optim.warmup='5e12 FLOPs': FLOPs of a step are not counted here; use steps, examples or %"
    )


WORDS = ["[PAD]", "[UNK]", "a", "red", "disc"]


def test_the_text_tower_s_table_has_the_tokenizer_file_s_size(tmp_path):
    """Ids that no text has would be predicted and could not be read."""
    file = tmp_path / "words.txt"
    file.write_text("\n".join(WORDS))
    named = {"tokenizer.path": str(file)}
    demo, low = "experiments/m3ae.py:runlocal", "experiments/mae_clip.py:scale=low"
    assert load(demo).model.text_tower.vocab == 235  # the packaged words
    assert load(demo, named).model.text_tower.vocab == len(WORDS)
    assert load(low).model.text_tower.vocab == 30522  # the file is not here: the usual size of its kind
    assert load(low, named).model.text_tower.vocab == len(WORDS)
    assert load(low, {"tokenizer": dict(type="bytes", path="")}).model.text_tower.vocab == 257
    assert load(low, named | {"model.text_tower.vocab": 64}).model.text_tower.vocab == 64  # who says a number has it
    assert "text_tower" not in load("experiments/mae.py:runlocal", named).model

    own = tmp_path / "own.py"
    own.write_text(
        "from experiments import clip\n\ndef get_config(arg=None):\n  config = clip.get_config('runlocal')\n"
        "  config.model.text_tower.vocab = 256\n  return config\n"
    )
    assert load(str(own), named).model.text_tower.vocab == 256

    old = load(demo, named | {"model.text_tower.vocab": 64})  # as a run of before the table followed the file
    (tmp_path / "config.json").write_text(old.to_json())
    assert load(f"{tmp_path}/config.json").model.text_tower.vocab == 64


def test_every_setting_of_an_evaluator_can_be_changed():
    """Also one that the experiment leaves at its default: messages of evaluators name their settings."""
    said = {"evals.retrieval.shown": "3", "evals.retrieval.k": "(1,2)", "evals.val.seed": 7}
    changed = load("experiments/clip.py:runlocal", said).evals
    assert (changed.retrieval.shown, changed.retrieval.k, changed.val.seed) == (3, (1, 2), 7)
    with pytest.raises(UserError, match=r"unknown setting config\.evals\.val: name 'sed'; valid: batch_size"):
        load("experiments/clip.py:runlocal", {"evals.val.sed": 7})
