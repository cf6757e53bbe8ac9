"""A running average of the parameters: how it moves, and which evaluations look at it.

It is the field `ema` of the state and lies on the devices as the parameters do. After an update with parameters p it is
d * average + (1 - d) * p, where d rises to `optim.ema` as (1 + n) / (10 + n) after n updates, as in TensorFlow's
ExponentialMovingAverage: an average of few updates is not one of the first parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maeclip_jax.errors import UserError, unknown
from maeclip_jax.run.checkpoint import AUTO, EMA, RAW, SWITCHED_OFF, SWITCHED_ON

BOTH = "both"
SAID = "evaluations are of the running average of the parameters (optim.ema), unless evals.*.params says raw or both"
CHOICES = (AUTO, EMA, RAW, BOTH)  # what `evals.*.params` may be


def decay_of(optim: Mapping) -> float:
    """`optim.ema`: the decay of the average, or 0 where none is kept. UserError for a value outside of [0, 1)."""
    decay = optim.get("ema", 0.0)  # a run from before this setting has none
    if not 0 <= decay < 1:
        raise UserError(f"optim.ema={decay:g}: valid: 0 (no average), or a decay between 0 and 1, such as 0.9998")
    return decay


def begin(optim: Mapping, params: Any) -> Any:
    """The average before any update, a copy of `params`; None without one."""
    return jax.tree.map(jnp.copy, params) if decay_of(optim) else None


def update(decay: float, average: Any, params: Any, applied: jax.Array) -> Any:
    """The average after update number `applied` (from 0, skipped ones not counted) has made `params`; None if there is
    none."""
    if average is None:
        return None
    now = jnp.minimum(decay, (1.0 + applied) / (10.0 + applied))
    return optax.incremental_update(params, average, 1 - now)


def check_continued(optim: Mapping, before: Mapping, workdir: Any) -> None:
    """UserError if `optim` switches the average on or off in a run under way; `before`: its config.json, or {}."""
    then, now = before.get("optim", {}).get("ema", 0.0), decay_of(optim)
    if before and bool(then) != bool(now):
        said = SWITCHED_ON if now else SWITCHED_OFF
        raise UserError(f"optim.ema={now:g}: the run in {workdir} {said.format(then=f'{then:g}', source=workdir)}")


def evaluations(evals: Mapping, averaged: bool) -> dict[str, tuple[str, str]]:
    """{name of a result: (entry of `evals`, EMA or RAW)}, those of the average first.

    An entry with params=both has a second result, NAME_raw. Without a word it is the average, in a run that keeps one
    (`averaged`). UserError for other values, and for an average that there is not.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, entry in evals.items():
        which = entry.get("params", AUTO)
        if which not in CHOICES:
            raise unknown(f"evals.{name}.params", which, CHOICES)
        if which in (EMA, BOTH) and not averaged:
            raise UserError(
                f"evals.{name}.params={which}: the run keeps no average of its parameters (optim.ema=0); valid: "
                f"{AUTO}, {RAW}"
            )
        found[name] = (name, RAW if which == RAW or not averaged else EMA)
        if which == BOTH:
            second = f"{name}_{RAW}"
            if second in evals:
                raise UserError(f"evals.{name}.params={BOTH} makes {second}, which is another entry of evals")
            found[second] = (name, RAW)
    return dict(sorted(found.items(), key=lambda item: item[1][1] != EMA))


def of_state(state: Any) -> dict[str, Any]:
    """{RAW: parameters, EMA: their average}, as far as a state has them."""
    return {RAW: state.params} | ({} if state.ema is None else {EMA: state.ema})
