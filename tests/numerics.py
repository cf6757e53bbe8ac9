"""Fifty training steps of each objective, computed in every way that the tree has: the losses are the same.

    python -m tests.numerics [--objectives=clip,mae] [--dtypes=float32,bfloat16] [--ways="scan;fused"] [--steps=50]

The experiments' `runlocal` sizes from the same parameters on the same random batches, with the learning rate of the
experiment. A number is the largest difference of a step's loss from that of plain jax on one device (attention by XLA,
layers one after the other, nothing recomputed), as a share of that loss. For comparison, `last bit` starts from
parameters that are changed by one unit in their last place, up or down by chance, and is the largest of DRAWS: training
magnifies any rounding, and a ReLU whose input is nearly 0 does so in some draws alone. Kernels are interpreted, devices
are eight of a CPU. Exit code 1 if a difference is beyond ROUNDING and four times that of `last bit`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from maeclip_jax import objectives
from maeclip_jax import params as paths
from maeclip_jax.parallel import machine, sharding
from maeclip_jax.run.step import build, teacher_of

OBJECTIVES = tuple(objectives.table())  # an experiment has the name of its objective
DTYPES = ("float32", "bfloat16")
PLAIN = {"model.compute.layers": "unroll", "model.compute.attention": "xla", "model.compute.remat": "none"}
LAST_BIT = "last bit"
# Way -> (devices, settings).
WAYS = {
    LAST_BIT: (1, {}),
    "products of jax": (1, {}),
    "scan": (1, {"model.compute.layers": "scan"}),
    "remat full": (1, {"model.compute.remat": "full"}),
    "scan, remat dots": (1, {"model.compute.layers": "scan", "model.compute.remat": "dots"}),
    "fused": (1, {"model.compute.attention": "fused"}),
    "fused, kernels": (1, {"model.compute.attention": "fused_interpret"}),
    "fused layer, kernels": (1, {"model.compute.attention": "fused_layer_interpret"}),
    "fused MLP, kernels": (1, {"model.compute.mlp": "fused_interpret"}),
    "4 micro-batches": (1, {"microbatches": "4"}),
    "8 devices, replicas": (8, {"mesh.replica": 8}),
    "8 devices, fsdp": (8, {"mesh.replica": 1, "mesh.fsdp": 8}),
    "8 devices, fsdp, tensor": (8, {"mesh.replica": 1, "mesh.fsdp": 4, "mesh.tensor": 2}),
    "8 devices, all of these": (
        8,
        {
            "mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "microbatches": "2", "model.compute.layers": "scan",
            "model.compute.remat": "full", "model.compute.attention": "fused_interpret",
        },
    ),
}  # fmt: skip
ROUNDING = {"float32": 1e-5, "bfloat16": 2e-3}
DRAWS = 8


def config_of(objective: str, dtype: str, steps: int, settings: dict):
    """The experiment's `runlocal`, `steps` long, in plain jax but for `settings`."""
    config = importlib.import_module(f"experiments.{objective}").get_config("runlocal")
    config.total = f"{steps} steps"
    config.update_from_flattened_dict(PLAIN | {"model.compute.dtype": dtype} | settings)
    return config


def batches(step, steps: int):
    """Random batches, a new one each step: no loss goes to nothing, of which any difference would be a large share."""
    rng, rows = np.random.default_rng(0), step.batch_size
    for _ in range(steps):
        batch = {}
        for name, x in step.inputs.items():
            if name == "image":
                batch[name] = rng.integers(0, 256, x.shape)
            elif name == "text":
                length = rng.integers(1, x.shape[1] + 1, (rows, 1))
                vocabulary = step.objective.text_tower["vocab"]
                batch[name] = np.where(np.arange(x.shape[1]) < length, rng.integers(1, vocabulary, x.shape), 0)
            elif name == "answer":  # -1: none
                batch[name] = rng.integers(-1, step.objective.answers, x.shape)
            else:
                batch[name] = rng.uniform(0, 1, x.shape)
            batch[name] = batch[name].astype(x.dtype)
        yield sharding.place(batch, step.mesh)


