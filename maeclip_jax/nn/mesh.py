"""How activations, weights and sums over rows lie on the mesh in use, said to the compiler while a model computes.

`parallel.sharding` says how parameters lie. Without a mesh in use nothing is said.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from maeclip_jax.nn.kernels import moved

BATCH_AXES = ("replica", "fsdp")
NARROWEST = 32  # columns of a device from which on rows are exchanged for `sum_of_rows`: a quarter of a vector


def free_axes() -> dict[str, int]:
    """Axes of the mesh in use over which the compiler splits arrays, and their sizes; {} without a mesh.

    Within `jax.shard_map` over some axes, every device has its own rows of the batch, and nothing is left to say.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return {name: mesh.shape[name] for name in mesh.axis_names if name not in mesh.manual_axes}


def batch_devices() -> int:
    """Over how many devices the mesh in use splits a batch."""
    return math.prod(size for axis, size in free_axes().items() if axis in BATCH_AXES)


def batch_sharded(x: jax.Array) -> jax.Array:
    """Pins the leading axis of an activation to the mesh's batch axes; a no-op without such a mesh.

    At block borders this keeps FSDP-sharded weights from pulling the activations apart (without it a program that
    fits in 1 GB asked for 1.1 TB of temporaries).
    """
    devices = batch_devices()
    if devices == 1 or x.shape[0] % devices:
        return x
    axes = tuple(a for a in BATCH_AXES if a in free_axes())
    return jax.lax.with_sharding_constraint(x, jax.P(axes, *(None,) * (x.ndim - 1)))


def columns_sharded(x: jax.Array) -> jax.Array:
    """Pins the last axis of an activation to `fsdp` and the leading one to the other batch axes; a no-op without them.

    For logits over classes whose table is split over fsdp: then rows are sent before the product and sums over classes
    after it, not the logits.
    """
    axes = {a: size for a, size in free_axes().items() if a in BATCH_AXES}
    columns = axes.pop("fsdp", 1)
    if columns == 1 or x.shape[-1] % columns or x.shape[0] % math.prod(axes.values()):
        return x
    return jax.lax.with_sharding_constraint(x, jax.P(tuple(axes), *(None,) * (x.ndim - 2), "fsdp"))


def everywhere(x: jax.Array) -> jax.Array:
    """An activation of the whole batch, whole on each device; a no-op without a mesh."""
    return jax.lax.with_sharding_constraint(x, jax.P()) if free_axes() else x


def over_rows(a_BxC: jax.Array, b_BxD: jax.Array) -> jax.Array:
    """a^T b [C, D] in float32, summed over the rows of all devices; rows of it lie as those of a batch.

    Every device adds what it has and keeps its own rows (a reduce-scatter). The compiler would sum all of it on each.
    """
    devices, axes = batch_devices(), tuple(a for a in BATCH_AXES if a in free_axes())
    summed = functools.partial(jnp.einsum, "bc,bd->cd", preferred_element_type=jnp.float32)
    if devices == 1 or a_BxC.shape[0] % devices or a_BxC.shape[1] % devices:
        return summed(a_BxC, b_BxD)

    def device(a, b):
        return jax.lax.psum_scatter(summed(a, b), axes, scatter_dimension=0, tiled=True)

    mesh, rows = jax.sharding.get_abstract_mesh(), jax.P(axes)
    return jax.shard_map(
        device, mesh=mesh, in_specs=(rows, rows), out_specs=rows, axis_names=set(axes), check_vma=False
    )(a_BxC, b_BxD)


def sum_of_rows(function: Callable[..., jax.Array], *rows: jax.Array) -> jax.Array:
    """function(*rows), a sum [C, D] over the rows of a batch, of which every column is made of a column of the last.

    Over `fsdp` each device keeps the columns that it has of the table whose gradient the sum is. Where that is less to
    send, the last of `rows`, [B, ..., D], goes by columns to who adds them up (an all-to-all), and else the sum of each
    device (a reduce-scatter). The compiler would sum all of it on each.
    """
    devices, axes = batch_devices(), tuple(a for a in BATCH_AXES if a in free_axes())
    if devices == 1 or rows[0].shape[0] % devices:
        return function(*rows)
    shards = free_axes().get("fsdp", 1)
    split = "fsdp" if shards > 1 and rows[-1].shape[-1] % shards == 0 else None
    rest = tuple(a for a in axes if a != split)
    # What is exchanged goes over more links than a sum; and adding a row of few columns takes as long as a wide one.
    less = 2 * moved(rows[-1:]) // devices <= moved([jax.eval_shape(function, *rows)])
    exchanged = split and less and rows[-1].shape[-1] >= shards * NARROWEST

    def device(*own):
        if exchanged:
            *others, last = own
            others = (jax.lax.all_gather(x, split, tiled=True) for x in others)
            own = *others, jax.lax.all_to_all(last, split, last.ndim - 1, 0, tiled=True)
        total = function(*own)
        if split and not exchanged:
            total = jax.lax.psum_scatter(total, split, scatter_dimension=1, tiled=True)
        return jax.lax.psum(total, rest) if rest else total

    mesh, own = jax.sharding.get_abstract_mesh(), jax.P(axes)
    return jax.shard_map(
        device, mesh=mesh, in_specs=(own,) * len(rows), out_specs=jax.P(None, split), axis_names=set(axes),
        check_vma=False,
    )(*rows)  # fmt: skip


