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
import math
from collections.abc import Callable, Sequence

import jax

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


def _of_device(how: Mlp, tensor: str | None) -> Mlp:
    """Where hidden units are split over devices, what is not of them is added to the sum of their parts."""
    return dataclasses.replace(how, residual=tensor is None or _free()[tensor] == 1)


def _forward(how, x, scale, shift, up, up_bias, down, down_bias):
    rows, tensor, _ = _axes(x.shape[0])
    own = _of_device(how, tensor)

    def device(x, scale, shift, up, up_bias, down, down_bias):
        return (_summed(own.forward(x, scale, shift, up, up_bias, down, down_bias), tensor),)

    ins = jax.P(rows), jax.P(), jax.P(), jax.P(None, tensor), jax.P(None, tensor), jax.P(None, tensor), jax.P()
    args = x, scale[None], shift[None], up, up_bias[None], down, down_bias[None]
    y = _on_mesh(device, ins, (jax.P(rows),))(*args)[0]
    y = y if own.residual else x + (y + down_bias.astype(y.dtype)[None, None])
    return y, (x, scale, shift, up, up_bias, down, down_bias)


def _backward(how, saved, dy):
    x, scale, shift, up, up_bias, down, down_bias = saved
    rows, tensor, _ = _axes(x.shape[0])
    own = _of_device(how, tensor)

    # Gradients of weights are summed in the dtype that products have, as without a kernel. Devices that share the
    # parameters keep their part (a reduce-scatter) before the rest of the sum; left to itself, XLA sums all on each.
    shards = _free().get("fsdp", 1)
    split = "fsdp" if rows and shards > 1 and up.shape[0] % shards == 0 else None
    others = tuple(a for a in rows or () if a != split)

    def summed(x):
        x = jax.lax.psum_scatter(x, split, tiled=True) if split else x
        return jax.lax.psum(x, others) if others else x

    def device(x, dy, *weights):
        dx, d_scale, d_shift, d_up, d_up_bias, d_down, d_down_bias = own.backward(x, dy, *weights)
        d_norm = (_summed(d, tensor) for d in (d_scale, d_shift))
        vectors = (jax.lax.psum(d[0], rows) if rows else d[0] for d in (*d_norm, d_up_bias, d_down_bias))
        return _summed(dx, tensor), *vectors, summed(d_up), summed(d_down)

    wide = jax.P(None, tensor)
    ins = jax.P(rows), jax.P(rows), jax.P(), jax.P(), wide, wide, wide
    outs = jax.P(rows), jax.P(), jax.P(), jax.P(tensor), jax.P(), jax.P(split, tensor), jax.P(split, tensor)
    args = x, dy, scale[None], shift[None], up, up_bias[None], down
    dx, d_scale, d_shift, d_up_bias, d_down_bias, d_up, d_down = _on_mesh(device, ins, outs)(*args)
    vectors = ((d_scale, scale), (d_shift, shift), (d_up_bias, up_bias), (d_down_bias, down_bias))
    d_scale, d_shift, d_up_bias, d_down_bias = (d.astype(of.dtype) for d, of in vectors)
    return dx if own.residual else dx + dy, d_scale, d_shift, d_up, d_up_bias, d_down, d_down_bias


_mlp.defvjp(_forward, _backward)


def _free() -> dict[str, int]:
    """Axes of the mesh over which arrays are not split by hand yet."""
    mesh = jax.sharding.get_abstract_mesh()
    return {a: mesh.shape[a] for a in mesh.axis_names if a not in mesh.manual_axes}


def _axes(batch: int) -> tuple[tuple[str, ...] | None, str | None, int]:
    """(axes of the batch, None if it does not divide over them; axis of the hidden units; parts of the batch).

    None where there is one device.
    """
    free = _free()
    if math.prod(free.values()) == 1:
        return None, None, 1
    rows = tuple(a for a in ("replica", "fsdp") if a in free)
    parts = math.prod(free[a] for a in rows)
    return rows if rows and batch % parts == 0 else None, "tensor" if "tensor" in free else None, parts


def here(batch: int, hidden: int) -> tuple[int, int]:
    """A device's share of a batch and of the hidden units."""
    rows, tensor, parts = _axes(batch)
    return batch // (parts if rows else 1), hidden // (_free()[tensor] if tensor else 1)


def _summed(x: jax.Array, tensor: str | None) -> jax.Array:
    """Over the devices that share the hidden units."""
    return jax.lax.psum(x, tensor) if tensor and jax.sharding.get_abstract_mesh().shape[tensor] > 1 else x


def _on_mesh(function: Callable, ins: Sequence[jax.P], outs: Sequence[jax.P]) -> Callable:
    """`function` on each device's part of arrays: XLA cannot split a kernel itself."""
    free = _free()
    if math.prod(free.values()) == 1:
        return function
    mesh = jax.sharding.get_abstract_mesh()
    made = dict(in_specs=tuple(ins), out_specs=tuple(outs), axis_names=set(free), check_vma=False)
    return jax.shard_map(function, mesh=mesh, **made)
