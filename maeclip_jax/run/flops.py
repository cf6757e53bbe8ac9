"""Model FLOPs by counting the matrix products of a traced program, and the peak of the chip they run on.

FLOPs of a training step = 3 x the forward pass's matmul FLOPs (2 per multiply-add; the backward pass costs twice the
forward), counted from the jaxpr of the loss: attention in full, causal attention not halved, masked passes at their
kept tokens, scans by their length, rematerialised work not counted. What has no backward pass, by the name of its
scope (a teacher, crops), counts once. MFU = that / (step time x devices x peak FLOP/s).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax

from maeclip_jax.objectives.distillation import TEACHER
from maeclip_jax.objectives.views import CROPS

FORWARD_ALONE = {TEACHER, CROPS}  # scopes of what has no backward pass
# jax's primitives of cuDNN's attention, which have no program inside that could be counted.
CUDNN = ("dot_product_attention_fwd", "dot_product_attention_fp8_fwd")
FORMULA = (
    "MFU = 3 x forward matmul FLOPs (2 per multiply-add, counted from the program, remat not counted) "
    "/ (step seconds x devices x peak FLOP/s)"
)


def forward_matmul_flops(function: Callable, *args) -> float:
    """Matmul FLOPs of one call of `function` on the WHOLE (unsharded) arguments; arrays or ShapeDtypeStructs."""
    return matmul_flops(jax.make_jaxpr(function)(*args))


def training_matmul_flops(loss: Callable, *args) -> float:
    """Those of a training step with `loss`: 3 times the forward pass's, once what is FORWARD_ALONE."""
    return _count(jax.make_jaxpr(loss)(*args).jaxpr, trained=3.0)


def matmul_flops(traced) -> float:
    """Matmul FLOPs of a program that is traced already (a ClosedJaxpr), on whole arrays."""
    return _count(traced.jaxpr)


def _count(jaxpr, trained: float = 1.0) -> float:
    """`trained`: how often that counts which a gradient goes through."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name, times = eqn.primitive.name, trained
        if trained != 1 and FORWARD_ALONE & set(str(eqn.source_info.name_stack).split("/")):
            times = 1.0
        if name == "dot_general":
            ((lhs_c, _), _) = eqn.params["dimension_numbers"]
            contracted = math.prod(eqn.invars[0].aval.shape[i] for i in lhs_c)
            total += times * 2.0 * math.prod(eqn.outvars[0].aval.shape) * contracted
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += times * 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out_features
        elif name == "pallas_call" and eqn.params["cost_estimate"]:
            total += (
                times * eqn.params["cost_estimate"].flops
            )  # its body works on a piece, and is padded to the chip's tiles
        elif name.startswith(CUDNN):
            query, key = (v.aval.shape for v in eqn.invars[:2])
            layout = eqn.params["layout"]
            keys = key[
                1 + getattr(layout, "value", layout)
            ]  # of [B, tokens, heads, width] or [B, heads, tokens, width]
            made = eqn.outvars[0].aval.shape
            total += times * 2.0 * keys * (math.prod(query) + math.prod(made))  # scores, and values summed by them
        elif name == "cond":
            total += max(_count(branch.jaxpr, times) for branch in eqn.params["branches"])
        else:
            runs = eqn.params["length"] if name == "scan" else 1
            if name == "shard_map":  # its body has the shapes of one device
                runs = math.prod(
                    eqn.params["mesh"].shape[axis]
                    for axis in eqn.params["newly_manual_axes"] or eqn.params["mesh"].axis_names
                )
            for value in eqn.params.values():
                for sub in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(sub, "jaxpr", sub)
                    if hasattr(inner, "eqns"):
                        total += runs * _count(inner, times)
    return total
