"""Durations of a config: one string, one conversion. "200 steps", "30 epochs", "12.8B examples", "5%"."""

from __future__ import annotations

import re

from maeclip_jax.errors import UserError

UNITS = ("steps", "epochs", "examples", "%")
_PREFIX = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}
_FORM = re.compile(
    r"\s*(?P<number>\d+(?:\.\d*)?(?:e\d+)?)\s*(?:%|(?P<prefix>[kMB]?)\s*(?P<unit>step|epoch|example)s?)\s*"
)


def to_steps(duration: str, what: str, *, batch_size: int, epoch: int | None = None, total: int | None = None) -> int:
    """Number of steps (rounded, never below 1 unless the duration is 0) of `duration`.

    `epoch` examples make an epoch (None: endless data), `total` steps make 100 %. Raises UserError naming `what`.
    """
    m = _FORM.fullmatch(duration) if isinstance(duration, str) else None
    if not m:
        raise UserError(
            f"{what}={duration!r} is no duration; valid: a number and one of {', '.join(UNITS)}, such as '30 epochs'"
        )
    number = float(m["number"]) * _PREFIX[m["prefix"] or ""]
    unit = m["unit"] or "%"
    if unit == "step":
        steps = number
    elif unit == "example":
        steps = number / batch_size
    elif unit == "epoch":
        if epoch is None:
            raise UserError(f"{what}={duration!r}, but endless data has no epochs; use steps or examples")
        steps = number * epoch / batch_size
    else:
        if total is None:
            raise UserError(f"{what}={duration!r}: a percentage needs a total; use steps, epochs or examples")
        steps = number / 100 * total
    return max(1, round(steps)) if number else 0
