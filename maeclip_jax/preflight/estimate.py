"""Compiles a program of an experiment for a slice: the figures of one that fits, and of one that does not."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from maeclip_jax import errors
from maeclip_jax.errors import UserError, storage
from maeclip_jax.parallel import sharding
from maeclip_jax.preflight import bands, hlo, kernels, network, program, topology
from maeclip_jax.preflight.topology import Slice, mesh_text
from maeclip_jax.run import flops, microbatch
from maeclip_jax.run.setup import RNG_STREAMS
from maeclip_jax.run.step import TrainStep, build

COUNTED = 0.98  # share of the FLOPs that must be found again: the compiler folds a product here and there
TIGHT = 0.9  # share of the memory that a remedy aims for
UNITS = {"": 2**-30, "K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}
# The share of the activations that remat=full leaves, a cautious bound: estimates are 0.30 in a two-tower B/16 of 12
# layers and 0.41 in tiny towers, where the logits of a large batch weigh more.
REMAT_LEAVES = 1 / 2


def train(built: TrainStep) -> tuple[Any, tuple]:
    """(the train step, its arguments)."""
    bad = jax.ShapeDtypeStruct((built.batch_size,), jnp.int32, sharding=next(iter(built.inputs.values())).sharding)
    return built.step, (built.abstract, built.inputs | {"_bad": bad})


def smallest(built: TrainStep, traced: Any, args: tuple, kind: str, room: float) -> tuple[int, tuple[Any, str]]:
    """(micro-batches, (the compiled program, its text)): those that the config says, or the fewest that fit.

    `traced`: the program, where the config says how many.
    """
    if kind != "train" or built.microbatches != microbatch.AUTO:
        return (built.microbatches if kind == "train" else 1), compiled_with_text(traced.lower())
    return microbatch.fewest(
        built, lambda parts: compiled_with_text(built.in_parts(parts).lower(*args)), microbatch.FILLED * room * 2**30
    )


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


def estimate(
    config,
    where: Slice,
    *,
    epoch: int | None,
    kind: str = "train",
    text_file: str = "",
    calibrations: str = bands.FILE,
    advise: bool = True,
) -> dict:
    """Figures of the program `kind` of `config` on a slice, by name; sizes in GiB a device, times in seconds.

    A program without room has `fits` False, what it would need if the compiler told, and a `remedy` as overrides of
    the config; with `advise`, programs are compiled to find how many micro-batches fit. `text_file`: where to leave the
    compiled program's text; `calibrations`: see `bands`. Raises UserError for what cannot be built.
    """
    errors.choose("--program", kind, PROGRAMS)
    devices = where.devices()
    built = build(config, epoch=epoch, devices=devices)
    step, args = PROGRAMS[kind](built)
    found = {
        "slice": str(where), "chip": where.kind, "chips": where.chips,
        "processes": len({d.process_index for d in devices}), "devices": len(devices),
        "device kind": devices[0].device_kind, "compiler": topology.compiler(),
        "compiler options": sharding.compiler_options(built.mesh),
        "program": kind, "mesh": mesh_text(dict(built.mesh.shape)), "batch": built.batch_size,
        "batch shards": sharding.batch_shards(built.mesh),
        "batch per chip": built.batch_size / where.chips, "steps": built.total_steps,
        "compute": dict(config.model.compute),
        "parameters": sum(x.size for x in jax.tree.leaves(built.abstract.params)),
        "parameters GiB": local_gib(built.abstract.params), "HBM GiB": where.chip.hbm,
        "optimizer GiB": local_gib(built.abstract.opt_state) if kind == "train" else 0.0,
        "average GiB": local_gib(built.abstract.ema) if kind == "train" else 0.0,
        "teacher GiB": local_gib(built.abstract.teacher) if kind == "train" else 0.0,
    }  # fmt: skip
    start = time.perf_counter()
    try:
        with jax.set_mesh(built.mesh):
            traced = step.trace(*args)
            parts, (compiled, text) = smallest(built, traced, args, kind, where.chip.hbm)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise UserError(f"the compiler failed: {' '.join(str(e).split())[:300]}") from e
        needs = needed_gib(str(e))
        if needs and "temporaries" in str(e):
            needs += state_gib(found)
        found |= {"compile seconds": time.perf_counter() - start, "fits": False, "peak HBM GiB": needs}
        parts = functools.partial(fewest_parts, config, built, epoch, devices) if advise else None
        found["remedy"] = remedy(config, built, found, parts)
        return found | {"compiler says": " ".join(str(e).split())[:300]}
    if text_file:
        with storage.writing(text_file, len(text)), open(text_file, "w") as f:
            f.write(text)
    found |= {"compile seconds": time.perf_counter() - start, "fits": True, "remedy": {}}
    memory = compiled.memory_analysis()
    found |= {"peak HBM GiB": microbatch.needed(memory) / 2**30, "temporaries GiB": memory.temp_size_in_bytes / 2**30}
    found |= {"micro-batches": parts, "weights": weights(built, parts)}
    module, entry = program.computations(text)
    costs, model = hlo.count(module, entry), model_flops(built, kind, step, args)
    check_whole(costs, len(devices), min(model, flops.matmul_flops(traced.jaxpr)))
    waits = waiting(module, entry, where, list(built.mesh.devices.flat))
    return found | speed(costs, waits, built, where, model, bands.band(where.kind, calibrations))


def waiting(module: dict, entry: str, where: Slice, devices: list) -> network.Waits | None:
    """What the network costs a program; None if nothing is known of the slice's."""
    links = network.links(where, devices)

    def seconds(op, here: dict) -> float:
        kernel = hlo.kernel_of(op, here) if op.kind == "custom-call" and not op.cycles else None
        return kernels.of_call(kernel, where)[0] if kernel else op.cycles / where.chip.clock

    return network.waits(module, entry, seconds, links.seconds) if links else None


