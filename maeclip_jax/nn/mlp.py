"""A block's second half, x + mlp(norm(x)), forward and backward, on a mesh of devices: `mlp=fused`.

What is between the two products, four times as wide as the tokens, stays in the chip's own memory: written out and read
again it costs a v6e, whose products are fast, more than the products. So do the normalised tokens and the sum, which
XLA hides in its own products and cannot hide in a kernel's (LOG.md). `mlp_device` has what a device does.

The second matrix comes transposed, [D, F]: gathered from devices that share its columns it lies so already. Lowered for
anything but a TPU, plain XLA computes the same; `mlp=fused_interpret` runs the kernels' own code anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from maeclip_jax.nn import mesh
from maeclip_jax.nn.mlp_device import Mlp


def fused(
    x_BxNxD: jax.Array,
    scale_D: jax.Array,
    shift_D: jax.Array,
    up_DxF: jax.Array,
    up_bias_F: jax.Array,
    down_FxD: jax.Array,
    down_bias_D: jax.Array,
    *,
    act: Callable[[jax.Array], jax.Array],
    name: str,
    eps: float = 1e-6,
    interpret: bool = False,
) -> jax.Array:
    """x + act(norm(x) up + up_bias) down + down_bias -> [B, N, D] in the dtype of `x`; what is between in float32.

    `scale` and `shift`: of the LayerNorm, float32, whose `eps` is given. `name` of the activation, for profiles. On a
    mesh the batch is split over (replica, fsdp), hidden units over `tensor`, and weights are gathered over fsdp.
    """
    how = Mlp(act, name, eps, interpret)
    return _mlp(how, x_BxNxD, scale_D, shift_D, up_DxF, up_bias_F, down_FxD.T, down_bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(how, x, scale, shift, up, up_bias, down, down_bias):
    return _forward(how, x, scale, shift, up, up_bias, down, down_bias)[0]


def _forward(how, x, scale, shift, up, up_bias, down, down_bias):
    rows, tensor = mesh.parts(x.shape[0])
    # Where hidden units are split over devices, what is not of them is added to the sum of their parts.
    own = dataclasses.replace(how, residual=not mesh.shared(tensor))

    def device(*args):
        return (mesh.summed(own.forward(*args), tensor),)

    columns = jax.P(None, tensor)
    ins = jax.P(rows), jax.P(), jax.P(), columns, columns, columns, jax.P()
    args = x, scale[None], shift[None], up, up_bias[None], down, down_bias[None]
    y = mesh.on_mesh(device, ins, (jax.P(rows),))(*args)[0]
    y = y if own.residual else x + (y + down_bias.astype(y.dtype)[None, None])
    return y, (x, scale, shift, up, up_bias, down, down_bias)


def _backward(how, saved, dy):
    x, scale, shift, up, up_bias, down, down_bias = saved
    rows, tensor = mesh.parts(x.shape[0])
    own = dataclasses.replace(how, residual=not mesh.shared(tensor))
    split, total = mesh.sum_of_gradients(rows, up.shape[0])

    def device(x, dy, *weights):
        dx, d_scale, d_shift, d_up, d_up_bias, d_down, d_down_bias = own.backward(x, dy, *weights)
        d_norm = (mesh.summed(d, tensor) for d in (d_scale, d_shift))
        vectors = (jax.lax.psum(d[0], rows) if rows else d[0] for d in (*d_norm, d_up_bias, d_down_bias))
        return mesh.summed(dx, tensor), *vectors, total(d_up), total(d_down)

    columns = jax.P(None, tensor)
    ins = jax.P(rows), jax.P(rows), jax.P(), jax.P(), columns, columns, columns
    outs = jax.P(rows), jax.P(), jax.P(), jax.P(tensor), jax.P(), jax.P(split, tensor), jax.P(split, tensor)
    args = x, dy, scale[None], shift[None], up, up_bias[None], down
    dx, d_scale, d_shift, d_up_bias, d_down_bias, d_up, d_down = mesh.on_mesh(device, ins, outs)(*args)
    vectors = ((d_scale, scale), (d_shift, shift), (d_up_bias, up_bias), (d_down_bias, down_bias))
    d_scale, d_shift, d_up_bias, d_down_bias = (d.astype(of.dtype) for d, of in vectors)
    return dx if own.residual else dx + dy, d_scale, d_shift, d_up, d_up_bias, d_down, d_down_bias


_mlp.defvjp(_forward, _backward)