def gathered(table: jax.Array) -> jax.Array:
    """A sharded table made whole before rows are looked up in it; a no-op without a mesh.

    Otherwise the gradient of the lookup pulls whole activations together to match the table's sharding.
    """
    return everywhere(table)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _once(kernel: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    return jax.lax.with_sharding_constraint(kernel, jax.P(*axes))


# The gradient stays as it is: summed onto the devices that share the parameter, not made whole on each.
_once.defvjp(lambda kernel, axes: (_once(kernel, axes), None), lambda axes, _, d_kernel: (d_kernel,))


def whole(kernel: jax.Array, *axes: str | None) -> jax.Array:
    """A weight gathered over `fsdp`, split over `axes` of its own alone; a no-op without a mesh.

    The backward pass then takes what the forward pass has gathered, unless it computes the block again; by itself the
    compiler gathers a weight for each product.
    """
    free = free_axes()
    return _once(kernel, tuple(a if a in free else None for a in axes)) if free else kernel


# For kernels, which XLA cannot split itself: each device works on its part.


def on_mesh(function: Callable, ins: Sequence[jax.P | None], outs: Sequence[jax.P]) -> Callable:
    """`function` called by each device with its part of arrays, which lie as `ins` and `outs` say."""
    free = free_axes()
    if math.prod(free.values()) == 1:
        return function
    mesh = jax.sharding.get_abstract_mesh()
    made = dict(in_specs=tuple(ins), out_specs=tuple(outs), axis_names=set(free), check_vma=False)
    return jax.shard_map(function, mesh=mesh, **made)


def parts(batch: int) -> tuple[tuple[str, ...] | None, str | None]:
    """(axes over which a batch lies, None if it does not divide over them; the axis of columns). On one device None."""
    free = free_axes()
    if math.prod(free.values()) == 1:
        return None, None
    rows = tuple(a for a in BATCH_AXES if a in free)
    divides = rows and batch % math.prod(free[a] for a in rows) == 0
    return rows if divides else None, "tensor" if "tensor" in free else None


def share(batch: int, columns: int) -> tuple[int, int]:
    """A device's share of a batch and of columns, such as hidden units or heads."""
    free, (rows, tensor) = free_axes(), parts(batch)
    return batch // math.prod(free[a] for a in rows or ()), columns // (free[tensor] if tensor else 1)


def shared(tensor: str | None) -> bool:
    """Whether several devices hold the columns, so that what they compute of them is to be added."""
    return tensor is not None and jax.sharding.get_abstract_mesh().shape[tensor] > 1


def summed(x: jax.Array, tensor: str | None) -> jax.Array:
    """The sum over the devices that share the columns; for functions that `on_mesh` calls."""
    return jax.lax.psum(x, tensor) if shared(tensor) else x


def sum_of_gradients(rows: tuple[str, ...] | None, length: int) -> tuple[str | None, Callable[[jax.Array], jax.Array]]:
    """(the axis over which the gradient of a weight [length, ...] lies; a function that sums it over devices).

    The function is for those that `on_mesh` calls. Devices that share the parameters keep their part (a
    reduce-scatter) before the rest of the sum; left to itself, XLA sums all on each.
    """
    shards = free_axes().get("fsdp", 1)
    split = "fsdp" if rows and shards > 1 and length % shards == 0 else None
    others = tuple(a for a in rows or () if a != split)

    def total(x):
        x = jax.lax.psum_scatter(x, split, tiled=True) if split else x
        return jax.lax.psum(x, others) if others else x

    return split, total
