"""Micro-batches: towers run over a batch in parts, and the contrast still sees all of it. Exact, not accumulated.

Each device works on its own rows in K parts, one after the other; the backward pass computes a part's activations
again, so that those of one part live at a time (gradient caching: Gao et al. 2021). What an example says alone
(`local`) is done part by part, what only the batch can say (`combine`) once. Randomness is drawn for the whole batch
before (`draw`), so that an example's mask does not depend on the part it is in. No picture leaves its device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import chips, sharding

AUTO = "auto"
METHODS = ("local", "combine")
# Whole float32 parameters and their gradients are gathered once a step if they take at most this share of a device's
# memory; else every part gathers them again, a block at a time.
WHOLE = 1 / 4
FILLED = 0.9  # share of the memory that AUTO takes


def has_split(objective: nn.Module) -> bool:
    """Whether `objective` says its loss as `local` and `combine`; not if it has changed `__call__` without them."""
    if not all(hasattr(objective, name) for name in METHODS):
        return False
    order = type(objective).__mro__
    at = {name: next(i for i, kind in enumerate(order) if name in vars(kind)) for name in ("__call__", *METHODS)}
    return at["__call__"] >= min(at[name] for name in METHODS)


def counts(batch_size: int, mesh: Mesh) -> list[int]:
    """Into how many parts a device's rows of the batch divide."""
    rows = batch_size // sharding.batch_shards(mesh)
    return [n for n in range(1, rows + 1) if rows % n == 0]


def check(config, objective: nn.Module, mesh: Mesh) -> int | str:
    """`config.microbatches` as a number or AUTO; UserError for what does not divide or cannot be split."""
    asked, valid = str(config.get("microbatches", 1)), counts(config.batch_size, mesh)
    known = f"{', '.join(map(str, valid[:12]))}{', ...' if len(valid) > 12 else ''}"
    if asked != AUTO and not (asked.isdecimal() and int(asked) in valid):
        rows = config.batch_size // sharding.batch_shards(mesh)
        raise UserError(
            f"microbatches={asked}: a device's {rows} rows of batch_size {config.batch_size} divide into {known}; "
            f"valid: one of these, or {AUTO}"
        )
    if asked != "1" and not has_split(objective):
        raise UserError(
            f"microbatches={asked}: objective {config.objective!r} does not say its loss as local() and combine() (see "
            "the docstring of maeclip_jax.objectives); valid: 1"
        )
    if asked != "1" and crashes(objective, mesh):
        raise UserError(
            f"microbatches={asked}: the compiler of jax {jax.__version__} crashes on objective {config.objective!r} in "
            "parts; valid: 1, another jax (0.10 or 0.12), or JAX_USE_SHARDY_PARTITIONER=false in the environment"
        )
    return AUTO if asked == AUTO else int(asked)


def crashes(objective: nn.Module, mesh: Mesh) -> bool:
    """Whether the compiler of this jax was seen to end the process at the objective in parts (`crashes_in_parts`).

    On several devices, with the partitioner Shardy, on CPUs; libtpu brings its own, and is let try.
    """
    seen = jax.__version__.startswith(getattr(objective, "crashes_in_parts", ()))
    tpu = mesh.devices.flat[0].platform == "tpu"
    return seen and mesh.size > 1 and not tpu and jax.config.jax_use_shardy_partitioner


def whole_weights(params: Any, specs: Any, mesh: Mesh) -> bool:
    """Whether a device holds all parameters (its part over `tensor`) during a step of several parts; see WHOLE."""
    memory = chips.memory(mesh.devices.flat[0])
    size = sum(
        4 * math.prod(x.shape) / (mesh.shape["tensor"] if "tensor" in s else 1)
        for x, s in zip(jax.tree.leaves(params), jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)))
    )
    return memory is None or 2 * size <= WHOLE * memory


def loss(
    objective: nn.Module,
    params: Any,
    batch: Mapping,
    rngs: Mapping,
    teacher: Any = None,
    *,
    parts: int,
    mesh: Mesh,
    specs: Any,
    whole: bool,
) -> tuple[jax.Array, dict]:
    """The training loss and metrics of `objective.__call__`, its towers run over `parts` parts of each device's rows.

    `specs`: how `params` lie on the mesh. `whole`: see `whole_weights`. `teacher`: of an objective that has one; what
    the loss makes of it is `_teacher` among the metrics.
    """  # fmt: skip
    variables, keeps = {"params": params}, False
    if teacher is not None:
        specs = {"params": specs, "teacher": sharding.optimizer_specs(teacher, params, specs)}
        variables, keeps = variables | {"teacher": teacher}, ["teacher"]
    else:
        specs = {"params": specs}

    def apply(variables, *args, **kwargs) -> Any:
        return objective.apply(variables, *args, train=True, **kwargs)

    def all_of_it(*args, **kwargs) -> tuple[jax.Array, dict]:
        out = apply(variables, *args, mutable=keeps, **kwargs)
        if not keeps:
            return out
        (total, metrics), changed = out
        return total, metrics | {"_teacher": changed["teacher"]}

    if parts == 1:
        return all_of_it(batch, rngs=rngs)
    drawn = {}
    if hasattr(objective, "draw"):
        drawn = apply(variables, batch, method="draw", rngs=rngs)
    rows = next(iter(batch.values())).shape[0]
    spread = jax.tree.map(lambda x: P(sharding.BATCH) if x.shape[0] == rows else P(), (dict(batch), drawn))
    shared = jax.tree.map(lambda x: x.shape[0] != rows, (dict(batch), drawn))
    on_devices = _whole if whole else _sharded
    made = on_devices(lambda v, x: apply(v, *x, method="local"), variables, (dict(batch), drawn), parts, mesh, specs,
                      spread, shared)  # fmt: skip
    return all_of_it(made, method="combine")