@functools.cache
def start(objective: str) -> dict[str, np.ndarray]:
    """{path: the parameters that all ways start from}, layers one after the other."""
    step = build(config_of(objective, "float32", 1, {}), epoch=100, devices=jax.devices()[:1])
    with jax.set_mesh(step.mesh):
        return {path: np.asarray(x) for path, x in paths.flatten(step.init().params).items()}


def losses(objective: str, dtype: str, steps: int, way: str = "", draw: int = 0) -> np.ndarray:
    """Loss of each of `steps` training steps, float64; without a `way`, of plain jax on one device.

    `draw`: of what is by chance in `last bit`.
    """
    devices, settings = WAYS[way] if way else (1, {})
    config = config_of(objective, dtype, steps, settings)
    step = build(config, epoch=100, devices=jax.devices()[:devices])
    first = start(objective)
    if way == LAST_BIT:
        rng = np.random.default_rng((1, draw))
        first = {
            path: np.nextafter(x, np.where(rng.random(x.shape) < 0.5, np.inf, -np.inf), dtype=x.dtype)
            for path, x in first.items()
        }
    found = []
    with contextlib.ExitStack() as stack:
        if way == "products of jax":
            for module in ("dense", "transformer"):
                stack.enter_context(mock.patch(f"maeclip_jax.nn.{module}.product", jnp.matmul))
        stack.enter_context(jax.set_mesh(step.mesh))
        state = step.init()
        like = paths.flatten(state.params)
        first = paths.with_layers_like(first, like)
        put = {k: sharding.put(first[k], x) for k, x in like.items()}
        params = paths.unflatten(put)
        teacher = teacher_of(step.objective, params)
        state = state.replace(params=params, teacher=jax.tree.map(sharding.put, teacher, state.teacher))
        for batch in batches(step, steps):
            state, metrics = step.step(state, batch)
            found.append(float(metrics["loss"]))
        return np.asarray(found)


def difference(have: np.ndarray, want: np.ndarray) -> float:
    """The largest difference of a step's loss, as a share of it."""
    return float(np.max(np.abs(have - want) / np.abs(want)))


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each way as it is done, then tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", type=lambda s: s.split(","), default=OBJECTIVES)
    parser.add_argument("--dtypes", type=lambda s: s.split(","), default=DTYPES)
    parser.add_argument("--ways", type=lambda s: s.split(";"), default=tuple(WAYS), help="separated by ;")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args(argv)
    machine.configure_jax(cpu_devices=8)
    beyond, cells, plain = [], {}, {}
    for objective in args.objectives:
        for dtype in args.dtypes:
            want = plain[objective, dtype] = losses(objective, dtype, args.steps)
            print(f"{objective} {dtype}: loss {want[0]:.5f} to {want[-1]:.5f}", flush=True)
            if len(args.dtypes) == 2 and dtype == args.dtypes[1]:
                cells["float32", dtype, objective] = difference(want, plain[objective, args.dtypes[0]])
            for way in args.ways:
                begun = time.monotonic()
                draws = range(DRAWS if way == LAST_BIT else 1)
                every = [difference(losses(objective, dtype, args.steps, way, draw), want) for draw in draws]
                found = cells[way, dtype, objective] = float(np.max(every))
                print(f"{objective} {dtype} {way}: {found:.1e}, {time.monotonic() - begun:.0f} s", flush=True)
                bound = max(ROUNDING[dtype], 4 * cells.get((LAST_BIT, dtype, objective), 0))
                if not found <= bound and way != LAST_BIT:
                    beyond.append(f"{objective} {dtype} {way}: {found:.1e}, beyond {bound:.0e}")
    for dtype in args.dtypes:
        print(f"\n| {dtype} | {' | '.join(args.objectives)} |\n|---|{'---|' * len(args.objectives)}")
        for way in (*args.ways, *(["float32"] if ("float32", dtype, args.objectives[0]) in cells else [])):
            print(f"| {way} | {' | '.join(f'{cells[way, dtype, o]:.0e}' for o in args.objectives)} |")
    print("\n".join(beyond))
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