def check_whole(costs: hlo.Costs, devices: int, least: float) -> None:
    """UserError if a program was counted with fewer FLOPs than it has: then its time is too low as well.

    `least`: those of the model, or of the traced program where inputs need no gradient. Calls without an estimate may
    hide some, and are reported.
    """
    if costs.flops * devices < COUNTED * least and not costs.uncosted:
        raise UserError(
            f"the compiled program was counted with {costs.flops * devices:.4g} FLOPs, {least:.4g} are the model's: "
            "some of its text was not understood, so there is no estimate; --text=FILE keeps the text"
        )


def compiled_with_text(lowered: Any) -> tuple[Any, str]:
    """(the compiled program, its text with the costs, as the compiler writes it to a file).

    jaxlib 0.10.2 cannot read large v6e programs of libtpu 0.0.52 back, so the program itself is asked only if nothing
    was written.
    """
    with tempfile.TemporaryDirectory() as folder, _without_cache():
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = list(Path(folder).glob("*.after_codegen.txt"))
        return compiled, written[0].read_text() if len(written) == 1 else compiled.as_text()


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """jax 0.10.2 keeps programs for a topology in its cache, and cannot read them again where that chip is missing.

    Every pre-flight would leave megabytes there, and the second one of a program would warn.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax decides once, at its first program, whether there is a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def speed(
    costs: hlo.Costs, waits: network.Waits | None, built: TrainStep, where: Slice, model: float, band: bands.Band
) -> dict:
    """What follows from a compiled program's costs: time, MFU, traffic, profile.

    `step seconds` and what is made of them are those of a core that never waits; `low` and `high` are the band of
    published or calibrated ratios around the step with its waits.
    """
    devices = built.mesh.size
    own = kernels.priced(costs.kernels, where)
    seconds = costs.cycles / where.chip.clock + sum(k["seconds"] for k in own)
    peak = where.chip.peak
    top = [(m, c / where.chip.clock) for m, c in costs.top()] + [(k["kernel"], k["seconds"]) for k in own]
    hours = built.total_steps * seconds / 3600
    exposed = waits.exposed if waits else 0.0
    low, high = (ratio * (seconds + exposed) for ratio in (band.low, band.high))
    of_run = built.total_steps / 3600
    return {
        "model FLOPs": model, "counted FLOPs": costs.flops * devices, "step seconds": seconds,
        "MFU": model / (seconds * devices * peak), "images/s": built.batch_size / seconds,
        "hours": hours, "chip-hours": hours * where.chips,
        "band": {"low": band.low, "high": band.high, "source": band.source},
        "step seconds low": low, "step seconds high": high,
        "hours low": low * of_run, "hours high": high * of_run,
        "collectives": dict(costs.collectives),
        "network": waits and waits.told(),
        "kernels": own, "custom calls without an estimate": dict(costs.uncosted),
        "loops of unknown length": costs.unknown_loops,
        "top": [
            {"module": m, "share": t / seconds, "seconds": t} for m, t in sorted(top, key=lambda x: -x[1])[:10]
        ],
    }  # fmt: skip


def model_flops(built: TrainStep, kind: str, step, args: tuple) -> float:
    """Of one call on the global batch: flops.FORMULA in training, else the program's own matrix products."""
    if kind == "contrast":
        params, _, made = args
        return 3 * flops.forward_matmul_flops(functools.partial(combined, built.objective), params, made)
    return built.flops_per_step if kind == "train" else flops.forward_matmul_flops(step.__wrapped__, *args)


