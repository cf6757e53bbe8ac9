"""What a config makes before any step: objective, mesh, and parameters as shapes with shardings.

No data and no optimizer are needed, and no device is touched: evaluation, a loaded model and the train step begin here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from maeclip_jax import errors, objectives
from maeclip_jax.config import load
from maeclip_jax.parallel import chips, sharding
from maeclip_jax.parallel.terminal import say
from maeclip_jax.run import checkpoint
from maeclip_jax.workdir import CONFIG

# Streams of randomness, named by meaning; derived from (seed, step), so results do not depend on devices or restarts.
RNG_STREAMS = ("mask", "dropout")


@dataclasses.dataclass(frozen=True)
class Setup:
    """The part of a program that needs no optimizer and no data. `params`: shapes with shardings.

    `fresh()` makes values of the config's seed; `fresh(seed)` those of another, int32 [], which a program may be given.
    """

    objective: nn.Module
    mesh: Mesh
    params: Any
    param_specs: Any
    fresh: Callable[..., Any]


def setup(config, *, devices: Sequence | None = None) -> Setup:
    """Objective, mesh and parameters of `config`; UserError for settings, sizes or rules that do not fit."""
    mesh = sharding.make_mesh(config.mesh, devices)
    objective = objectives.make(config.objective, for_chip(config.model, mesh))

    def fresh(seed=config.seed):
        rngs = {name: jax.random.fold_in(jax.random.key(seed), i) for i, name in enumerate(("params", *RNG_STREAMS))}
        # Parameters do not depend on the batch size: two rows are enough to trace shapes.
        batch = {name: jnp.ones((2, *x.shape), x.dtype) for name, x in objective.inputs().items()}
        return objective.init(rngs, batch, train=True)["params"]

    with errors.from_modules(), jax.set_mesh(mesh):
        params = jax.eval_shape(fresh)
    specs = sharding.specs(params, mesh, config.get("sharding_rules", ()) or sharding.RULES)
    split = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, sharding.named(specs, mesh)
    )
    return Setup(objective, mesh, split, specs, fresh)


def for_chip(model: Mapping, mesh: Mesh) -> Mapping:
    """The config's `model` with `compute.attention=fused` and `compute.mlp=auto` settled for the devices of a mesh, by
    the table of chips. On what is not in it, `fused` stays, and the MLP is XLA's.
    """
    compute = model.get("compute") or {}
    chip = chips.of(mesh.devices.flat[0].device_kind)
    if compute.get("attention") == "fused" and chip:
        compute = {**compute, "attention": chip.attention}
    if compute.get("mlp") == "auto":
        compute = {**compute, "mlp": chip.mlp if chip else "xla"}
    return {**model, "compute": compute} if compute else model


def restored(
    folder: epath.Path,
    settings: Mapping[str, Any] | None = None,
    *,
    devices: Sequence | None = None,
    which: str = checkpoint.AUTO,
) -> tuple[Any, Setup, Any, str]:
    """(config, setup, parameters, EMA or RAW) of the run whose checkpoint `.../checkpoints/<step>` is `folder`.

    `settings`: leaves of its config to change. Unless they name a mesh, parameters are whole on each of `devices`: that
    of the training may be a pod's. `which`: see `checkpoint.read_parameters`; a line says so if it is the average.
    UserError for what does not fit, and for files that cannot be read.
    """
    config = load(folder.parent.parent / CONFIG, settings)
    if not any(name.startswith("mesh.") for name in settings or ()):
        config.mesh = dict(replica=-1, fsdp=1, tensor=1)
    made = setup(config, devices=devices)
    params, found = checkpoint.read_params(folder, made.params, which)
    if found == checkpoint.EMA:
        say(
            f"{folder}: its running average of the parameters (optim.ema={config.optim.get('ema', 0):g}) is taken; "
            f"params={checkpoint.RAW} takes those of the last step"
        )
    return config, made, params, found
