"""A fused MLP, forward and backward, as two Pallas kernels for TPU: `mlp=fused`.

What is between the two products, four times as wide as the tokens, stays in the chip's own memory: written out and read
again it costs a v6e, whose products are fast, more than the products (LOG.md). The backward pass computes it again from
the tokens. A step of the grid works on some samples and on a part of the hidden units.

Samples lie beside each other as [B, N, D], and N rows rarely fill the chip's tiles: a block's are put together once, so
that products see as many rows as possible. Lowered for anything but a TPU, plain XLA computes the same;
`mlp=fused_interpret` runs the kernels' own code anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, ROW_TILE = 128, 16  # of a bfloat16 tile
VMEM = 112 * 2**20  # bytes of a v6e's own 128 MiB that a kernel may take
LEAST_ROWS = 4096  # tokens of a device from which on it was seen to be faster (LOG.md)
# Forward and backward: tokens of a step, hidden units of a step, at most. Few of either leave the matrix units idle
# between steps; the backward pass keeps more of both at a time.
ROWS, UNITS = {"forward": 1024, "backward": 1600}, {"forward": 1024, "backward": 512}
# Share of the steps in which a kernel's branches run, in their order: of the parts of the hidden units, the first and
# the last; of the blocks of samples, the last. A pre-flight multiplies with it.
BRANCHES = {"forward": ("units", "units"), "backward": ("units", "units", "rows")}
AB, ABT, ATB = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # axes contracted in a @ b, a @ b.T, a.T @ b


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a pass divides the work: `samples` and hidden `units` of a step, `steps` of both, bytes of `memory`."""

    samples: int
    units: int
    steps: tuple[int, int]
    memory: int


