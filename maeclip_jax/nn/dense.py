"""Products with weights, [..., D] x [D, E], whose gradient by the weights is computed in the weights' own order.

jax multiplies the other way round, [E, ...] x [..., D], and transposes what comes out. XLA of jax 0.12 has a fast
product of bfloat16 on CPUs for one of the orders and computes the other in a plain loop, twenty times slower and twelve
times as inexact (LOG.md, findings/jax_weight_gradient_in_bfloat16_on_cpu.sh).
Compilers for TPUs and GPUs make the same of both.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn.broadcast import broadcast


@jax.custom_vjp
def product(x: jax.Array, kernel_DxE: jax.Array) -> jax.Array:
    """`x @ kernel`: [..., D] -> [..., E] in the dtype of both, which is the same. Differentiable in reverse mode."""
    return x @ kernel_DxE


def _forward(x, kernel):
    # Only what the backward pass will use is kept for it.
    saved = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return x.value @ kernel.value, saved


def _backward(saved, d_out):
    x, kernel = saved
    if isinstance(d_out, jax.custom_derivatives.SymbolicZero):
        return None, None
    rows = tuple(range(d_out.ndim - 1))
    d_x = None if kernel is None else jax.lax.dot_general(d_out, kernel, (((d_out.ndim - 1,), (1,)), ((), ())))
    d_kernel = None if x is None else jax.lax.dot_general(x, d_out, ((rows, rows), ((), ())))
    return d_x, d_kernel


product.defvjp(_forward, _backward, symbolic_zeros=True)


class Dense(nn.Module):
    """[..., D] -> [..., features] in `dtype` (None: that of the input and the parameters, promoted).

    Parameters are named, drawn and kept in float32 as those of flax's Dense.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = product(x, kernel)
        return y if bias is None else y + broadcast(bias, y.shape)
