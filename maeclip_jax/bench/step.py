"""`make bench`: what an experiment's step and input cost on this machine, as a table and as JSON.

    python -m maeclip_jax.bench step --config=experiments/clip.py:scale=demo [--steps=20] [--json=FILE] [--config.x=y]
        [--batches=N] [--peer=open_clip] [--peer_python=PYTHON]

The step is timed on one batch that stays on the device, so it is the upper bound the input pipeline must reach; the
input pipeline is timed alone, on the experiment's own data (or on noise pictures of the same size where that is not
there, and on bytes where the vocabulary is not). Everything printed is measured here, in one run, unless it says
otherwise. With --peer the steps of another code base, which has a process of its own and a model of the same sizes,
take turns with ours.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from maeclip_jax import cli
from maeclip_jax.bench import peer as peers
from maeclip_jax.bench.figures import add_json, write
from maeclip_jax.data import pipeline
from maeclip_jax.data import tokenizer as tokenizers
from maeclip_jax.errors import UserError
from maeclip_jax.parallel import sharding
from maeclip_jax.parallel.chips import peak_per_device
from maeclip_jax.run import microbatch
from maeclip_jax.run.step import TrainStep, build

RSS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20  # what getrusage counts in: bytes there, KiB elsewhere
PEAK_SECONDS = 0.6  # a CPU's peak is measured so long for each size, longer than in a run


def time_steps(step: TrainStep, peak: tuple[float | None, str], steps: int, peer: peers.Peer | None = None) -> dict:
    """Compiles and runs `steps` train steps on one random batch; figures per step (median). `peak`: of one device.

    A `peer` makes one of its steps after each of ours.
    """
    rng = np.random.default_rng(0)
    local = step.batch_size // jax.process_count()
    batch = {}
    for name, x in step.inputs.items():
        high = 256 if x.dtype == np.uint8 else 2
        batch[name] = rng.integers(0, high, (local, *x.shape[1:])).astype(x.dtype)
    batch = sharding.place(batch, step.mesh)
    start = time.perf_counter()
    _, compiled = microbatch.compiled(step, step.abstract, step.inputs)
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    state = step.init()
    seconds, processor = [], []
    for _ in range(steps + peers.WARM_UP):
        start, cpu = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
        if peer:
            peer.step()
    median = statistics.median(seconds[peers.WARM_UP :])
    devices = step.mesh.size
    stats = jax.local_devices()[0].memory_stats() or {}
    figures = {
        "device": f"{devices} x {jax.devices()[0].device_kind}",
        "batch size": step.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves(step.abstract.params)),
        "compile seconds": compile_seconds,
        "step seconds (median)": median,
        "step seconds (best)": min(seconds[peers.WARM_UP :]),
        "step processor seconds (best)": min(processor[peers.WARM_UP :]),
        "images/s": step.batch_size / median,
        "images/s/device": step.batch_size / median / devices,
        "model FLOPs/step": step.flops_per_step,
        **(
            {"MFU (%)": 100 * step.flops_per_step / median / devices / peak[0], "peak FLOP/s per device": peak[0]}
            if peak[0]
            else {}
        ),
        "peak from": peak[1],
        "arguments GiB/device (compiler)": memory.argument_size_in_bytes / 2**30 if memory else None,
        "temporaries GiB/device (compiler)": memory.temp_size_in_bytes / 2**30 if memory else None,
        "peak memory GiB/device (runtime)": stats["peak_bytes_in_use"] / 2**30
        if "peak_bytes_in_use" in stats
        else None,
        "peak resident GiB (process)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_PER_GIB,
    }
    return figures | (peer.figures(figures) if peer else {})


def time_input(config, step: TrainStep, batches: int) -> dict:
    """Reads `batches` batches of the experiment's own data, or of noise and bytes where those are not there."""
    data, of, by = config.data, "the experiment's data", ""
    try:
        tokenizer = tokenizers.of(config)
    except UserError as e:
        tokenizer, by = tokenizers.make(dict(type="bytes")), f", bytes as words ({_short(e)})"
    try:
        it = pipeline.train(data, batch_size=step.batch_size, seed=config.seed, tokenizer=tokenizer)
    except UserError as e:
        of = f"noise pictures ({_short(e)})"
        side = step.inputs["image"].shape[1] if "image" in step.inputs else 32
        data = data.copy_and_resolve_references()
        data.source = dict(kind="noise", resolution=side)
        it = pipeline.train(data, batch_size=step.batch_size, seed=config.seed, tokenizer=tokenizer)
    with it:
        next(it)
        cpu, start = time.process_time(), time.perf_counter()
        for _ in range(batches):
            next(it)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    images = batches * step.batch_size
    return {
        "input of": of + by,
        "input images/s": images / wall,
        "input images/s/core (CPU seconds)": images / max(cpu, 1e-9),
        "CPU cores": os.cpu_count(),
    }


def _short(error: UserError) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def report(figures: dict) -> str:
    """Two columns; numbers to four digits."""

    def show(v) -> str:
        if v is None:
            return "not told by this backend"
        return f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v)

    width = max(map(len, figures))
    return "\n".join(f"{k.ljust(width)}  {show(v)}" for k, v in figures.items())


def run(argv: Sequence[str]) -> None:
    """The command line: the experiment's flags and --steps, --peer, --json."""
    parser = cli.ExperimentParser("maeclip_jax.bench step", __doc__)
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed (%(default)s)")
    parser.add_argument("--batches", type=int, help="batches of input that are timed (512 pictures); 0: none")
    parser.add_argument(
        "--peer", choices=tuple(peers.PEERS), help="another code base, whose steps take turns with ours"
    )
    parser.add_argument("--peer_python", default=sys.executable, metavar="PYTHON", help="which has it (this one)")
    add_json(parser)
    cli.add_machine(parser)
    args = parser.parse_experiment(argv)
    cli.start_jax(args)
    config = args.config
    try:
        epoch = pipeline.open(config.data).length
    except UserError:
        epoch = 10**6  # the schedule needs an epoch, the speed does not depend on it
    step = build(config, epoch=epoch)
    peak = peak_per_device(config.model.compute.dtype, PEAK_SECONDS)  # of one device, so before the mesh is set
    with contextlib.ExitStack() as stack:
        peer = None
        if args.peer:
            task = peers.task_of(config, step.objective, step.inputs)
            peer = stack.enter_context(peers.Peer(args.peer, args.peer_python, task))
        stack.enter_context(jax.set_mesh(step.mesh))
        figures = {"config": " ".join(argv)}
        figures |= time_steps(step, peak, args.steps, peer)
        try:
            batches = max(2, 512 // step.batch_size) if args.batches is None else args.batches
            if batches > 0:
                figures |= time_input(config, step, batches)
                figures["step needs of the input (share)"] = figures["images/s"] / figures["input images/s"]
        except UserError as e:  # what the step costs has been measured
            figures["input of"] = f"nothing: {' '.join(str(e).split())}"
    print(report(figures))
    write("step", figures, args.json)
