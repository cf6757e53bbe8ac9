"""What to change in an experiment whose program has no room: sharded parameters, micro-batches, remat, batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax

from maeclip_jax.errors import UserError
from maeclip_jax.preflight import programs
from maeclip_jax.preflight.compilation import compiled_with_text
from maeclip_jax.run import microbatch
from maeclip_jax.run.step import TrainStep, build

TIGHT = 0.9  # share of the memory that a remedy aims for
# The share of the activations that remat=full leaves, a cautious bound: estimates are 0.30 in a two-tower B/16 of 12
# layers and 0.41 in tiny towers, where the logits of a large batch weigh more.
REMAT_LEAVES = 1 / 2


def state_gib(found: Mapping) -> float:
    """What one device holds from step to step."""
    return sum(found[f"{part} GiB"] for part in ("parameters", "optimizer", "average", "teacher"))


def fewest_parts(
    config, built: TrainStep, epoch: int | None, devices: Sequence, changes: Mapping, least: int, room: float
) -> int | None:
    """The fewest micro-batches, `least` or more, with which a step that has no room takes at most `room` GiB a device.

    `changes`: overrides of the config that come with them. Every number is compiled, as microbatches=auto does; None if
    none fits or the objective does not train in parts.
    """
    if not microbatch.has_split(built.objective):
        return None
    if changes:
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict(dict(changes))
        built = build(config, epoch=epoch, devices=devices)
    _, args = programs.train(built)
    try:
        with jax.set_mesh(built.mesh):
            return microbatch.fewest(
                built, lambda parts: compiled_with_text(built.in_parts(parts).lower(*args)), room * 2**30, least
            )[0]
    except UserError:
        return None


def overrides(config, built: TrainStep, found: dict, parts: Callable[[Mapping, int, float], int | None] | None) -> dict:
    """Overrides of the config with which a program that has no room has it: sharded parameters, and of a training the
    fewest micro-batches that `parts(overrides, least, GiB)` finds to fit; see `fewest_parts`.

    Where that finds none or is None: remat and a smaller batch, guessed from the memory that is needed, since
    activations go with the batch, parameters and optimizer with 1/fsdp. Empty if parameters and optimizer alone have no
    room on the slice, or if the compiler did not report the need and everything was tried. Run the pre-flight again
    with them.
    """
    room, changes = TIGHT * found["HBM GiB"], {}
    state = state_gib(found)
    activations = max((found["peak HBM GiB"] or 4 * found["HBM GiB"]) - state, 0.0)
    shards = math.prod(built.mesh.shape[a] for a in ("replica", "fsdp"))
    fsdp = built.mesh.shape["fsdp"]
    wanted = fsdp
    while state * fsdp / wanted > room / 3 and wanted * 2 <= shards and shards % (wanted * 2) == 0:
        wanted *= 2
    if wanted > fsdp:
        changes |= {"mesh.replica": -1, "mesh.fsdp": wanted}
        state *= fsdp / wanted
    if state > room:
        return {}
    asked = 0 if found["program"] != "train" else built.microbatches
    if parts and asked not in (0, microbatch.AUTO) and state < room:
        least = max(asked + 1, math.ceil(asked * activations / (room - state)) if found["peak HBM GiB"] else 1)
        if number := parts(changes, least, room):
            return changes | {"microbatches": f"{number}"}  # a word in a config, as `auto` is
    if found["program"] == "train" and state + activations > room and config.model.compute.remat != "full":
        changes["model.compute.remat"] = "full"
        activations *= REMAT_LEAVES
    batch = built.batch_size
    while state + activations * batch / built.batch_size > room and batch % (2 * shards) == 0:
        batch //= 2
    if batch < built.batch_size:
        changes["batch_size"] = batch
    return changes
