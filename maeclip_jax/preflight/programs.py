"""What of an experiment can be compiled for a slice: its training step, its loss, its features, its contrast."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import sharding
from maeclip_jax.run import flops, microbatch
from maeclip_jax.run.setup import RNG_STREAMS
from maeclip_jax.run.step import TrainStep


def train(built: TrainStep) -> tuple[Any, tuple]:
    """(the train step, its arguments)."""
    bad = jax.ShapeDtypeStruct((built.batch_size,), jnp.int32, sharding=next(iter(built.inputs.values())).sharding)
    return built.step, (built.abstract, built.inputs | {"_bad": bad})


def evaluate(built: TrainStep) -> tuple[Any, tuple]:
    """The loss of a batch, as the evaluator `loss` has it."""

    def step(params, batch):
        rngs = {"mask": jax.random.key(0)}
        return built.objective.apply({"params": params}, batch, train=False, rngs=rngs)

    return sharding.jit(step, built.mesh), (built.abstract.params, built.inputs)


def embed(built: TrainStep) -> tuple[Any, tuple]:
    """Pooled features of a batch: what probes, zero-shot and retrieval run."""

    def step(params, batch):
        return built.objective.apply({"params": params}, batch, method="embed")

    return sharding.jit(step, built.mesh), (built.abstract.params, built.inputs)


def contrast(built: TrainStep) -> tuple[Any, tuple]:
    """What of a training step only the whole batch can say, without towers: loss and gradients by the embeddings.

    UserError for an objective that compares no pairs, or does not say what it does with them as `combine`.
    """
    objective = built.objective
    if not (getattr(objective, "contrastive", False) and microbatch.has_split(objective)):
        raise UserError(f"--program=contrast: {type(objective).__name__} has no contrast of its own; valid: train")

    def local(params, batch):
        rngs = {name: jax.random.key(0) for name in RNG_STREAMS}
        drawn = objective.apply({"params": params}, batch, train=True, method="draw", rngs=rngs)
        return objective.apply({"params": params}, batch, drawn, train=True, method="local")

    with jax.set_mesh(built.mesh):
        made = jax.eval_shape(local, built.abstract.params, built.inputs)
    spread = sharding.batch_sharding(built.mesh)
    made = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), made)
    own = {name: x for name, x in built.abstract.params.items() if hasattr(x, "shape")}  # temperature and bias
    embedded = {name: made[name] for name in ("image", "text")}

    def step(params, embedded, rest):
        def loss(own, embedded):
            return combined(objective, params | own, rest | embedded)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)({n: params[n] for n in own}, embedded)

    return sharding.jit(step, built.mesh), (built.abstract.params, embedded, made)


def combined(objective: Any, params: Any, made: Any) -> tuple[jax.Array, dict]:
    """Loss and metrics of a whole batch of which `made` is known."""
    return objective.apply({"params": params}, made, train=True, method="combine")


PROGRAMS = {"train": train, "evaluate": evaluate, "embed": embed, "contrast": contrast}


def model_flops(built: TrainStep, kind: str, step, args: tuple) -> float:
    """Of one call on the global batch: flops.FORMULA in training, else the program's own matrix products."""
    if kind == "contrast":
        params, _, made = args
        return 3 * flops.forward_matmul_flops(functools.partial(combined, built.objective), params, made)
    return built.flops_per_step if kind == "train" else flops.forward_matmul_flops(step.__wrapped__, *args)