def local_gib(tree: Any) -> float:
    """What one device holds of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 2**30


def state_gib(found: Mapping) -> float:
    """What one device holds from step to step."""
    return sum(found[f"{part} GiB"] for part in ("parameters", "optimizer", "average", "teacher"))


def weights(built: TrainStep, parts: int) -> str:
    """Where the parameters of a step in parts are gathered from the devices that share them; empty if it has one."""
    if parts == 1 or built.mesh.shape["fsdp"] == 1:
        return ""
    return "gathered once a step" if built.whole_weights else "gathered a block at a time, in each part"


def needed_gib(message: str) -> float | None:
    """The memory that a program would need if it does not fit, as far as the compiler's message gives it."""
    number = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (rf"\({number}\) exceeds available", rf"[Uu]sed {number} of", rf"total hbm usage >= {number}"):
        found = re.search(pattern, message)
        if found:
            return float(found[1]) * UNITS[found[2]]
    return None


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
    _, args = train(built)
    try:
        with jax.set_mesh(built.mesh):
            return microbatch.fewest(
                built, lambda parts: compiled_with_text(built.in_parts(parts).lower(*args)), room * 2**30, least
            )[0]
    except UserError:
        return None


def remedy(config, built: TrainStep, found: dict, parts: Callable[[Mapping, int, float], int | None] | None) -> dict:
    """Overrides of the config with which a program that has no room has it: sharded parameters, and of a training the
    fewest micro-batches that `parts(overrides, least, GiB)` finds to fit; see `fewest_parts`.

    Where that finds none or is None: remat and a smaller batch, guessed from the memory that is needed, since
    activations go with the batch, parameters and optimizer with 1/fsdp. Empty if the compiler did not report the need
    and everything was tried. Run the pre-flight again with them.
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
    asked = 0 if found["program"] != "train" else built.microbatches
    if parts and asked not in (0, microbatch.AUTO) and state < room:
        least = max(asked + 1, math.ceil(asked * activations / (room - state)) if found["peak HBM GiB"] else 1)
        if number := parts(changes, least, room):
            return changes | {"microbatches": number}
    if found["program"] == "train" and state + activations > room and config.model.compute.remat != "full":
        changes["model.compute.remat"] = "full"
        activations *= REMAT_LEAVES
    batch = built.batch_size
    while state + activations * batch / built.batch_size > room and batch % (2 * shards) == 0:
        batch //= 2
    if batch < built.batch_size:
        changes["batch_size"] = batch
    return changes
