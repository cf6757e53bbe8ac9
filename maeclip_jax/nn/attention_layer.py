"""A block's first half, x + attention(norm(x)), forward and backward, on a mesh of devices: `attention=fused_layer`.

On a v6e, whose products are fast, what XLA does around a kernel of attention alone (norms, biases, sums with the
tokens, their gradients, and queries, keys and values written out before they are read again) takes as long as the
products of the projections (LOG.md). `attention_layer_device` has what a device does; `mlp` is the second half.

The projection behind attention goes to a device transposed, [D, W]: gathered from devices that share its columns it
lies so already. Lowered for anything but a TPU, plain XLA computes the same; `attention=fused_layer_interpret` runs the
kernels' own code anywhere.
"""

from __future__ import annotations

import dataclasses
import functools

import jax

from maeclip_jax.nn import mesh
from maeclip_jax.nn.attention import MOST_TOKENS, hidden_scores
from maeclip_jax.nn.attention_layer_device import AttentionLayer


def fused(
    x_BxNxD: jax.Array,
    pad_BxN: jax.Array | None,
    scale_D: jax.Array,
    shift_D: jax.Array,
    in_Dx3W: jax.Array,
    in_bias_3W: jax.Array,
    out_WxD: jax.Array,
    out_bias_D: jax.Array,
    *,
    heads: int,
    causal: bool = False,
    eps: float = 1e-6,
    interpret: bool = False,
) -> jax.Array:
    """x + attention(norm(x) in + in_bias) out + out_bias -> [B, N, D] in the dtype of `x`; what is between in float32.

    `pad`: True for padding, which no token attends to. `in`: columns as `attention.in_order` leaves them. `scale` and
    `shift`: of the LayerNorm, float32, whose `eps` is given. On a mesh the batch is split over (replica, fsdp), heads
    over `tensor`, and weights are gathered over fsdp. Raises ValueError for more than MOST_TOKENS tokens.
    """
    if x_BxNxD.shape[1] > MOST_TOKENS:
        valid = f"up to {MOST_TOKENS} tokens, not {x_BxNxD.shape[1]}; valid here: xla"
        raise ValueError(f"attention fused_layer takes {valid}")
    how = AttentionLayer(out_WxD.shape[0] // heads, causal, eps, interpret)
    return _layer(how, x_BxNxD, hidden_scores(pad_BxN), scale_D, shift_D, in_Dx3W, in_bias_3W, out_WxD.T, out_bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(how, x, hidden, scale, shift, in_, in_bias, out, out_bias):
    return _forward(how, x, hidden, scale, shift, in_, in_bias, out, out_bias)[0]


def _forward(how, x, hidden, scale, shift, in_, in_bias, out, out_bias):
    rows, tensor = mesh.parts(x.shape[0])
    # Where heads are split over devices, what is not of them is added to the sum of their parts.
    own = dataclasses.replace(how, residual=not mesh.shared(tensor))

    def device(*args):
        y, *saved = own.forward(*args)
        return mesh.summed(y, tensor), *saved

    columns, of_heads = jax.P(None, tensor), jax.P(rows, None, tensor)
    masked = None if hidden is None else jax.P(rows)
    ins = jax.P(rows), masked, jax.P(), jax.P(), columns, columns, columns, jax.P()
    args = x, hidden, scale[None], shift[None], in_, in_bias[None], out, out_bias[None]
    y, *saved = mesh.on_mesh(device, ins, (jax.P(rows), of_heads, of_heads, of_heads))(*args)
    y = y if own.residual else x + (y + out_bias.astype(y.dtype)[None, None])
    return y, (x, hidden, *saved, scale, shift, in_, in_bias, out, out_bias)


def _backward(how, saved, dy):
    x, hidden, qkv, attended, lse, scale, shift, in_, in_bias, out, out_bias = saved
    rows, tensor = mesh.parts(x.shape[0])
    own = dataclasses.replace(how, residual=not mesh.shared(tensor))
    split, total = mesh.sum_of_gradients(rows, in_.shape[0])

    def device(*args):
        dx, d_scale, d_shift, d_in, d_in_bias, d_out, d_out_bias = own.backward(*args)
        d_norm = (mesh.summed(d, tensor) for d in (d_scale, d_shift))
        vectors = (jax.lax.psum(d[0], rows) if rows else d[0] for d in (*d_norm, d_in_bias, d_out_bias))
        return mesh.summed(dx, tensor), *vectors, total(d_in), total(d_out)

    columns, of_heads = jax.P(None, tensor), jax.P(rows, None, tensor)
    masked = None if hidden is None else jax.P(rows)
    ins = jax.P(rows), jax.P(rows), masked, of_heads, of_heads, of_heads, jax.P(), jax.P(), columns, columns
    outs = jax.P(rows), jax.P(), jax.P(), jax.P(tensor), jax.P(), jax.P(split, tensor), jax.P(split, tensor)
    args = x, dy, hidden, qkv, attended, lse, scale[None], shift[None], in_, out
    dx, d_scale, d_shift, d_in_bias, d_out_bias, d_in, d_out = mesh.on_mesh(device, ins, outs)(*args)
    vectors = ((d_scale, scale), (d_shift, shift), (d_in_bias, in_bias), (d_out_bias, out_bias))
    d_scale, d_shift, d_in_bias, d_out_bias = (d.astype(of.dtype) for d, of in vectors)
    dx = dx if own.residual else dx + dy
    return dx, None, d_scale, d_shift, d_in, d_in_bias, d_out, d_out_bias


_layer.defvjp(_forward, _backward)
