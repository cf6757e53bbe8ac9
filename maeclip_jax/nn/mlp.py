"""A block's second half, x + mlp(norm(x)), forward and backward, on a mesh of devices: `mlp=fused`.

What is between the two products, four times as wide as the tokens, stays in the chip's own memory: written out and read
again it costs a v6e, whose products are fast, more than the products. So do the normalised tokens and the sum, which
XLA hides in its own products and cannot hide in a kernel's (LOG.md). `mlp_device` has what a device does.

The second matrix comes transposed, [D, F]: gathered from devices that share its columns it lies so already. Lowered for
anything but a TPU, plain XLA computes the same; `mlp=fused_interpret` runs the kernels' own code anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from maeclip_jax.nn import block_half
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

    `scale` and `shift`: of the LayerNorm, float32, whose `eps` is given. `name`: of the activation `act`, a key of
    `transformer.ACTIVATIONS`, which a kernel may compute otherwise (`mlp_device.IN_KERNEL`). On a mesh the batch is
    split over (replica, fsdp), hidden units over `tensor`, and weights are gathered over fsdp.
    """
    how = Mlp(act, name, eps, interpret)
    return _mlp(how, x_BxNxD, scale_D, shift_D, up_DxF, up_bias_F, down_FxD.T, down_bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(how, x, *weights):
    return _forward(how, x, *weights)[0]


def _forward(how, x, *weights):
    return block_half.forward(how, x, (), weights)[0], (x, weights)


def _backward(how, saved, dy):
    x, weights = saved
    return block_half.backward(how, x, dy, (), (), weights)


_mlp.defvjp(_forward, _backward)
