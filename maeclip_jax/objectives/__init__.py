"""Objectives: one file each, one line each in `make`. The train loop knows none of them.

An objective is a flax.linen Module, duck-typed, no base class:

    __call__(batch, *, train) -> (loss, metrics)     scalar loss, dict of named scalars; needs rngs={"mask": key}
    encode(batch) -> {stream: Tokens}                dense, unmasked, after the final norm
    embed(batch) -> {stream: [B, D]}                 pooled (+ projected, L2-normalised where contrastive)
    features(batch, pools) -> {pool: [B, D]}         pictures under several poolings, before any projection (nn.pool)
    dense(batch) -> {"image": [B, N, D]}             every patch where texts are compared with it; only contrastive ones
    reconstruct(batch) -> dict                       pictures and captions filled in; only objectives with a decoder
    inputs() -> {name: ShapeDtypeStruct}             what one example must hold
    outputs() -> {name: size}                        vocabularies of the data that targets come from; only with targets
    streams, contrastive, generative                 what evaluators may ask of it

Either modality may be absent from a batch given to `encode` and `embed`.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
from flax.core import FrozenDict

from maeclip_jax import errors


def make(name: str, model: Mapping) -> nn.Module:
    """The objective `name` built from the config's `model` section (its sub-dicts are constructor arguments)."""
    from maeclip_jax.objectives.clip import Clip
    from maeclip_jax.objectives.mae_clip import MaeClip
    from maeclip_jax.objectives.masked import Masked
    from maeclip_jax.objectives.vqa import Vqa

    table = {"mae": Masked, "m3ae": Masked, "clip": Clip, "mae_clip": MaeClip, "vqa": Vqa}
    module = errors.choose("objective", name, table)
    fields = {f for f in module.__dataclass_fields__ if f not in ("parent", "name")}
    for key in model:
        if key not in fields:
            raise errors.unknown(f"setting of objective {name!r}", key, sorted(fields))
    return module(**_frozen(model))


def _frozen(value):
    """ConfigDicts and dicts as FrozenDicts: a module can then be hashed and compared, so jit may take it as static."""
    return FrozenDict({k: _frozen(v) for k, v in value.items()}) if hasattr(value, "items") else value


NAMES = ("mae", "m3ae", "clip", "mae_clip", "vqa")
