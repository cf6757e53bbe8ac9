"""Estimates the time of our Pallas kernels, which the compiler does not estimate, from its instruction schedule.

A TPU core issues one bundle of instructions a cycle in an order fixed at compile time, and our kernels run straight
through without a loop inside a step. So bundles x steps / clock is their time, if the data arrives in time; reading
and writing it at the memory's speed is the other bound. Branches that run in some steps count in these. A v4 or v5p
chip shares the steps of attention alone among its two cores. The schedule is read from what libtpu writes when a kernel
is compiled alone, in a process of its own, since libtpu takes such flags only before it starts. Else: the roofline.
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

from maeclip_jax.nn import attention_layer_device, mlp_device
from maeclip_jax.preflight.hlo import Kernel
from maeclip_jax.preflight.topology import Slice, parse

NAME = re.compile(r"attention_(forward|backward)_(\d+)x(\d+)(_causal)?_(\d+)_steps")
MLP = re.compile(r"mlp_(forward|backward)(_part)?_(\w+)_(\d+)x(\d+)_steps")
LAYER = re.compile(r"attention_layer_(forward|backward)(_part)?_\d+x(\d+)(_causal)?_(\d+)_steps")
SCHEDULE, ROOFLINE = "the compiler's schedule", "roofline: FLOPs or bytes"
SECONDS = 300  # for a kernel to compile
BRANCH = 30  # bundles of a branch that is ours; shorter ones are the pipeline's
# In the schedule: a jump over a branch, and where it lands.
JUMP = re.compile(r"^ *0x([0-9a-f]+) .*sbr\.rel \(.*\) target = \$region(\d+)", re.MULTILINE)
LANDING = re.compile(r"^ *0x([0-9a-f]+) +(?:PF|CT): .*", re.MULTILINE)
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
def schedule(kernel: Kernel, slice_name: str) -> float | None:
    """Bundles that a core issues in one call of a kernel of ours; None for another kernel, or if libtpu gives no
    schedule.
    """
    attention, mlp, layer = (of.fullmatch(kernel.name) for of in (NAME, MLP, LAYER))
    if not attention and not mlp and not layer:
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
        if bundles and (mlp or layer):
            if mlp:
                way, *_, blocks, parts = mlp.groups()
            else:
                (way, *_, blocks), parts = layer.groups(), 1
            known = (mlp_device if mlp else attention_layer_device).BRANCHES[way]
            shares = {"units": 1 / int(parts), "rows": 1 / int(blocks)}
            text = next(Path(folder).glob(f"{stage}[0-9][0-9]-final_bundles.txt")).read_text()
            sizes = branches(text)  # where there are not as many as are known, they count in each step
            spared = [(1 - shares[of]) * size for of, size in zip(known, sizes) if len(sizes) == len(known)]
            return int(blocks) * int(parts) * (bundles - sum(spared))
    # A kernel of a single step has no loop.
    return bundles * (max(turns - AROUND, 1) if turns else int(attention[5])) if bundles else None


def branches(text: str) -> list[int]:
    """Bundles of a kernel's own branches, in their order, from its scheduled text.

    The grid's loop jumps over the kernel where it has nothing to do; the jumps within that are the kernel's, and then
    those of the pipeline that takes results away.
    """
    landings = {}
    for found in LANDING.finditer(text):
        for region in re.findall(r"region (\d+)", found[0]):
            landings.setdefault(int(region), int(found[1], 16))
    jumps = ((int(at, 16), landings.get(int(to), 0)) for at, to in JUMP.findall(text))
    spans = [(start, end) for start, end in jumps if end - start > BRANCH]
    whole = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
    return [end - start for start, end in spans if whole[0] < start and end <= whole[1]]


def _number(folder: str, files: str, pattern: str) -> int | None:
    """What `pattern` finds first in the only one of `files`."""
    texts = [p.read_text() for p in Path(folder).glob(files)]
    found = re.search(pattern, texts[0]) if len(texts) == 1 else None
    return int(found[1]) if found else None


def compile_alone(slice_name: str, name: str, shapes: list[str]) -> None:
    """Compiles the kernel of ours `name` for arrays of these HLO shapes, for one device of the slice."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from maeclip_jax.nn.attention import Attend
    from maeclip_jax.nn.attention_layer_device import AttentionLayer
    from maeclip_jax.nn.mlp_device import Mlp
    from maeclip_jax.nn.transformer import activation

    mesh = jax.sharding.Mesh(np.asarray(parse(slice_name).devices()[:1]), ("device",))
    jax.set_mesh(mesh)  # a kernel's steps are sized for the memory of its devices
    dtypes = {"bf16": jnp.bfloat16, "f32": jnp.float32}

    def array(shape: str):
        kind, dims = re.match(r"(\w+)\[([\d,]+)\]", shape).groups()
        sharding = jax.NamedSharding(mesh, jax.P())
        return jax.ShapeDtypeStruct(tuple(map(int, dims.split(","))), dtypes[kind], sharding=sharding)

    args = [array(s) for s in shapes]
    if mlp := MLP.fullmatch(name):
        how = Mlp(activation(mlp[3]), mlp[3], residual=not mlp[2])
        jax.jit(getattr(how, mlp[1])).lower(*args).compile()
        return
    if layer := LAYER.fullmatch(name):
        way, part, width, causal, _ = layer.groups()
        place, all_of = (1, 8) if way == "forward" else (2, 10)
        if len(args) < all_of:  # nothing is hidden
            args.insert(place, None)
        if way == "backward":  # takes no bias
            args.insert(-1, None)
        how = AttentionLayer(int(width), bool(causal), residual=not part)
        jax.jit(getattr(how, way)).lower(*args).compile()
        return
    way, _, width, causal, _ = NAME.fullmatch(name).groups()
    if len(args) in (1, 3):  # nothing is hidden
        args.insert(1, None)
    jax.jit(getattr(Attend(int(width), bool(causal), False), way)).lower(*args).compile()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    compile_alone(request["slice"], request["name"], request["shapes"])
