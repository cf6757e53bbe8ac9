"""The compiled side of a run: objective, mesh, shardings, optimizer, initial state and the train step.

Built from a config alone, with no data and no devices touched, so that the loop, the benchmark and a pre-flight for a
slice one does not have all use the same program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from maeclip_jax.config import to_steps
from maeclip_jax.errors import UserError
from maeclip_jax.parallel import sharding
from maeclip_jax.run import average, flops, microbatch, optim
from maeclip_jax.run.setup import RNG_STREAMS, setup


class State(flax.struct.PyTreeNode):
    """All that training carries: a checkpoint of it and the position in the data continue a run exactly.

    `counters`: skipped updates, skipped in a row, bad records replaced. `ema`: the average of `params`; None without.
    `teacher`: what an objective that teaches itself keeps beside its parameters; None without.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    counters: Mapping[str, jax.Array]
    ema: Any = None
    teacher: Any = None


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """What `build` makes. `abstract`: the state as shapes with shardings; `init()` makes it; `step` advances it."""

    objective: nn.Module
    mesh: Mesh
    batch_size: int
    total_steps: int
    rate: Callable
    inputs: dict[str, jax.ShapeDtypeStruct]  # one global batch, split over the batch axes
    abstract: State
    param_specs: Any
    init: Callable[[], State]
    microbatches: int | str  # parts of each device's rows; microbatch.AUTO: the fewest that fit
    whole_weights: bool  # whether parts share one gathering of the parameters: see microbatch.whole_weights
    in_parts: Callable[[int], Callable[[State, Mapping], tuple[State, dict]]]  # the step with so many
    seed: np.int32  # of the run; `seeded` makes it an argument of the step

    def seeded(self) -> dict[str, jax.Array]:
        """`_seed`, int32 [] on every device: what a batch holds beside its rows where one program serves all seeds.

        Without it a step has the seed of the config as a constant, which gives the same numbers.
        """
        everywhere = jax.NamedSharding(self.mesh, jax.P())
        return {"_seed": jax.make_array_from_callback((), everywhere, lambda _: np.asarray(self.seed))}

    @property
    def step(self) -> Callable[[State, Mapping], tuple[State, dict]]:
        """The update, jitted; all at once where the number of parts is to be found."""
        return self.in_parts(1 if self.microbatches == microbatch.AUTO else self.microbatches)

    @functools.cached_property
    def flops_per_step(self) -> float:
        """Model FLOPs of one training step on the global batch (see flops.FORMULA)."""
        return model_flops(self.objective, self.abstract.params, self.inputs)

    def steps(self, duration: str, what: str, *, epoch: int | None) -> int:
        """A duration of the config in steps (see config.to_steps). UserError naming `what`."""
        counted = functools.partial(getattr, self, "flops_per_step")
        known = dict(batch_size=self.batch_size, total=self.total_steps, flops=counted)
        return to_steps(duration, what, epoch=epoch, **known)

    def check_length(self, total: str, was: str | None, steps: int | None, folder: Any) -> None:
        """UserError if the same `total` in FLOPs was another number of `steps` when the checkpoint `folder` was made.

        Another version, or another way to compute attention, may count a step otherwise; the schedule would change.
        """
        if steps and "FLOP" in total and total == was and steps != self.total_steps:
            raise UserError(
                f"checkpoint {folder} was trained for {steps} steps; total={total!r} is {self.total_steps} steps here, "
                f"where a step counts {self.flops_per_step:.6g} FLOPs: set total='{steps} steps' to go on as before"
            )


def model_flops(objective: nn.Module, params: Any, inputs: Mapping) -> float:
    """Model FLOPs of a training step of `objective` on a batch; `params`, `inputs`: arrays or shapes of them."""

    def forward(params, batch):
        rngs = {name: jax.random.key(0) for name in RNG_STREAMS}
        return objective.apply({"params": params}, batch, train=True, rngs=rngs)[0]

    params, batch = (jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x) for x in (params, dict(inputs)))
    return flops.training_matmul_flops(forward, params, batch)