def plan(way: str, batch: int, tokens: int, width: int, hidden: int, item: int = 2) -> Plan | None:
    """The plan of a pass over [batch, tokens, width] of `item` bytes on a device; None if nothing fits in its memory.

    As many samples at a time as ROWS and VMEM allow and divide the batch.
    """
    units = next((n for n in range(UNITS[way], 0, -LANES) if hidden % n == 0), hidden)
    for samples in sorted((n for n in range(1, batch + 1) if batch % n == 0), reverse=True):
        rows = _rows(samples, tokens)
        windows = (2 if way == "forward" else 3) * 2 * rows * width * item  # of tokens in and out, two each
        weights = (2 if way == "forward" else 4) * 2 * width * units * item
        kept = rows * width * (item + 4) if way == "forward" else rows * width * (2 * item + 4) + 8 * width * hidden
        memory = windows + weights + kept + rows * units * (8 if way == "forward" else 16)
        if (rows <= ROWS[way] or samples == 1) and memory <= VMEM:
            return Plan(samples, units, (batch // samples, hidden // units), memory)
    return None


def worthwhile(rows_BxN: tuple[int, int], width: int, hidden: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels are for a device's share of a batch: see LEAST_ROWS, and whole tiles that fit in VMEM."""
    (batch, tokens), item = rows_BxN, jnp.dtype(dtype).itemsize
    whole = width % LANES == 0 and hidden % LANES == 0 and item == 2
    return (
        whole and batch * tokens >= LEAST_ROWS
        and all(plan(way, batch, tokens, width, hidden, item) for way in ("forward", "backward"))
    )  # fmt: skip


def _rows(samples: int, tokens: int) -> int:
    """Rows of so many samples put together, filled up to whole tiles with zeros, which add nothing anywhere."""
    return -(-samples * tokens // ROW_TILE) * ROW_TILE


def fused(
    x_BxNxD: jax.Array,
    up_DxF: jax.Array,
    up_bias_F: jax.Array,
    down_FxD: jax.Array,
    down_bias_D: jax.Array,
    *,
    act: Callable[[jax.Array], jax.Array],
    name: str,
    interpret: bool = False,
) -> jax.Array:
    """act(x up + up_bias) down + down_bias -> [B, N, D] in the dtype of `x`; what is between in float32.

    `name` of the activation, for profiles. On a mesh the batch is split over (replica, fsdp), hidden units over
    `tensor`, and weights are gathered over fsdp.
    """
    return _mlp(Mlp(act, name, interpret), x_BxNxD, up_DxF, up_bias_F, down_FxD, down_bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(how, x, up, up_bias, down, down_bias):
    return _forward(how, x, up, up_bias, down, down_bias)[0]


def _forward(how, x, up, up_bias, down, down_bias):
    rows, tensor, _ = _axes(x.shape[0])

    def device(x, up, up_bias, down):
        return (_summed(how.forward(x, up, up_bias[None], down), tensor),)

    ins = jax.P(rows), jax.P(None, tensor), jax.P(tensor), jax.P(tensor)
    y = _on_mesh(device, ins, (jax.P(rows),))(x, up, up_bias, down)[0]
    return y + down_bias.astype(y.dtype)[None, None], (x, up, up_bias, down, down_bias)


def _backward(how, saved, dy):
    x, up, up_bias, down, down_bias = saved
    rows, tensor, _ = _axes(x.shape[0])

    # Gradients of weights are summed in the dtype that products have, as without a kernel. Devices that share the
    # parameters keep their part (a reduce-scatter) before the rest of the sum; left to itself, XLA sums all on each.
    shards = _free().get("fsdp", 1)
    split = "fsdp" if rows and shards > 1 and up.shape[0] % shards == 0 else None
    others = tuple(a for a in rows or () if a != split)

    def summed(x, axis):
        x = jax.lax.psum_scatter(x, split, scatter_dimension=axis, tiled=True) if split else x
        return jax.lax.psum(x, others) if others else x

    def device(x, dy, up, up_bias, down):
        dx, d_up, d_up_bias, d_down, d_down_bias = how.backward(x, dy, up, up_bias[None], down)
        d_up_bias, d_down_bias = (jax.lax.psum(b[0], rows) if rows else b[0] for b in (d_up_bias, d_down_bias))
        return _summed(dx, tensor), summed(d_up, 0), d_up_bias, summed(d_down, 1), d_down_bias

    ins = jax.P(rows), jax.P(rows), jax.P(None, tensor), jax.P(tensor), jax.P(tensor)
    outs = jax.P(rows), jax.P(split, tensor), jax.P(tensor), jax.P(tensor, split), jax.P()
    dx, d_up, d_up_bias, d_down, d_down_bias = _on_mesh(device, ins, outs)(x, dy, up, up_bias, down)
    return dx, d_up, d_up_bias.astype(up_bias.dtype), d_down, d_down_bias.astype(down_bias.dtype)


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


@dataclasses.dataclass(frozen=True)
class Mlp:
    """The MLP with activation `act` on the arrays of one device, by kernel or by XLA."""

    act: Callable[[jax.Array], jax.Array]
    name: str
    interpret: bool

    def forward(self, x, up, up_bias, down):
        """[B, N, D], [D, F], [1, F], [F, D] -> [B, N, D], without the last bias."""
        return self._choose("forward", self._forward_block, self._forward_xla, (x, up, up_bias, down))[0]

    def backward(self, x, dy, up, up_bias, down):
        """-> gradients of x [B, N, D], up [D, F], its bias [1, F] float32, down [F, D], its bias [1, D] float32."""
        return self._choose("backward", self._backward_block, self._backward_xla, (x, dy, up, up_bias, down))

    def _choose(self, way: str, block: Callable, xla: Callable, args):
        def kernel(interpret, *args):
            (batch, tokens, width), (hidden, _), dtype = args[0].shape, args[-1].shape, args[0].dtype
            how = plan(way, batch, tokens, width, hidden, dtype.itemsize)
            if how is None:
                raise ValueError(
                    f"mlp fused: {tokens} tokens {width} wide with {hidden} hidden units do not fit in the chip's own "
                    "memory; valid here: xla"
                )
            samples, units, rows = how.samples, how.units, _rows(how.samples, tokens)
            blocks, parts = how.steps

            def last(i, j):  # of the blocks: results that all of them add to are written then, a part after the other
                return jnp.where(i == blocks - 1, j, 0)

            own = pl.BlockSpec((samples, tokens, width), lambda i, j: (i, 0, 0))
            weights = [
                pl.BlockSpec((width, units), lambda i, j: (0, j)),
                pl.BlockSpec((1, units), lambda i, j: (0, j)),
                pl.BlockSpec((units, width), lambda i, j: (j, 0)),
            ]
            outs, out_specs = [jax.ShapeDtypeStruct(args[0].shape, dtype)], [own]
            scratch = [pltpu.VMEM((rows, width), dtype)]
            if way == "backward":
                outs += [jax.ShapeDtypeStruct((width, hidden), dtype), jax.ShapeDtypeStruct((1, hidden), jnp.float32)]
                outs += [jax.ShapeDtypeStruct((hidden, width), dtype), jax.ShapeDtypeStruct((1, width), jnp.float32)]
                out_specs += [
                    pl.BlockSpec((width, units), lambda i, j: (0, last(i, j))),
                    pl.BlockSpec((1, units), lambda i, j: (0, last(i, j))),
                    pl.BlockSpec((units, width), lambda i, j: (last(i, j), 0)),
                    pl.BlockSpec((1, width), lambda i, j: (0, 0)),
                ]
                sums = (parts, width, units), (parts, 1, units), (parts, units, width), (1, width)
                scratch += [pltpu.VMEM((rows, width), dtype), *(pltpu.VMEM(s, jnp.float32) for s in sums)]
            scratch.append(pltpu.VMEM((rows, width), jnp.float32))
            products = 2 if way == "forward" else 5
            moved = sum(x.size * x.dtype.itemsize for x in (*args, *outs))
            moved += (blocks - 1) * sum(x.size * x.dtype.itemsize for x in args[-3:])  # weights, for each block
            return pl.pallas_call(
                functools.partial(block, how.steps),
                grid=how.steps,
                in_specs=[own] * (len(args) - 3) + weights,
                out_specs=out_specs,
                out_shape=outs,
                scratch_shapes=scratch,
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=how.memory + (8 << 20)
                ),
                cost_estimate=pl.CostEstimate(
                    flops=2 * products * batch * tokens * width * hidden,
                    transcendentals=batch * tokens * hidden,
                    bytes_accessed=moved,
                ),
                name=f"mlp_{way}_{self.name}_{blocks}x{parts}_steps",
                interpret=interpret,
            )(*args)

        if self.interpret:
            return tuple(kernel(True, *args))
        # By what the program is lowered for, not where it is traced: pre-flights trace for TPUs on a CPU.
        return jax.lax.platform_dependent(*args, tpu=lambda *a: tuple(kernel(False, *a)), default=xla)

    # Kernels, on references to a block of samples and a part of the weights.

    def _forward_block(self, steps, x, up, up_bias, down, y, rows, total):
        part = pl.program_id(1)
        pl.when(part == 0)(lambda: _together(x, rows))
        h = _dot(rows[...], up[...], AB) + up_bias[...].astype(jnp.float32)
        more = _dot(self.act(h).astype(rows.dtype), down[...], AB)
        total[...] = jnp.where(part == 0, 0.0, total[...]) + more
        pl.when(part == steps[1] - 1)(lambda: _apart(total, y))

    def _backward_block(
        self, steps, x, dy, up, up_bias, down, dx, d_up, d_up_bias, d_down, d_down_bias,
        rows, d_rows, ups, up_biases, downs, down_biases, total,
    ):  # fmt: skip
        block, part = pl.program_id(0), pl.program_id(1)

        def add(to, at, more):
            to[at] = jnp.where(block == 0, 0.0, to[at]) + more

        @pl.when(part == 0)
        def _():
            _together(x, rows)
            _together(dy, d_rows)
            add(down_biases, ..., jnp.sum(d_rows[...].astype(jnp.float32), axis=0, keepdims=True))

        h = _dot(rows[...], up[...], AB) + up_bias[...].astype(jnp.float32)
        a, back = jax.vjp(self.act, h)
        (dh,) = back(_dot(d_rows[...], down[...], ABT))
        add(up_biases, part, jnp.sum(dh, axis=0, keepdims=True))
        a, dh = a.astype(rows.dtype), dh.astype(rows.dtype)
        total[...] = jnp.where(part == 0, 0.0, total[...]) + _dot(dh, up[...], ABT)
        add(ups, part, _dot(rows[...], dh, ATB))
        add(downs, part, _dot(a, d_rows[...], ATB))
        pl.when(part == steps[1] - 1)(lambda: _apart(total, dx))

        @pl.when(block == steps[0] - 1)
        def _():
            d_up[...], d_down[...] = ups[part].astype(d_up.dtype), downs[part].astype(d_down.dtype)
            d_up_bias[...], d_down_bias[...] = up_biases[part], down_biases[...]

    # The same in XLA.

    def _hidden_xla(self, x, up, up_bias):
        return jnp.einsum("bnd,df->bnf", x, up, preferred_element_type=jnp.float32) + up_bias.astype(jnp.float32)[None]

    def _forward_xla(self, x, up, up_bias, down):
        a = self.act(self._hidden_xla(x, up, up_bias)).astype(x.dtype)
        return (jnp.einsum("bnf,fd->bnd", a, down, preferred_element_type=jnp.float32).astype(x.dtype),)

    def _backward_xla(self, x, dy, up, up_bias, down):
        dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        a, back = jax.vjp(self.act, self._hidden_xla(x, up, up_bias))
        (dh,) = back(dot("bnd,fd->bnf", dy, down))
        d_bias, d_down_bias = (jnp.sum(z.astype(jnp.float32), axis=(0, 1))[None] for z in (dh, dy))
        a, dh = a.astype(x.dtype), dh.astype(x.dtype)
        dx, d_up, d_down = dot("bnf,df->bnd", dh, up), dot("bnd,bnf->df", x, dh), dot("bnf,bnd->fd", a, dy)
        return dx.astype(x.dtype), d_up.astype(up.dtype), d_bias, d_down.astype(down.dtype), d_down_bias


def _together(samples_KxNxD, rows_RxD) -> None:
    """Samples in rows, one after the other, and zeros in what is left."""
    samples, tokens, width = samples_KxNxD.shape
    for i in range(samples):
        rows_RxD[pl.ds(i * tokens, tokens)] = samples_KxNxD[i]
    if rows_RxD.shape[0] > samples * tokens:
        left = rows_RxD.shape[0] - samples * tokens
        rows_RxD[pl.ds(samples * tokens, left)] = jnp.zeros((left, width), rows_RxD.dtype)


def _apart(rows_RxD, samples_KxNxD) -> None:
    """The samples in rows."""
    samples, tokens, _ = samples_KxNxD.shape
    for i in range(samples):
        samples_KxNxD[i] = rows_RxD[pl.ds(i * tokens, tokens)].astype(samples_KxNxD.dtype)


def _dot(a, b, axes) -> jax.Array:
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)
