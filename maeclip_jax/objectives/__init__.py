"""Objectives: one file each, one line each in `make`. The train loop knows none of them.

An objective is a flax.linen Module, duck-typed, no base class:

    __call__(batch, *, train) -> (loss, metrics)     scalar loss, dict of named scalars; needs rngs={"mask": key}
    draw(batch, *, train) -> {name: [B, ...]}        what is random of each example ([1, ...]: of all alike); with
                                                     rngs; may be absent, where nothing is
    local(batch, drawn, *, train) -> {name: [B, ...]}    what each example says alone, without randomness of its own
    combine(made, *, train) -> (loss, metrics)       of the whole batch; `__call__` is this of `local` of `draw`, which
                                                     is what trains in micro-batches; without the three, all at once
    teacher(params) -> tree                          what the loss needs beside parameters and no gradient moves, before
                                                     the first step: the collection "teacher" of `local` and `combine`,
                                                     which may move it; kept in the state; with `follow`, may be absent
    follow(teacher, params) -> tree                  that after an update has made `params`
    encode(batch) -> {stream: Tokens}                dense, unmasked, after the final norm
    embed(batch) -> {stream: [B, D]}                 pooled (+ projected, L2-normalised where contrastive)
    features(batch, pools) -> {pool: [B, D]}         pictures under several poolings, before any projection (nn.pool)
    dense(batch) -> {"image": [B, N, D]}             every patch where texts are compared with it; only contrastive ones
    reconstruct(batch, words) -> dict                pictures and captions filled in, these with the first `words` ids
                                                     (as many as the tokenizer has); only objectives with a decoder
    inputs() -> {name: ShapeDtypeStruct}             what one example must hold
    outputs() -> {name: size}                        vocabularies of the data that targets come from; only with targets
    streams, contrastive, generative                 what evaluators may ask of it; `contrastive` needs a batch of pairs
    doubt(metrics, batch_size) -> str                what makes a step useless, for a warning; may be absent
    crashes_in_parts                                 versions of jax whose compiler crashes on it in micro-batches, as
                                                     they begin; may be absent
    units                                            metric -> (unit, which direction is better); may be absent

Either modality may be absent from a batch given to `encode` and `embed`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import flax.linen as nn
from flax.core import FrozenDict

from maeclip_jax import errors


def table() -> dict[str, type]:
    """Name, as a config calls it -> the class."""
    from maeclip_jax.objectives.clip import Clip
    from maeclip_jax.objectives.mae_clip import MaeClip
    from maeclip_jax.objectives.masked import Masked
    from maeclip_jax.objectives.silc import Silc
    from maeclip_jax.objectives.slip import Slip
    from maeclip_jax.objectives.tips import Tips
    from maeclip_jax.objectives.vqa import Vqa

    return {
        "mae": Masked,
        "m3ae": Masked,
        "clip": Clip,
        "mae_clip": MaeClip,
        "slip": Slip,
        "silc": Silc,
        "tips": Tips,
        "vqa": Vqa,
    }


def make(name: str, model: Mapping) -> nn.Module:
    """The objective `name` built from the config's `model` section (its sub-dicts are constructor arguments).

    `name`: one of `table()`, or "module:Class" of an objective that lives elsewhere ("__main__:Class" in a notebook).
    """
    module = _elsewhere(name) if ":" in name else errors.choose("objective", name, table())
    fields = {f for f in module.__dataclass_fields__ if f not in ("parent", "name")}
    for key in model:
        if key not in fields:
            raise errors.unknown(f"setting of objective {name!r}", key, sorted(fields))
    return module(**_frozen(model))


def _elsewhere(name: str) -> type:
    """The class of "module:Class"; UserError if it cannot be imported or lacks what every objective has."""
    made = errors.class_elsewhere("objective", name, table(), lambda cls: issubclass(cls, nn.Module))
    missing = [method for method in ("inputs", "encode", "embed") if not hasattr(made, method)]
    if missing:
        raise errors.UserError(f"objective {name!r} has no {missing[0]}(); see the docstring of maeclip_jax.objectives")
    if hasattr(made, "reconstruct") and "words" not in inspect.signature(made.reconstruct).parameters:
        raise errors.UserError(
            f"objective {name!r}: reconstruct() does not take `words`; see the docstring of maeclip_jax.objectives"
        )
    return made


def _frozen(value):
    """ConfigDicts and dicts as FrozenDicts: a module can then be hashed and compared, so jit may take it as static."""
    return FrozenDict({k: _frozen(v) for k, v in value.items()}) if hasattr(value, "items") else value
