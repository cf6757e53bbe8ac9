"""The state that a run begins with.

It is that of its own newest checkpoint, else that of another run (`config.resume`), else fresh parameters, of which
`config.init_from` replaces some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from maeclip_jax import interop
from maeclip_jax.config import FILES
from maeclip_jax.errors import UserError
from maeclip_jax.interop import adoption
from maeclip_jax.parallel import chips, sleep
from maeclip_jax.parallel.terminal import Waiting, say, warn
from maeclip_jax.run import average, checkpoint
from maeclip_jax.run.clock import Clock
from maeclip_jax.run.optim import other_length
from maeclip_jax.run.saving import Checkpoints
from maeclip_jax.run.startup import Startup
from maeclip_jax.run.step import State, TrainStep, teacher_of
from maeclip_jax.run.storage_bill import Meter
from maeclip_jax.run.warm_start import init_params
from maeclip_jax.workdir import read_config
from maeclip_jax.workdir.claim import other_words


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What decides where a run begins. `epoch`: examples in one; `before`: config.json of the workdir, or {}."""

    config: Any
    built: TrainStep
    epoch: int
    tokenizer: Any
    saved: Checkpoints
    before: Mapping

    def state(self, start: Startup) -> tuple[State, Clock, Meter]:
        """(state, clock, requests to storage so far). UserError for an origin that does not fit."""
        latest, resume = self.saved.latest(), self.config.resume
        if latest is not None:
            return self._restored(self.saved.folder(latest), start)
        if resume:
            folder = checkpoint.locate(resume)
            if self.tokenizer and (other := other_words(self.config, folder.parent.parent)):
                raise UserError(
                    f"config.resume={resume} was trained with other words: {other}; name its own, which are "
                    f"kept in {folder.parent.parent / FILES}, or begin from its parameters with config.init_from"
                )
            return self._restored(folder, start)
        with Waiting("making the parameters"):
            state = self.built.init()
        if self.config.init_from:
            state = self._warm(state)
        return state, Clock(start=start, chips=self.chips), Meter()

    @property
    def chips(self) -> float:
        """How many this start has."""
        mesh = self.built.mesh
        return chips.count(mesh.size, next(mesh.devices.flat).device_kind)

    def _restored(self, folder: epath.Path, start: Startup) -> tuple[State, Clock, Meter]:
        built, config = self.built, self.config
        begun = sleep.awake()
        with Waiting(f"reading {folder}"):
            state, meta = checkpoint.read(folder, built.abstract)
        step = meta["step"]
        if meta["batch_size"] != built.batch_size:
            raise UserError(
                f"checkpoint {folder} was trained with batch_size {meta['batch_size']}, the config says "
                f"{built.batch_size}: schedules and data order would change; set batch_size={meta['batch_size']}, "
                "or start a new --workdir with config.init_from"
            )
        if meta["seed"] != config.seed:
            raise UserError(
                f"checkpoint {folder} was trained with seed {meta['seed']}, the config says {config.seed}: "
                f"the data order would change; set seed={meta['seed']}, or start a new --workdir"
            )
        was = (self.before or read_config(folder.parent.parent)).get("total")
        built.check_length(config.total, was, meta.get("total_steps"), folder)
        if step > built.total_steps:
            raise UserError(
                f"checkpoint {folder} is past the end: total={config.total!r} is {built.total_steps} steps; "
                "raise total, or start a new --workdir"
            )
        clock = Clock(meta["seconds"], start, self.chips, meta.get("chip_seconds"))
        clock.add("restore", sleep.awake() - begun)
        say(f"continuing from step {step} of {built.total_steps} ({folder})")
        self._say_schedule(step, folder)
        return state, clock, Meter(meta.get("asked", ()))

    def _warm(self, state: State) -> State:
        config, source = self.config, self.config.init_from
        configs = None
        if not interop.split(source):
            theirs = checkpoint.locate(source).parent.parent
            configs = read_config(theirs), config
            if self.tokenizer and (other := other_words(config, theirs)):
                warn(f"config.init_from={source}: it was trained with other words: {other}")
        with Waiting(f"reading {source}"):
            have, said = adoption.parameters(config, state.params)
        if said:
            say(said)
        params, report = init_params(source, tuple(config.init_rules), state.params, have, configs)
        say(report)
        teacher = teacher_of(self.built.objective, params)
        return state.replace(params=params, ema=average.begin(config.optim, params), teacher=teacher)

    def _say_schedule(self, step: int, folder: epath.Path) -> None:
        """Says what another length does to the learning rate: it follows the new length, from the first step on."""
        before = self.before or read_config(folder.parent.parent)
        built = self.built
        known = dict(batch_size=built.batch_size, total=built.total_steps, epoch=self.epoch)
        if said := other_length(self.config, before, step=step, flops=lambda: built.flops_per_step, **known):
            say(said)
