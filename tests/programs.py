"""Small programs as the TPU compiler leaves them: a corpus of texts that the pre-flight's reader is tested on.

    python -m tests.programs [NAME ...]     compiles them again (needs libtpu; a minute each on one core)

Loss and gradients, without the optimizer, which would be most of the text. Texts are kept compressed in
tests/preflight/programs without what the reader does not look into: the tables of source files, and the rest of long
strings such as a kernel's body. programs.json has the model's FLOPs of each, as jax counts the traced program.
"""

from __future__ import annotations

import json
import lzma
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "preflight" / "programs"
FUSED = {"model.compute.attention": "fused", "model.compute.layers": "unroll", "model.compute.dtype": "bfloat16"}
FSDP = {"mesh.replica": -1, "mesh.fsdp": 4, "batch_size": 32}
# Enough tokens, as wide as a vector, for the kernels of a block's halves.
HALVES = {
    "batch_size": 1024, "model.compute.attention": "fused_layer", "model.compute.mlp": "fused",
    "model.image_tower.width": 128, "model.image_tower.heads": 2, "model.image_tower.depth": 1,
    "model.text_tower.width": 128, "model.text_tower.heads": 2, "model.text_tower.depth": 1,
}  # fmt: skip
# name -> slice, number of slices, experiment, settings.
PROGRAMS = {
    "v4-scan": ("v4:2x2x1", 1, "clip", {}),
    "v5e-scan-remat": ("v5e:2x2", 1, "clip", {"model.compute.remat": "full"}),
    "v5e-kernels": ("v5e:2x2", 1, "clip", FUSED),
    "v5e-two-slices": ("v5e:2x2", 2, "clip", {"mesh.replica": 2, "mesh.fsdp": 4, "batch_size": 32}),
    "v5p-fsdp": ("v5p:2x2x1", 1, "mae", FSDP | {"model.compute.layers": "unroll"}),
    "v6e-fsdp-kernels": ("v6e:2x2", 1, "clip", FUSED | FSDP),
    "v6e-half-kernels": ("v6e:2x2", 1, "clip", FUSED | FSDP | HALVES),
    "tpu7x-fsdp": ("tpu7x:2x2x1", 1, "clip", FUSED | FSDP),
    "v5e-splash": ("v5e:2x2", 1, "", {}),
}
LONGEST = 200  # characters of a string that is kept


def trace(name: str):
    """(the traced program, its mesh, FLOPs of the model over all devices)."""
    return trace_of(*PROGRAMS[name])


def trace_of(where: str, count: int, experiment: str, settings: dict):
    """The same of loss and gradients of an experiment on so many slices."""
    import importlib

    import jax

    from maeclip_jax.preflight import topology
    from maeclip_jax.run.setup import RNG_STREAMS
    from maeclip_jax.run.step import build

    devices = topology.parse(where, count).devices()
    if not experiment:
        return splash(devices)
    config = importlib.import_module(f"experiments.{experiment}").get_config("runlocal")
    config.update_from_flattened_dict(settings)
    built = build(config, epoch=1000, devices=devices)

    def loss(params, batch):
        rngs = {name: jax.random.key(0) for name in RNG_STREAMS}
        return built.objective.apply({"params": params}, batch, train=True, rngs=rngs)[0]

    shardings = jax.tree.map(lambda x: x.sharding, built.abstract.params)
    with jax.set_mesh(built.mesh):
        traced = jax.jit(jax.grad(loss), out_shardings=shardings).trace(built.abstract.params, built.inputs)
    return traced, built.mesh, built.flops_per_step


def splash(devices: list):
    """Three scanned layers of splash attention with its metadata, on one device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, tokens, width, layers = 2, 256, 128, 3
    attend = kernels.make_splash_mha_single_device(masks.MultiHeadMask([masks.FullMask((tokens, tokens))] * heads))

    def layer(x, w):
        q, k, v = (jnp.einsum("nd,dhw->hnw", x, w[i]) for i in range(3))
        return x + attend(q, k, v).swapaxes(0, 1).reshape(tokens, -1), None

    def loss(w, x):
        return jax.lax.scan(layer, x, w)[0].sum()

    mesh = jax.sharding.Mesh(np.asarray(devices[:1]), ("device",))
    shapes = ((layers, 3, heads * width, heads, width), (tokens, heads * width))
    args = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P())) for s in shapes]
    return jax.jit(jax.grad(loss)).trace(*args), mesh, 3 * 2.0 * layers * 3 * tokens * (heads * width) ** 2


def short(text: str) -> str:
    """Without tables of source files, with long strings cut."""
    text = re.sub(r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*\n*", "", text, flags=re.MULTILINE)
    text = re.sub(r" stack_frame_id=\d+", "", text)
    return re.sub(rf'"([\w+/=]{{{LONGEST}}})[\w+/=]+"', r'"\1"', text)


def read(name: str) -> tuple[str, dict]:
    """(text, what is known of it)."""
    with lzma.open(FOLDER / f"{name}.txt.xz", "rt") as f:
        return f.read(), json.loads((FOLDER / "programs.json").read_text())[name]


def main(names: list[str]) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
    from importlib.metadata import version

    from maeclip_jax.preflight import compilation

    FOLDER.mkdir(exist_ok=True)
    index = FOLDER / "programs.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    for name in names or PROGRAMS:
        traced, mesh, flops = trace(name)
        with jax.set_mesh(mesh):
            text = compilation.compiled_with_text(traced.lower())[1]
        (FOLDER / f"{name}.txt.xz").write_bytes(lzma.compress(short(text).encode(), preset=9))
        known[name] = {
            "model FLOPs": flops, "devices": mesh.size, "jax": version("jax"), "libtpu": version("libtpu"),
        }  # fmt: skip
        index.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(name, (FOLDER / f"{name}.txt.xz").stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
