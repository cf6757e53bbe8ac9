"""The training steps of other projects, compiled for a slice and counted as a pre-flight counts ours.

    python -m tests.peer_steps big_vision --code=FOLDER [--slice=v5litepod-256] [--batch=16384]
    python -m tests.peer_steps transformers             (transformers 4.57, the last ones with Flax)

CLIP's sizes at B/16: two towers of 12 layers 768 wide, 196 patches, 64 tokens, in bfloat16 with float32 parameters, the
project's own modules and loss, AdamW, parameters whole on each device. FOLDER is a checkout of
github.com/google-research/big_vision. MFU by the model's products, three times those of the forward pass.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maeclip_jax.parallel import sharding
from maeclip_jax.preflight import estimate, hlo, program_text, topology
from maeclip_jax.preflight.compilation import compiled_with_text
from maeclip_jax.run import microbatch

DEPTH, WIDTH, HIDDEN, PATCHES, TOKENS, PIXELS = 12, 768, 3072, 196, 64, 224
IMAGE, TEXT = (PIXELS, PIXELS, 3), (TOKENS,)


def big_vision(code: str):
    """(initial parameters, loss, width of the embeddings): `two_towers` with the sigmoid loss."""
    sys.path.insert(0, code)
    for name in ("tensorflow", "tensorflow.io", "tensorflow.io.gfile", "overrides"):  # its helpers' alone
        with contextlib.suppress(ImportError):
            __import__(name)
            continue
        sys.modules[name] = _Nothing(name)
    import flax.linen as nn
    from big_vision.models.proj.image_text import two_towers

    image = {"variant": "B/16", "pool_type": "map", "scan": False, "dtype_mm": "bfloat16", "head_zeroinit": False}
    text = {"variant": "B", "vocab_size": 32_000, "scan": False}
    model = two_towers.Model(image=image, text=text, out_dim=(None, WIDTH), temperature_init=10.0, bias_init=-10.0)

    def loss(params, images, texts):
        with nn.logical_axis_rules([("act_batch", "data")]):
            rngs = {"dropout": jax.random.key(0)}
            a, b, scale = model.apply({"params": params}, images, texts, train=True, rngs=rngs)
        logits = a @ b.T * scale["t"] + scale["b"]
        sign = 2 * jnp.eye(len(a)) - 1
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(sign * logits), axis=-1))

    return lambda key, images, texts: model.init(key, images, texts)["params"], loss, WIDTH


def transformers(_: str):
    """The same of FlaxCLIPModule with the softmax loss over all pairs."""
    from transformers import CLIPConfig
    from transformers.models.clip.modeling_flax_clip import FlaxCLIPModule

    both = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": DEPTH, "num_attention_heads": 12}
    text = {"max_position_embeddings": TOKENS, "vocab_size": 30_522, "eos_token_id": 30_521}
    image, out = {"patch_size": 16, "image_size": PIXELS}, 512
    config = CLIPConfig(text_config=both | text, vision_config=both | image, projection_dim=out)
    model = FlaxCLIPModule(config, dtype=jnp.bfloat16)

    def places(texts):
        return jnp.broadcast_to(jnp.arange(TOKENS)[None], texts.shape)

    def init(key, images, texts):
        return model.init(key, texts, images, jnp.ones_like(texts), places(texts))["params"]

    def loss(params, images, texts):
        mask = (texts > 0).astype(jnp.int32)
        found = model.apply({"params": params}, texts, images, mask, places(texts), deterministic=True)
        logits, own = found.logits_per_text, jnp.arange(len(texts))
        both = (optax.softmax_cross_entropy_with_integer_labels(x, own).mean() for x in (logits, logits.T))
        return sum(both) / 2

    return init, loss, out


PEERS = {"big_vision": big_vision, "transformers": transformers}


class _Nothing(types.ModuleType):
    """A module that is imported and not used."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__, self.__path__ = importlib.machinery.ModuleSpec(name, None), []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.setdefault(f"{self.__name__}.{name}", _Nothing(f"{self.__name__}.{name}"))

    def __call__(self, *args, **kwargs):
        return self


def flops(batch: int, out: int) -> float:
    """Of a step of the model: of products, two a multiply-add."""

    def tower(tokens):
        return DEPTH * (2 * tokens * WIDTH * (4 * WIDTH + 2 * HIDDEN) + 4 * tokens * tokens * WIDTH)

    patches = 2 * PATCHES * 16 * 16 * 3 * WIDTH
    return 3 * batch * (tower(PATCHES) + tower(TOKENS) + patches + 2 * batch * out)


def main(argv: list[str] | None = None) -> None:
    """Prints the figures of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--code", default="", help="big_vision's folder")
    parser.add_argument("--slice", default="v5litepod-256")
    parser.add_argument("--batch", type=int, default=16_384)
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    init, loss, out = PEERS[args.peer](args.code)
    where = topology.parse(args.slice)
    mesh = jax.sharding.Mesh(np.asarray(where.devices()), ("data",))
    decayed = optax.adamw(1e-3, b1=0.9, b2=0.98, mu_dtype=jnp.bfloat16, weight_decay=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), decayed)

    def placed(tree, *axes):
        lie = jax.NamedSharding(mesh, jax.P(*axes))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lie), tree)

    def rows(n):
        return jnp.zeros((n, *IMAGE), jnp.float32), jnp.zeros((n, *TEXT), jnp.int32)

    params = jax.eval_shape(init, jax.random.key(0), *jax.eval_shape(lambda: rows(1)))
    batch = placed(jax.eval_shape(lambda: rows(args.batch)), "data")
    state = placed((params, jax.eval_shape(optimizer.init, params)))

    def step(state, images, texts):
        params, kept = state
        value, gradient = jax.value_and_grad(loss)(params, images, texts)
        update, kept = optimizer.update(gradient, kept, params)
        return (optax.apply_updates(params, update), kept), value

    with jax.set_mesh(mesh):
        compiled, text = compiled_with_text(sharding.jit(step, mesh, donate_argnums=0).lower(state, *batch))
    module, entry = program_text.computations(text)
    costs = hlo.count(module, entry)
    waits = estimate.waiting(module, entry, where, list(mesh.devices.flat))
    seconds, model = costs.cycles / where.chip.clock, flops(args.batch, out)
    mfu, gib = model / (seconds * mesh.size * where.chip.peak), microbatch.needed(compiled.memory_analysis()) / 2**30
    print(f"{args.peer} on {where}, compiler-estimated ({topology.compiler()}):")
    exposed = f"{1e3 * waits.exposed:.1f} ms" if waits else "of no data sheet"
    print(f"{1e3 * seconds:.1f} ms a step, MFU {mfu:.1%}, waits {exposed}, {gib:.1f} GiB;")
    print(f"{costs.flops * mesh.size / model:.1%} of the model's FLOPs are in the program,", end=" ")
    print(f"without an estimate: {', '.join((*costs.uncosted, *costs.unpriced)) or 'nothing'}")


if __name__ == "__main__":
    main()