def build(config, *, epoch: int | None, devices: Sequence | None = None) -> TrainStep:
    """The program of `config`; `epoch`: records per epoch of its training data (None: endless).

    Raises UserError for whatever does not fit: mesh, batch, settings of the model, rules.
    """
    made = setup(config, devices=devices)
    objective, mesh, param_specs, fresh_params = made.objective, made.mesh, made.param_specs, made.fresh
    sharding.check_batch(config.batch_size, mesh)
    if getattr(objective, "contrastive", False) and config.batch_size < 2:
        raise UserError(
            f"batch_size {config.batch_size}: {config.objective} compares each pair with the others of its batch, and "
            "there are none; valid: 2 or more"
        )
    on_batch = sharding.batch_sharding(mesh)
    inputs = {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype, sharding=on_batch)
        for name, x in objective.inputs().items()
    }

    @functools.cache
    def counted() -> float:
        with jax.set_mesh(mesh):
            return model_flops(objective, made.params, inputs)

    total = to_steps(config.total, "total", batch_size=config.batch_size, epoch=epoch, flops=counted)
    rate = optim.schedule(config.optim, batch_size=config.batch_size, total=total, epoch=epoch)
    transform = optim.make(config.optim, made.params, rate)
    decay = average.decay_of(config.optim)
    seed = np.int64(config.seed).astype(np.int32)  # as jax.random.key takes an int

    def fresh(seed) -> State:
        params = fresh_params(seed)
        zero = {name: jnp.zeros((), jnp.int32) for name in ("skipped", "skipped_in_row", "bad_records")}
        return State(
            jnp.zeros((), jnp.int32), params, transform.init(params), zero, average.begin(config.optim, params),
            teacher_of(objective, params),
        )  # fmt: skip

    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(fresh, seed)
    replicated = jax.NamedSharding(mesh, jax.P())
    teacher_specs = sharding.optimizer_specs(abstract.teacher, abstract.params, param_specs)
    shardings = State(
        replicated,
        sharding.named(param_specs, mesh),
        sharding.named(sharding.optimizer_specs(abstract.opt_state, abstract.params, param_specs), mesh),
        dict.fromkeys(abstract.counters, replicated),
        sharding.named(param_specs, mesh) if decay else None,
        sharding.named(teacher_specs, mesh),
    )
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    microbatches = microbatch.check(config, objective, mesh)
    whole = microbatch.whole_weights((made.params, abstract.teacher), (param_specs, teacher_specs), mesh)

    @functools.cache
    def in_parts(parts: int):
        loss = functools.partial(microbatch.loss, objective, parts=parts, mesh=mesh, specs=param_specs, whole=whole)
        follow = getattr(objective, "follow", None)
        step = functools.partial(update, loss, transform, rate, decay, config.seed, tuple(config.optim.caps))
        step = functools.partial(step, follow=follow)
        return sharding.jit(step, mesh, out_shardings=(shardings, replicated), donate_argnums=0)

    return TrainStep(
        objective=objective, mesh=mesh, batch_size=config.batch_size, total_steps=total, rate=rate, inputs=inputs,
        abstract=abstract, param_specs=param_specs,
        init=functools.partial(jax.jit(fresh, out_shardings=shardings), seed), seed=seed,
        microbatches=microbatches, whole_weights=whole, in_parts=in_parts,
    )  # fmt: skip


def teacher_of(objective: nn.Module, params: Any) -> Any:
    """The teacher of an objective that has one, when training begins with `params`; None without."""
    return objective.teacher(params) if hasattr(objective, "teacher") else None


def update(
    loss, transform, rate, decay, seed, caps, state: State, batch: Mapping, follow: Callable | None = None
) -> tuple[State, dict]:
    """One update by `loss(params, batch, rngs)`; one that is not finite changes nothing but what is counted.

    Where the state has a teacher, the loss takes it as well, `follow(teacher, params)` moves it on, and what the loss
    has changed in it comes as `_teacher` among the metrics.
    """
    rng = jax.random.fold_in(jax.random.key(batch.get("_seed", seed)), state.step)
    rngs = {name: jax.random.fold_in(rng, i) for i, name in enumerate(RNG_STREAMS)}
    bad = batch["_bad"].sum() if "_bad" in batch else 0
    batch = {k: x for k, x in batch.items() if not k.startswith("_")}

    was = state.counters
    applied = state.step - was["skipped"]  # a skipped update moves neither the schedule nor the average's warm-up on
    taught = () if state.teacher is None else (state.teacher,)
    (loss, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch, rngs, *taught)
    teacher = parts.pop("_teacher", None)
    with jax.named_scope("optimizer"):
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = optim.cap(optax.apply_updates(state.params, updates), caps)
        ema = average.update(decay, state.ema, params, applied)
        teacher = None if teacher is None else follow(teacher, params)
        params, opt_state, ema, teacher = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, ema, teacher),
            (state.params, state.opt_state, state.ema, state.teacher),
        )
    counters = {
        "skipped": was["skipped"] + ~finite,
        "skipped_in_row": jnp.where(finite, 0, was["skipped_in_row"] + 1),
        "bad_records": was["bad_records"] + bad,
    }
    metrics = {
        "loss": loss,
        **parts,
        "grad_norm": grad_norm,
        "param_norm": optax.tree.norm(params),
        "learning_rate": rate(applied),
        **counters,
    }
    return State(state.step + 1, params, opt_state, counters, ema, teacher), metrics
