"""Durations: every unit means the same number of steps, and a wrong one is answered with the valid forms."""

import pytest

from maeclip_jax.config import to_steps
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
        f"checkpoint.every={wrong!r} is not a duration; valid: a number and one of steps, epochs, examples, %, "
        "such as '30 epochs'"
    )


def test_units_that_need_what_is_not_there_are_refused():
    with pytest.raises(UserError) as error:
        to_steps("3 epochs", "total", batch_size=8)
    assert str(error.value) == "total='3 epochs', but endless data has no epochs; use steps or examples"
    with pytest.raises(UserError) as error:
        to_steps("3%", "total", batch_size=8, epoch=100)
    assert str(error.value) == "total='3%': a percentage needs a total; use steps, epochs or examples"
