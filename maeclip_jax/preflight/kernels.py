"""Estimates the time of our Pallas kernels, which the compiler does not estimate, from its instruction schedule.

A TPU core issues one bundle of instructions a cycle in an order fixed at compile time, and our kernels run straight
through without a loop inside a step. So bundles x steps / clock is their time, if the data arrives in time; reading
and writing it at the memory's speed is the other bound. A v4 or v5p chip shares the steps among its two cores. The
schedule is read from what libtpu writes when a kernel is compiled alone, in a process of its own, since libtpu takes
such flags only before it starts. Else: the roofline.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from maeclip_jax.preflight.hlo import Kernel
from maeclip_jax.preflight.topology import Slice, parse

NAME = re.compile(r"attention_(forward|backward)_(\d+)x(\d+)(_causal)?_(\d+)_steps")
SCHEDULE, ROOFLINE = "the compiler's schedule", "roofline: FLOPs or bytes"
SECONDS = 300  # for a kernel to compile
AROUND = 2  # turns of the loop over steps that only fetch the first step's data, or only write the last one's


def priced(kernels: Mapping[Kernel, int], where: Slice) -> list[dict]:
    """Per kernel: its name, `calls`, `seconds` of all of them, and `how` that is known; the dearest first."""
    found = []
    for kernel, calls in kernels.items():
        seconds, how = of_call(kernel, where)
        found.append({"kernel": kernel.name, "calls": calls, "seconds": calls * seconds, "how": how})
    return sorted(found, key=lambda k: -k["seconds"])


def of_call(kernel: Kernel, where: Slice) -> tuple[float, str]:
    """(seconds of one call of a kernel, how that is known)."""
    bundles = schedule(kernel, where.name)
    memory = kernel.bytes / where.chip.bandwidth
    work = kernel.flops / where.chip.peak if bundles is None else bundles / where.chip.clock
    return max(work, memory), ROOFLINE if bundles is None else SCHEDULE


@functools.cache
def schedule(kernel: Kernel, slice_name: str) -> int | None:
    """Bundles that a core issues in one call of an attention kernel; None for another kernel, or if libtpu gives
    no schedule.
    """
    named = NAME.fullmatch(kernel.name)
    if not named:
        return None
    with tempfile.TemporaryDirectory() as folder:
        dumps = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        env = os.environ | {"LIBTPU_INIT_ARGS": dumps, "JAX_PLATFORMS": "cpu"}
        request = json.dumps({"slice": slice_name, "name": kernel.name, "shapes": kernel.shapes})
        try:
            subprocess.run(
                [sys.executable, "-m", __name__, request], env=env, capture_output=True, timeout=SECONDS, check=True
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        stage = f"*-{kernel.name}*-"
        bundles = _number(folder, f"{stage}schedule-analysis_final_bundles.txt", r"total scheduled bundles:\s*(\d+)")
        turns = _number(folder, f"{stage}02-original.txt", r"loop: start=0, step=1, limit=(\d+)")
    # A kernel of a single step has no loop.
    return bundles * (max(turns - AROUND, 1) if turns else int(named[5])) if bundles else None


def _number(folder: str, files: str, pattern: str) -> int | None:
    """What `pattern` finds first in the only one of `files`."""
    texts = [p.read_text() for p in Path(folder).glob(files)]
    found = re.search(pattern, texts[0]) if len(texts) == 1 else None
    return int(found[1]) if found else None


def compile_alone(slice_name: str, name: str, shapes: list[str]) -> None:
    """Compiles the attention kernel `name` for arrays of these HLO shapes, for one device of the slice."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from maeclip_jax.nn.attention import Attend

    way, _, width, causal, _ = NAME.fullmatch(name).groups()
    mesh = jax.sharding.Mesh(np.asarray(parse(slice_name).devices()[:1]), ("device",))
    dtypes = {"bf16": jnp.bfloat16, "f32": jnp.float32}

    def array(shape: str):
        kind, dims = re.match(r"(\w+)\[([\d,]+)\]", shape).groups()
        sharding = jax.NamedSharding(mesh, jax.P())
        return jax.ShapeDtypeStruct(tuple(map(int, dims.split(","))), dtypes[kind], sharding=sharding)

    args = [array(s) for s in shapes]
    if len(args) in (1, 3):  # nothing is hidden
        args.insert(1, None)
    jax.jit(getattr(Attend(int(width), bool(causal), False), way)).lower(*args).compile()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    compile_alone(request["slice"], request["name"], request["shapes"])
