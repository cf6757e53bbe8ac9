"""The objectives in the smallest size that still has several layers of everything, and one batch for all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from maeclip_jax import objectives
from maeclip_jax.nn.tower import Decoder
from tests.parameters import random_parameters

IMAGE = dict(size=16, patch=4, width=8, depth=2, heads=2, cls=False, pool="gap")  # 16 patches of 48 numbers
TEXT = dict(vocab=13, length=8, width=8, depth=2, heads=2, causal=False, position="learned", pool="gap")
DECODER = dict(width=8, depth=1, heads=2)
CLIP = dict(image_tower=IMAGE, text_tower=TEXT, embed_width=6)
DISTIL = dict(
    globals=2, locals=2, first="picture", global_area=(0.4, 1.0), local_area=(0.05, 0.4), local_patches=2,
    views="image", hidden=12, width=8, prototypes=16, student_temperature=0.1, teacher_temperature=0.04,
    centring="mean", centre_momentum=0.9, momentum=0.9,
)  # fmt: skip
MODELS = {
    "mae": dict(
        image_tower=IMAGE | dict(cls=True, pool="cls"),
        decoder_tower=DECODER,
        mask=dict(image=0.75),
        weights=dict(image=1.0),
    ),
    "m3ae": dict(
        image_tower=IMAGE | dict(cls=True, pool="cls"),
        text_tower=dict(vocab=13, length=8, position="sincos", std=1.0, pool="gap"),
        decoder_tower=DECODER,
        streams=("image", "text"),
        mask=dict(image=0.75, text=0.5),
        weights=dict(image=1.0, text=0.5),
        norm_pix=False,
    ),
    "clip": CLIP,
    "mae_clip": CLIP
    | dict(
        decoder_tower=DECODER,
        mask=dict(image=0.75, text=0.5),
        weights=dict(contrast=1.0, image=0.1, text=0.05),
    ),
    "silc": CLIP | dict(distil=DISTIL, weights=dict(contrast=1.0, distil=1.0)),
    "tips": CLIP
    | dict(
        distil=DISTIL | dict(globals=1),
        weights=dict(contrast=1.0, distil=1.0, patches=2.0),
        mask=dict(image=0.5),
    ),
    "slip": CLIP | dict(simclr=dict(hidden=12, width=5, temperature=0.1, weight=1.0)),
    "vqa": dict(image_tower=IMAGE, text_tower=TEXT, answers=5, slots=2, fusion_tower=dict(width=8, depth=1, heads=2)),
}

_RNG = np.random.default_rng(0)
LENGTHS = (8, 5, 3, 1)
BATCH = {
    "image": _RNG.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
    "text": np.where(np.arange(8) < np.array(LENGTHS)[:, None], _RNG.integers(1, 13, (4, 8)), 0).astype(np.int32),
    # Two right answers; one; none that is known; half of one.
    "answer": np.array([[1, 3], [2, -1], [-1, -1], [4, -1]], np.int32),
    "score": np.array([[1.0, 1 / 3], [1.0, 0], [0, 0], [2 / 3, 0]], np.float32),
}


def build(name, **changes):
    """The objective `name` with fields of its model replaced."""
    return objectives.make(name, MODELS[name] | changes)


def parameters(module):
    """Random parameters of an objective, the same for every path and shape."""
    return random_parameters(lambda rng, batch: module.init({"params": rng, "mask": rng}, batch, train=True), BATCH)


def apply(module, params, batch, **kwargs):
    """One method of an objective, not compiled; `seed` gives it a mask."""
    seed = kwargs.pop("seed", None)
    rngs = {} if seed is None else {"mask": jax.random.key(seed)}
    return module.apply({"params": params}, batch, rngs=rngs, **kwargs)


@functools.cache
def _compiled(module, train):
    def outputs(params, batch, seed):
        loss, metrics = apply(module, params, batch, train=train, seed=seed)
        out = {
            "loss": loss,
            "metrics": metrics,
            "encode": apply(module, params, batch, method="encode"),
            "embed": apply(module, params, batch, method="embed"),
        }
        if module.generative:  # one seed, one mask: what was predicted for the loss is among what is shown
            out["reconstruct"], kept = apply(
                module, params, batch, method="reconstruct", seed=seed,
                capture_intermediates=lambda m, _: isinstance(m, Decoder),
            )  # fmt: skip
            out["predicted"] = kept["intermediates"]["decoder"]["__call__"][0]
        return out

    return jax.jit(outputs)


def outputs(module, params, batch=BATCH, seed=0, train=True):
    """Everything an objective says about a batch, compiled once per objective, as numpy."""
    return jax.tree.map(np.asarray, _compiled(module, train)(params, batch, jnp.asarray(seed)))
