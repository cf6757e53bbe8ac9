"""Products with weights, [..., D] x [D, E], whose gradient by the weights is computed in the weights' own order.

jax multiplies the other way round, [E, ...] x [..., D], and transposes what comes out. XLA of jax 0.12 has a fast
product of bfloat16 on CPUs for one of the orders and computes the other in a plain loop, twenty times slower and twelve
times as inexact (LOG.md, findings/jax_weight_gradient_in_bfloat16_on_cpu.sh).
Compilers for TPUs and GPUs make the same of both.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax


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


def _dot_general(x, kernel, dimensions, precision=None):
    """What flax's Dense calls; it contracts the last axis of `x` with the first of `kernel`."""
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or precision is not None:
        raise ValueError(
            f"a Dense asks for the product {dimensions} with precision {precision}, which is not x @ kernel"
        )
    return product(x, kernel)


Dense = functools.partial(nn.Dense, dot_general=_dot_general)
