"""One mesh, one ordered list of rules, batch placement. "pjit" is jax.jit with NamedSharding.

Axes: `replica` and `fsdp` (the batch is split over both, parameters over `fsdp`), `tensor` (heads and hidden units).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten, map_with_path, match_rules, path_name

AXES = ("replica", "fsdp", "tensor")
BATCH = ("replica", "fsdp")
# From this size on (MiB) the TPU compiler turns a product with a sharded matrix into a loop over windows, which hides
# the gathering of large matrices. Ours are small beside a device's activations, whose layout such loops change again
# and again: never.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}}
# Chips whose compiler makes every collective block the core unless it is told to give them to the SparseCores, by a
# piece of jax's device_kind. OFFLOAD=0 in the environment leaves them to the core.
OFFLOADED = ("v6 lite",)
OFFLOAD = "MAECLIP_SPARSE_CORE_COLLECTIVES"
OFFLOADING = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": True
    for kind in ("all_gather", "reduce_scatter", "all_reduce")
} | {"xla_tpu_use_tc_device_shape_on_sc": True}

# (path regex, spec of the TRAILING axes); a leading layer axis of scanned blocks is never split. First match wins.
RULES: tuple[tuple[str, tuple], ...] = (
    (r".*/(qkv|up|query|key|value)/kernel", ("fsdp", "tensor")),
    (r".*/(out|down)/kernel", ("tensor", "fsdp")),
    (r".*/(patch|project|project_image|project_text)/kernel", (None, "fsdp")),
    (r".*/predict_(image|text)/kernel", ("fsdp", None)),
    (r".*/token/embedding", (None, "fsdp")),
    (r".*/prototypes", (None, "fsdp")),
    # The unsharded remainder: vectors and scalars.
    (r".*", ()),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """The mesh (replica, fsdp, tensor) over `devices` (default: all). One size may be -1: what is left.

    Process p of P holds the p-th of P equal parts of the batch axes, as the input pipeline reads it. Raises UserError
    when the sizes do not multiply to the number of devices, or `tensor` reaches over several processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: int(shape.get(axis, 1)) for axis in AXES}
    unknown = set(shape) - set(AXES)
    if unknown:
        raise UserError(f"unknown mesh axis {sorted(unknown)[0]!r}; valid: {', '.join(AXES)}")
    free = [a for a, n in sizes.items() if n == -1]
    fixed = math.prod(n for n in sizes.values() if n != -1)
    if len(free) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
        raise UserError(
            f"mesh {dict(shape)}: sizes are positive, and one of {', '.join(AXES)} may be -1 (what is left)"
        )
    if free:
        sizes[free[0]] = max(1, len(devices) // fixed)
    if math.prod(sizes.values()) != len(devices):
        want = " x ".join(f"{a}={n}" for a, n in sizes.items())
        raise UserError(
            f"mesh {want} needs {math.prod(sizes.values())} devices, but there are {len(devices)}; set one axis of "
            "config.mesh to -1 to take what is left"
        )
    if devices == jax.devices():  # lets jax order devices along the interconnect
        mesh = jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3)
        if in_process_order(mesh.devices):
            return mesh
        devices.sort(key=lambda d: (d.process_index, d.id))
    grid = np.asarray(devices).reshape(tuple(sizes.values()))
    if not in_process_order(grid):
        raise UserError(
            f"mesh tensor={sizes['tensor']} reaches over several processes; valid: divisors of "
            f"{len(devices) // len({d.process_index for d in devices})}, the devices of one process"
        )
    return Mesh(grid, AXES)


def in_process_order(devices: np.ndarray) -> bool:
    """Whether [replica, fsdp, tensor] `devices` give each process whole batch shards, in the order of processes."""
    process = np.vectorize(lambda d: d.process_index, otypes=[int])(devices).reshape(-1, devices.shape[-1])
    return bool((process == process[:, :1]).all() and (np.diff(process[:, 0]) >= 0).all())


def specs(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, tuple]] = RULES) -> Any:
    """A PartitionSpec per leaf of a parameter tree (arrays or shapes), by `rules`.

    An axis of size 1 is dropped from specs, so that one device and many give the same program text. Raises UserError
    for a dimension that does not divide, naming parameter, size and axis; and, for rules other than RULES, for a
    parameter that no rule matches or a rule that matches none.
    """
    trailing = match_rules(rules, tree, "sharding", strict=rules is not RULES)  # ours serve every objective

    def spec(path: str, leaf, axes: tuple) -> P:
        if len(axes) > leaf.ndim:
            raise UserError(f"sharding rule gives {path!r} {len(axes)} axes, but it has {leaf.ndim}")
        axes = tuple(a if a and mesh.shape[a] > 1 else None for a in axes)
        axes = (None,) * (leaf.ndim - len(axes)) + axes
        for size, axis in zip(leaf.shape, axes):
            if axis and size % mesh.shape[axis]:
                raise UserError(f"parameter {path!r} {leaf.shape}: {size} does not divide by {axis}={mesh.shape[axis]}")
        return P(*axes) if any(axes) else P()

    flat, tree_def = jax.tree_util.tree_flatten_with_path(tree)
    values = tree_def.flatten_up_to(trailing)
    return tree_def.unflatten([spec(path_name(p), leaf, v) for (p, leaf), v in zip(flat, values)])


def optimizer_specs(opt_state: Any, params: Any, param_specs: Any) -> Any:
    """Specs of an optimizer state: a leaf whose path ends in a parameter's path and has its shape is split like it."""
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    by_path = {path_name(p): s for p, s in jax.tree_util.tree_flatten_with_path(
        param_specs, is_leaf=lambda x: isinstance(x, P))[0]}  # fmt: skip

    def spec(path: str, leaf) -> P:
        parts = path.split("/")
        for i in range(len(parts)):  # longest suffix first
            tail = "/".join(parts[i:])
            if tail in by_path and shapes[tail] == leaf.shape:
                return by_path[tail]
        return P()

    return map_with_path(spec, opt_state)


def named(tree_of_specs: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every spec."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), tree_of_specs, is_leaf=lambda x: isinstance(x, P))


def jit(function: Callable, mesh: Mesh, **kwargs) -> Any:
    """`jax.jit` with the compiler's options for the mesh's devices."""
    return jax.jit(function, compiler_options=compiler_options(mesh), **kwargs)


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """What the compiler is told of a program for these devices; None for nothing."""
    device = mesh.devices.flat[0]
    options = COMPILER_OPTIONS.get(device.platform)
    several = mesh.size > 1 and any(piece in device.device_kind for piece in OFFLOADED)
    return options | OFFLOADING if options and several and os.environ.get(OFFLOAD, "1") != "0" else options


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: leading axis over (replica, fsdp)."""
    return NamedSharding(mesh, P(BATCH))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the batch axis is split."""
    return math.prod(mesh.shape[a] for a in BATCH)


def slices(mesh: Mesh) -> int:
    """How many slices of TPUs the devices are of; 1 of other devices."""
    return len({getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat})


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError if a global batch does not divide over the batch axes."""
    parts = batch_shards(mesh)
    if batch_size < 1 or batch_size % parts:
        raise UserError(
            f"batch_size {batch_size} (global) does not divide over {parts} batch shards; use a multiple of {parts}"
        )


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of every array -> the global arrays, split over the batch axes. Asynchronous."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put(value: np.ndarray, like: Any) -> jax.Array:
    """A host array as a device array with the dtype and sharding of `like`; every process holds the whole value."""
    value = np.asarray(value).astype(like.dtype)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])