def _whole(local: Callable, params, given, parts: int, mesh: Mesh, specs, spread, shared):
    """`local` of all rows, every device on its own: whole parameters before the parts, their gradients summed after."""
    axes = set(sharding.BATCH) if mesh.shape["tensor"] > 1 else set(mesh.axis_names)
    own = jax.tree.map(lambda s: P(*(a if a in axes else None for a in s)), specs, is_leaf=lambda s: isinstance(s, P))

    def device(params, given):
        params = jax.tree.map(_gathered, params, own)
        split = jax.tree.map(lambda x, whole: x if whole else _split(x, parts), given, shared)
        return jax.tree.map(_merged, _over(lambda x: local(params, x), split, shared))

    return jax.shard_map(
        device, mesh=mesh, in_specs=(own, spread), out_specs=P(sharding.BATCH), axis_names=axes, check_vma=False
    )(params, given)


def _sharded(local: Callable, params, given, parts: int, mesh: Mesh, specs, spread, shared):
    """`local` of all rows with parameters left as they lie: the compiler gathers them where they are used."""
    del specs
    axes = set(sharding.BATCH)
    later = P(None, sharding.BATCH)
    out = jax.tree.map(lambda s, whole: s if whole else later, spread, shared)
    split = jax.shard_map(
        lambda x: jax.tree.map(lambda x, whole: x if whole else _split(x, parts), x, shared),
        mesh=mesh, in_specs=(spread,), out_specs=out, axis_names=axes, check_vma=False,
    )(given)  # fmt: skip
    made = _over(lambda x: local(params, x), split, shared)
    return jax.shard_map(
        lambda x: jax.tree.map(_merged, x), mesh=mesh, in_specs=(later,), out_specs=P(sharding.BATCH), axis_names=axes,
        check_vma=False,
    )(made)  # fmt: skip


def _over(function: Callable, split, shared):
    """`function` of each part, stacked: [K, b, ...] leaves of `split`, or one for all where `shared`."""
    leaves, tree = jax.tree.flatten(split)
    common = jax.tree.leaves(shared)

    def one(_, mine):
        mine = iter(mine)
        return _, function(tree.unflatten([x if all_ else next(mine) for x, all_ in zip(leaves, common)]))

    # Within a loop nothing undoes the recomputation.
    body = jax.checkpoint(one, prevent_cse=False)
    return jax.lax.scan(body, None, [x for x, all_ in zip(leaves, common) if not all_])[1]


def _split(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])


def _merged(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _gathered(x: jax.Array, spec: P) -> jax.Array:
    """A parameter whole; its gradient is summed over devices and split again where this is taken back."""
    for axis, name in enumerate(spec):
        if name == "fsdp":
            x = jax.lax.all_gather(x, name, axis=axis, tiled=True)
    return x


def fewest(built, compile_: Callable[[int], Any], room: float, least: int = 1) -> tuple[int, Any]:
    """(parts, what `compile_(parts)` made) of the fewest parts, `least` or more, whose program takes at most `room`
    bytes a device.

    `built`: a TrainStep. `compile_` returns the compiled program, alone or first of several. Tried are the counts that
    divide a device's rows, in order; those are left out that would not fit even if temporaries shrank with the parts.
    UserError where even single rows take more.
    """
    for parts in counts(built.batch_size, built.mesh):
        if parts < least:
            continue
        try:
            made = compile_(parts)
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
            continue
        memory = (made[0] if isinstance(made, tuple) else made).memory_analysis()
        if memory is None or needed(memory) <= room:
            return parts, made
        fixed = needed(memory) - memory.temp_size_in_bytes
        least = math.ceil(parts * memory.temp_size_in_bytes / (room - fixed)) if room > fixed else parts + 1
    raise UserError(
        f"microbatches={AUTO}: even one row at a time does not fit into {room / 2**30:.2f} GiB a device; valid: a "
        "smaller model, more devices to share it (config.mesh.fsdp), or more memory"
    )


def needed(memory: Any) -> float:
    """Bytes of a device that a program takes, by the compiler's memory analysis: arguments, results that are not
    arguments, temporaries and code."""
    sizes = {
        k: getattr(memory, f"{k}_size_in_bytes") for k in ("argument", "output", "alias", "temp", "generated_code")
    }
    return sum(sizes.values()) - 2 * sizes["alias"]


def compiled(built, *args) -> tuple[int, Any]:
    """(parts, compiled step) of a TrainStep for these arguments, on the devices at hand.

    With AUTO, the fewest parts that take at most FILLED of a device's memory; of a CPU, its share of half the
    machine's. Processes take the same number: that of the one with the least memory.
    """
    if built.microbatches != AUTO:
        return built.microbatches, built.step.lower(*args).compile()
    return fewest(built, lambda parts: built.in_parts(parts).lower(*args).compile(), FILLED * _memory_here())


def said(built, parts: int) -> str:
    """How a step of `built` goes through its batch, for the log; empty if all at once and nothing was to be found."""
    if parts == 1:
        return "; all rows at once, which fit" if built.microbatches == AUTO else ""
    rows = built.batch_size // sharding.batch_shards(built.mesh)
    how = ", parameters gathered once a step" if built.whole_weights else ", parameters gathered block by block in each"
    return f"; {parts} parts of {rows // parts} rows a device{how if built.mesh.shape['fsdp'] > 1 else ''}"


def _memory_here() -> float:
    device = jax.local_devices()[0]
    here = chips.memory(device)
    if here is None:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        here = machine / 2 / len(jax.local_devices())
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return float(multihost_utils.process_allgather(np.float32(here)).min())
