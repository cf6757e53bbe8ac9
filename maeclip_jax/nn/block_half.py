"""Half of a block on a mesh, forward and backward: the tokens, and what is added to them on the arrays of each device.

Tokens are split over (replica, fsdp). Weights come gathered over fsdp and split over `tensor`, by heads or by hidden
units; what devices compute of their parts is summed. A half is the norm, a product with `in` [D, C], what comes of its
columns, and a product with `out` [D, K], which lies transposed. `how` computes it on one device: a dataclass with
`forward`, `backward` and `residual`, as `mlp_device.Mlp` and `attention_layer_device.AttentionLayer` are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from maeclip_jax.nn import mesh

Weights = tuple[jax.Array, ...]  # scale [D], shift [D], in [D, C], in_bias [C], out [D, K], out_bias [D]


def forward(
    how: Any, x_BxNxD: jax.Array, of_rows: Sequence[jax.Array | None], weights: Weights, keeps: int = 0
) -> tuple[jax.Array, ...]:
    """how.forward(x, *of_rows, *weights) of each device -> x with what it adds, and `keeps` arrays [B, N, ...] beside.

    `of_rows`: more arrays that are split as the batch is. Vectors among the weights reach a device as [1, ...].
    """
    rows, tensor = mesh.parts(x_BxNxD.shape[0])
    own = _of_device(how, tensor)

    def device(*args):
        y, *kept = own.forward(*args)
        return mesh.summed(y, tensor), *kept

    columns, of_columns = jax.P(None, tensor), jax.P(rows, None, tensor)
    ins = jax.P(rows), *_split(rows, of_rows), jax.P(), jax.P(), columns, columns, columns, jax.P()
    y, *kept = mesh.on_mesh(device, ins, (jax.P(rows), *(of_columns,) * keeps))(x_BxNxD, *of_rows, *_matrices(weights))
    return y if own.residual else x_BxNxD + (y + weights[-1].astype(y.dtype)[None, None]), *kept


def backward(
    how: Any,
    x_BxNxD: jax.Array,
    dy_BxNxD: jax.Array,
    of_rows: Sequence[jax.Array | None],
    kept: Sequence[jax.Array],
    weights: Weights,
) -> tuple[jax.Array, ...]:
    """how.backward(x, dy, *of_rows, *kept, *weights but out_bias) of each device -> gradients of x and of the weights.

    A device gives those of matrices in their dtype and those of vectors as [1, ...] in float32. Devices that share
    parameters over fsdp keep their part of the sums.
    """
    rows, tensor = mesh.parts(x_BxNxD.shape[0])
    own = _of_device(how, tensor)
    split, total = mesh.sum_of_gradients(rows, weights[2].shape[0])

    def device(*args):
        dx, d_scale, d_shift, d_in, d_in_bias, d_out, d_out_bias = own.backward(*args)
        d_norm = (mesh.summed(d, tensor) for d in (d_scale, d_shift))
        vectors = (jax.lax.psum(d[0], rows) if rows else d[0] for d in (*d_norm, d_in_bias, d_out_bias))
        return mesh.summed(dx, tensor), *vectors, total(d_in), total(d_out)

    columns, of_columns = jax.P(None, tensor), jax.P(rows, None, tensor)
    of_kept, norm = (of_columns for _ in kept), (jax.P(), jax.P())
    ins = jax.P(rows), jax.P(rows), *_split(rows, of_rows), *of_kept, *norm, columns, columns, columns
    outs = jax.P(rows), jax.P(), jax.P(), jax.P(tensor), jax.P(), jax.P(split, tensor), jax.P(split, tensor)
    args = x_BxNxD, dy_BxNxD, *of_rows, *kept, *_matrices(weights)[:-1]
    dx, d_scale, d_shift, d_in_bias, d_out_bias, d_in, d_out = mesh.on_mesh(device, ins, outs)(*args)
    scale, shift, _, in_bias, _, out_bias = weights
    vectors = (d_scale, scale), (d_shift, shift), (d_in_bias, in_bias), (d_out_bias, out_bias)
    d_scale, d_shift, d_in_bias, d_out_bias = (d.astype(of.dtype) for d, of in vectors)
    return dx if own.residual else dx + dy_BxNxD, d_scale, d_shift, d_in, d_in_bias, d_out, d_out_bias


def _of_device(how: Any, tensor: str | None) -> Any:
    """`how` on one device: where columns are split, what is not of them is added to the sum of their parts."""
    return dataclasses.replace(how, residual=not mesh.shared(tensor))


def _split(rows, arrays):
    return (None if a is None else jax.P(rows) for a in arrays)


def _matrices(weights: Weights) -> Weights:
    return tuple(w if w.ndim == 2 else w[None] for w in weights)
