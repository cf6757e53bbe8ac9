"""Masked autoencoding and language supervision in one tree.

`import maeclip_jax as mc` costs nothing and sets nothing: each name below is imported when it is first used.

    model = mc.load("runs/demo")                                  a model with its preprocessing: mc.Model
    config = mc.experiment("experiments/clip.py:scale=demo")      an experiment's config, to be changed
    model = mc.fit(config, "runs/mine")                           trained with the project's loop

One level down are plain Flax modules (nn), whole objectives, and pure functions on arrays: masking, pixels, pooling,
losses. Shapes stand in names: `tokens_BxNxD`. `mask` True = masked out, `pad` True = padding, everywhere.
"""

from __future__ import annotations

# Public name -> the module it lives in.
_HOMES = {
    "load": "library", "experiment": "library", "fit": "library", "Model": "model", "Filled": "model",
    "UserError": "errors",
    # Masking and pixels: pure functions.
    "Kept": "nn.mask", "keep_count": "nn.mask", "random_keep": "nn.mask", "take": "nn.mask", "restore": "nn.mask",
    "normalise": "nn.pixels", "denormalise": "nn.pixels", "patchify": "nn.pixels", "unpatchify": "nn.pixels",
    # Pooling: `Pool` is the module of a config's word, `pooled` the function of one without parameters.
    "Tokens": "nn.pool", "Pool": "nn.pool", "AttentionPool": "nn.pool", "pooled": "nn.pool",
    # Losses: pure functions.
    "contrastive_softmax": "losses", "contrastive_sigmoid": "losses", "patch_normalise": "losses",
    "reconstruction_image": "losses", "reconstruction_text": "losses",
    # Modules.
    "sincos_1d": "nn.embed", "sincos_2d": "nn.embed", "PatchEmbed": "nn.embed", "TextEmbed": "nn.embed",
    "Encoder": "nn.tower", "Decoder": "nn.tower",
    # Objectives.
    "Masked": "objectives.masked", "Clip": "objectives.clip", "MaeClip": "objectives.mae_clip",
    "Slip": "objectives.slip", "Vqa": "objectives.vqa", "Head": "objectives.clip",
}  # fmt: skip
_MODULES = ("errors", "evals", "interop", "losses", "nn", "objectives", "paths", "preflight", "sharding")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str):
    import importlib

    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; valid: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
