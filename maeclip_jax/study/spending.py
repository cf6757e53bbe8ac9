"""What a plan costs on a named topology: steps measured on this machine, or estimated by the TPU compiler."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from maeclip_jax.errors import UserError
from maeclip_jax.run import step
from maeclip_jax.study import design

CPU, TIMED = "cpu", 4  # steps that are timed
BUDGET = re.compile(r"(\d+(?:\.\d+)?)h")


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds of a step and of a start of each arm. chips: 0 on this machine. how: in words, for every print."""

    step: Mapping[str, float]
    start: float
    chips: int
    how: str


def flops_of(config) -> float:
    """Model FLOPs of a step of a config, from its traced program; the mesh does not change them."""
    config = config.copy_and_resolve_references()
    config.mesh.update(dict.fromkeys(config.mesh, 1))
    made = step.build(config, epoch=10**6, devices=jax.devices()[:1])
    with jax.set_mesh(made.mesh):
        return made.flops_per_step


def speed(axes: design.Axes, runs: Sequence[design.Run], topology: str) -> Speed:
    """Of one run of each arm. UserError for a topology that there is not, or on which an arm does not fit."""
    of_arm = {run.arm: run for run in reversed(runs) if run.phase == design.MAIN}
    if topology == CPU:
        from maeclip_jax.bench.step import time_steps

        seconds, start = {}, 0.0
        for arm, run in of_arm.items():
            made = step.build(design.load(run, axes), epoch=10**6)
            with jax.set_mesh(made.mesh):
                found = time_steps(made, (1.0, ""), TIMED)
            seconds[arm] = found["step seconds (median)"]
            start = max(start, found["compile seconds"])
        how = f"measured on this machine, {TIMED} steps an arm on a batch in memory; starts: seconds to compile"
        return Speed(seconds, start, 0, how)
    from maeclip_jax.preflight import estimate
    from maeclip_jax.preflight import topology as slices

    where, seconds = slices.parse(topology), {}
    for arm, run in of_arm.items():
        found = estimate.estimate(design.load(run, axes), where, epoch=10**6)
        if not found["fits"]:
            raise UserError(f"arm {arm!r} does not fit {topology}: {found.get('compiler says', '')[:200]}; take a "
                            "larger slice")  # fmt: skip
        seconds[arm] = found["step seconds"]
    return Speed(seconds, 0.0, where.chips, "estimated by the TPU compiler, without input, start and evaluation")


def hours(runs: Sequence[design.Run], made: Speed) -> float:
    """Of all runs one after the other."""
    return sum(run.steps * made.step[run.arm] + made.start for run in runs) / 3600


def budget(text: str) -> float:
    """Hours of `10h`; infinite of "". UserError for anything else."""
    found = BUDGET.fullmatch(text.strip()) if text else None
    if text and not found:
        raise UserError(f"--budget={text!r}; valid: hours, such as 10h")
    return float(found[1]) if found else math.inf


def check(axes: design.Axes, runs: Sequence[design.Run], made: Speed, limit: float) -> None:
    """UserError if the runs take longer than `limit` hours, with what each axis would save."""
    need = hours(runs, made)
    if need <= limit:
        return
    cuts = {}
    for name, one in (("SIZES", "size"), ("DIVERSITY", "diversity"), ("POOL", "pool")):
        kinds = sorted({getattr(r, one) for r in runs if r.phase == design.MAIN})
        for kind in kinds if len(kinds) > 1 else ():
            cuts[f"{name} without {_said(kind)}"] = [r for r in runs if getattr(r, one) != kind]
    if axes.seeds > 2:
        cuts[f"SEEDS={axes.seeds - 1}"] = [r for r in runs if r.seed != axes.seeds - 1]
    for match in axes.match if len(axes.match) > 1 else ():
        cuts[f"MATCH={match}"] = [r for r in runs if match in r.matched]
    if len(axes.weights) > 1:
        cuts[f"WEIGHTS={axes.weights[0]:g}"] = [r for r in runs if r.phase != design.WEIGHT]
    if axes.examples > 1:
        share = limit / need
        cuts[f"EXAMPLES={max(1, int(axes.examples * share)):,}"] = None
    left = {name: need * share if kept is None else hours(kept, made) for name, kept in cuts.items()}
    fits = {name: h for name, h in left.items() if h <= limit} or left
    said = ", ".join(f"{name} ({h:.3g} h)" for name, h in sorted(fits.items(), key=lambda x: -x[1])[:4])
    raise UserError(
        f"{len(runs)} runs take {need:.3g} h ({made.how}), above --budget={limit:g}h; what would do: {said}"
    )


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"
