"""Compiles a program of an experiment for a slice: the figures of one that fits, and of one that does not."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax

from maeclip_jax import errors
from maeclip_jax.errors import UserError, storage
from maeclip_jax.parallel import sharding
from maeclip_jax.preflight import bands, hlo, kernels, network, program_text, programs, remedy, topology
from maeclip_jax.preflight.compilation import compiled_with_text, needed_gib
from maeclip_jax.preflight.topology import Slice, mesh_text
from maeclip_jax.run import flops, microbatch, setup
from maeclip_jax.run.step import TrainStep, build

COUNTED = 0.98  # share of the FLOPs that must be found again: the compiler folds a product here and there


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
    errors.choose("--program", kind, programs.PROGRAMS)
    devices = where.devices()
    built = build(config, epoch=epoch, devices=devices)
    step, args = programs.PROGRAMS[kind](built)
    found = {
        "slice": str(where), "chip": where.kind, "chips": where.chips,
        "processes": len({d.process_index for d in devices}), "devices": len(devices),
        "device kind": devices[0].device_kind, "compiler": topology.compiler(),
        "compiler options": sharding.compiler_options(built.mesh),
        "program": kind, "mesh": mesh_text(dict(built.mesh.shape)), "batch": built.batch_size,
        "batch shards": sharding.batch_shards(built.mesh),
        "batch per chip": built.batch_size / where.chips, "steps": built.total_steps,
        "compute": dict(setup.for_chip(config.model, built.mesh)["compute"]),
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
            needs += remedy.state_gib(found)
        found |= {"compile seconds": time.perf_counter() - start, "fits": False, "peak HBM GiB": needs}
        parts = functools.partial(remedy.fewest_parts, config, built, epoch, devices) if advise else None
        found["remedy"] = remedy.overrides(config, built, found, parts)
        return found | {"compiler says": " ".join(str(e).split())[:300]}
    if text_file:
        with storage.writing(text_file, len(text)), open(text_file, "w") as f:
            f.write(text)
    found |= {"compile seconds": time.perf_counter() - start, "fits": True, "remedy": {}}
    memory = compiled.memory_analysis()
    found |= {"peak HBM GiB": microbatch.needed(memory) / 2**30, "temporaries GiB": memory.temp_size_in_bytes / 2**30}
    found |= {"micro-batches": parts, "weights": weights(built, parts)}
    module, entry = program_text.computations(text)
    costs, model = hlo.count(module, entry), programs.model_flops(built, kind, step, args)
    check_whole(costs, len(devices), min(model, flops.matmul_flops(traced.jaxpr)))
    waits = waiting(module, entry, where, list(built.mesh.devices.flat))
    return found | speed(costs, waits, built, where, model, bands.band(where.kind, calibrations))


def smallest(built: TrainStep, traced: Any, args: tuple, kind: str, room: float) -> tuple[int, tuple[Any, str]]:
    """(micro-batches, (the compiled program, its text)): those that the config says, or the fewest that fit.

    `traced`: the program, where the config says how many.
    """
    if kind != "train" or built.microbatches != microbatch.AUTO:
        return (built.microbatches if kind == "train" else 1), compiled_with_text(traced.lower())
    return microbatch.fewest(
        built, lambda parts: compiled_with_text(built.in_parts(parts).lower(*args)), microbatch.FILLED * room * 2**30
    )


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
        "operations without an estimate": dict(costs.unpriced),
        "loops of unknown length": costs.unknown_loops,
        "top": [
            {"module": m, "share": t / seconds, "seconds": t} for m, t in sorted(top, key=lambda x: -x[1])[:10]
        ],
    }  # fmt: skip


def local_gib(tree: Any) -> float:
    """What one device holds of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 2**30


def weights(built: TrainStep, parts: int) -> str:
    """Where the parameters of a step in parts are gathered from the devices that share them; empty if it has one."""
    if parts == 1 or built.mesh.shape["fsdp"] == 1:
        return ""
    return "gathered once a step" if built.whole_weights else "gathered a block at a time, in each part"
