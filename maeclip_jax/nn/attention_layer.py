"""A block's first half, x + attention(norm(x)), forward and backward, on a mesh of devices: `attention=fused_layer`.

On a v6e, whose products are fast, what XLA does around a kernel of attention alone (norms, biases, sums with the
tokens, their gradients, and queries, keys and values written out before they are read again) takes as long as the
products of the projections, and on a v5e a part of it (LOG.md). `attention_layer_device` has what a device does; `mlp`
is the second half.

The projection behind attention goes to a device transposed, [D, W]: gathered from devices that share its columns it
lies so already. Lowered for anything but a TPU, plain XLA computes the same; `attention=fused_layer_interpret` runs the
kernels' own code anywhere.
"""

from __future__ import annotations

import functools

import jax

from maeclip_jax.nn import block_half
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
def _layer(how, x, hidden, *weights):
    return _forward(how, x, hidden, *weights)[0]


def _forward(how, x, hidden, *weights):
    y, *kept = block_half.forward(how, x, (hidden,), weights, keeps=3)
    return y, (x, hidden, kept, weights)


def _backward(how, saved, dy):
    x, hidden, kept, weights = saved
    dx, *d_weights = block_half.backward(how, x, dy, (hidden,), kept, weights)
    return dx, None, *d_weights


_layer.defvjp(_forward, _backward)
