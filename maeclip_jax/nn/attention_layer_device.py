"""The norm, the projections, attention and their sum with the tokens on the arrays of one device: kernels, and XLA.

A step of the kernels' grid works on some samples. For the products their rows lie one after the other, each sample from
the beginning of a tile on; attention, by `attention.Attend`, sees a sample at a time. Forward, queries, keys and values
and what attention makes of them are written out for the backward pass: a kernel has nothing else to wait for meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from maeclip_jax.nn import kernels, norm
from maeclip_jax.nn.attention import MOST_TOKENS, Attend
from maeclip_jax.nn.kernels import AB, ABT, ATB, LANES, dot, moved, run, whole_tiles

ROWS = 512  # tokens of a step at most: more make the schedules of the kernels no shorter, and their compilation longer
# In which share of the steps a kernel's branches run, as in `mlp_device`: sums are written in the last.
BRANCHES = {"forward": (), "backward": ("rows",)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a pass divides the work: `samples` of a step, `steps` of them, bytes of `memory`."""

    samples: int
    steps: int
    memory: int


def plan(way: str, batch: int, tokens: int, width: int, columns: int, item: int = 2) -> Plan | None:
    """The plan of a pass over [batch, tokens, width] of `item` bytes with heads of `columns` in all on a device.

    As many samples at a time as ROWS and `kernels.vmem_to_plan` allow and divide the batch; None if nothing fits.
    """
    backward = way == "backward"
    for samples in sorted((n for n in range(1, batch + 1) if batch % n == 0), reverse=True):
        rows, pitch = samples * tokens, whole_tiles(tokens)
        windows = 2 * rows * ((3 if backward else 2) * width + 4 * columns) * item
        weights = (2 + 2 * backward) * 4 * width * columns * item
        sums = 4 * 4 * width * columns if backward else 0
        kept = samples * pitch * ((2 * width + 5 * columns) if backward else (width + columns)) * item
        between = samples * pitch * (3 * columns + width) * 4 + 4 * pitch * pitch * 4
        memory = windows + weights + sums + kept + between
        if (rows <= ROWS or samples == 1) and memory <= kernels.vmem_to_plan():
            return Plan(samples, batch // samples, memory)
    return None


def worthwhile(rows_BxN: tuple[int, int], width: int, columns: int, head: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels fit, and are faster, for a device's share of a batch and of its heads.

    Heads are `head` wide and `columns` in all, and fill lanes. See `kernels.worthwhile`.
    """
    (batch, tokens), item = rows_BxN, jnp.dtype(dtype).itemsize
    whole = width % LANES == 0 and columns % LANES == 0 and LANES % head == 0 and item == 2
    plans = (plan(way, batch, tokens, width, columns, item) for way in ("forward", "backward"))
    return whole and tokens <= MOST_TOKENS and kernels.worthwhile(batch, tokens, plans)


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """Attention of heads `width` wide with its projections, after its norm, on the arrays of one device.

    `residual`: whether the tokens, and the last bias, are added. W: columns of all heads, which are in the order (3,
    heads, width) where queries, keys and values lie together.
    """

    width: int
    causal: bool
    eps: float = 1e-6
    interpret: bool = False
    residual: bool = True

    @property
    def attend(self) -> Attend:
        return Attend(self.width, self.causal, self.interpret)

    def forward(self, x, hidden, scale, shift, in_, in_bias, out, out_bias):
        """[B, N, D], [B, 1, N] or None, [1, D], [1, D], [D, 3 W], [1, 3 W], [D, W], [1, D] -> y [B, N, D], qkv
        [B, N, 3 W], attended [B, N, W], lse [B, N, H] float32.
        """
        args = x, hidden, scale, shift, in_, in_bias, out, out_bias
        return self._choose("forward", self._forward_block, self._forward_xla, args)

    def backward(self, x, dy, hidden, qkv, attended, lse, scale, shift, in_, in_bias, out):
        """-> gradients of x, scale, shift, in_, in_bias, out, out_bias: weights in their dtype, vectors in float32.

        None depends on `in_bias`, since queries, keys and values are kept with it.
        """
        args = x, dy, hidden, qkv, attended, lse, scale, shift, in_, out
        return self._choose("backward", self._backward_block, self._backward_xla, args)

    def _choose(self, way: str, block: Callable, xla: Callable, args):
        backward = way == "backward"
        place = 2 if backward else 1  # of `hidden`
        given = args[place] is not None

        def kernel(interpret, *args):
            x, out = args[0], args[-1 if backward else -2]
            (batch, tokens, width), columns, dtype, weights = x.shape, out.shape[1], x.dtype, out.dtype
            how = plan(way, batch, tokens, width, columns, dtype.itemsize)
            if how is None:
                raise ValueError(
                    f"attention fused_layer: {tokens} tokens {width} wide with heads of {columns} in all do not fit in "
                    "the chip's own memory; valid here: fused_core, xla"
                )

            def spec(shape):
                if len(shape) == 3:
                    return pl.BlockSpec((how.samples, *shape[1:]), lambda i: (i, 0, 0))
                return pl.BlockSpec(shape, lambda i: (0, 0))

            heads, rows = columns // self.width, how.samples * whole_tiles(tokens)
            if backward:
                vector, bias = (1, width), (1, 3 * columns)
                sums = vector, vector, (width, 3 * columns), bias, (width, columns), vector
                outs = [(x.shape, dtype)] + [(s, jnp.float32 if s[0] == 1 else weights) for s in sums]
                scratch = [((rows, n), dtype) for n in (width, width, columns, columns, 3 * columns)]
                scratch += [(s, jnp.float32) for s in (*sums, bias)]
            else:
                outs = [((batch, tokens, n), dtype) for n in (width, 3 * columns, columns)]
                outs += [((batch, tokens, heads), jnp.float32)]
                scratch = [((rows, n), dtype) for n in (width, columns)]
            outs = [jax.ShapeDtypeStruct(*out) for out in outs]
            # Forward: the projections and two products a head. Backward: each product's two, and a head's scores.
            products = (2 if backward else 1) * batch * tokens * 4 * width * columns
            products += (5 if backward else 2) * batch * tokens * tokens * columns
            return pl.pallas_call(
                functools.partial(self._step, block, how.steps, place, given),
                grid=(how.steps,),
                in_specs=[spec(a.shape) for a in args],
                out_specs=[spec(a.shape) for a in outs],
                out_shape=outs,
                scratch_shapes=[pltpu.VMEM(*one) for one in scratch],
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("arbitrary",), vmem_limit_bytes=kernels.vmem_limit(how.memory)
                ),
                cost_estimate=pl.CostEstimate(
                    flops=2 * products,
                    transcendentals=batch * heads * tokens * tokens,
                    bytes_accessed=moved((*args, *outs)),
                ),
                name=f"attention_layer_{way}{'' if self.residual else '_part'}_{heads}x{self.width}"
                f"{'_causal' * self.causal}_{how.steps}_steps",
                interpret=interpret,
            )(*args)

        def without(function):
            """`function` where nothing is hidden."""
            return lambda *args: function(*args[:place], None, *args[place:])

        args = args if given else (*args[:place], *args[place + 1 :])
        return run(kernel, xla if given else without(xla), args, self.interpret)

    def _step(self, block, steps, place, given, *refs):
        refs = refs if given else (*refs[:place], None, *refs[place:])
        block(steps, *refs)

    # Kernels, on references to a block of samples.

    def _forward_block(
        self, steps, x, hidden, scale, shift, in_, in_bias, out, out_bias, y, qkv, attended, lse, rows, attended_rows
    ):
        places = _places(x)
        for i, at in places:
            rows[at] = norm.normed(x[i], scale[...], shift[...], self.eps)
        _fill(x, rows, attended_rows)
        made = (dot(rows[...], in_[...], AB) + in_bias[...].astype(jnp.float32)).astype(qkv.dtype)
        for i, at in places:
            qkv[i] = jax.lax.slice_in_dim(made, at.start, at.start + at.size)
        for i, at in places:
            masked = None if hidden is None else hidden.at[i]
            self.attend.forward_sample(qkv.at[i], masked, _Rows(attended_rows, at), lse.at[i])
            attended[i] = attended_rows[at]
        made = dot(attended_rows[...], out[...], ABT)
        for i, at in places:
            added = x[i].astype(jnp.float32) + out_bias[...].astype(jnp.float32) if self.residual else 0.0
            y[i] = (jax.lax.slice_in_dim(made, at.start, at.start + at.size) + added).astype(y.dtype)

    def _backward_block(
        self, steps, x, dy, hidden, qkv, attended, lse, scale, shift, in_, out,
        dx, d_scale, d_shift, d_in, d_in_bias, d_out, d_out_bias,
        rows, dy_rows, attended_rows, d_rows, d_qkv, scales, shifts, ins, in_biases, outs, out_biases, of_sample,
    ):  # fmt: skip
        block, places = pl.program_id(0), _places(x)

        def add(to, more):
            to[...] = jnp.where(block == 0, 0.0, to[...]) + more

        for i, at in places:
            rows[at] = norm.normed(x[i], scale[...], shift[...], self.eps)
            dy_rows[at], attended_rows[at] = dy[i], attended[i]
        _fill(x, rows, dy_rows, attended_rows, d_qkv)
        add(out_biases, jnp.sum(dy_rows[...].astype(jnp.float32), axis=0, keepdims=True))
        d_rows[...] = dot(dy_rows[...], out[...], AB).astype(d_rows.dtype)
        for_bias = jnp.zeros(of_sample.shape, jnp.float32)
        for i, at in places:
            masked = None
            if hidden is not None:
                masked, d_rows[at] = hidden.at[i], self.attend.even(lse[i], d_rows[at])
            results = _Rows(d_qkv, at), of_sample
            self.attend.backward_sample(qkv.at[i], masked, lse.at[i], _Rows(d_rows, at), *results)
            for_bias += of_sample[...]
        add(in_biases, for_bias)
        add(ins, dot(rows[...], d_qkv[...], ATB))
        add(outs, dot(dy_rows[...], attended_rows[...], ATB))
        back = dot(d_qkv[...], in_[...], ABT)
        for_scale = for_shift = jnp.zeros(scale.shape, jnp.float32)
        for i, at in places:
            mine = jax.lax.slice_in_dim(back, at.start, at.start + at.size)
            d, more_scale, more_shift = norm.backward(x[i], scale[...], mine, self.eps)
            for_scale, for_shift = for_scale + more_scale, for_shift + more_shift
            dx[i] = (d + dy[i].astype(jnp.float32) if self.residual else d).astype(dx.dtype)
        add(scales, for_scale)
        add(shifts, for_shift)

        @pl.when(block == steps - 1)
        def _():
            d_in[...], d_out[...] = ins[...].astype(d_in.dtype), outs[...].astype(d_out.dtype)
            d_in_bias[...], d_out_bias[...] = in_biases[...], out_biases[...]
            d_scale[...], d_shift[...] = scales[...], shifts[...]

    # The same in XLA.

    def _forward_xla(self, x, hidden, scale, shift, in_, in_bias, out, out_bias):
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        qkv = einsum("bnd,dw->bnw", norm.normed(x, scale[None], shift[None], self.eps), in_)
        qkv = (qkv + in_bias.astype(jnp.float32)[None]).astype(x.dtype)
        attended, lse = self.attend.forward_xla(qkv, hidden)
        added = x.astype(jnp.float32) + out_bias.astype(jnp.float32)[None] if self.residual else 0.0
        y = (einsum("bnw,dw->bnd", attended, out) + added).astype(x.dtype)
        return y, qkv, attended, lse

    def _backward_xla(self, x, dy, hidden, qkv, attended, lse, scale, shift, in_, out):
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_attended = einsum("bnd,dw->bnw", dy, out).astype(dy.dtype)
        if hidden is not None:
            d_attended = self.attend.even(lse, d_attended)
        d_qkv, d_bias_Bx1x3W = self.attend.backward_xla(qkv, hidden, lse, d_attended)
        y = norm.normed(x, scale[None], shift[None], self.eps)
        d_in, d_out = einsum("bnd,bnw->dw", y, d_qkv), einsum("bnd,bnw->dw", dy, attended)
        dx, d_scale, d_shift = norm.backward(x, scale[None], einsum("bnw,dw->bnd", d_qkv, in_), self.eps)
        dx = dx + dy.astype(jnp.float32) if self.residual else dx
        d_out_bias = jnp.sum(dy.astype(jnp.float32), axis=(0, 1))[None]
        d_in_bias = jnp.sum(d_bias_Bx1x3W, axis=0)
        weights = d_in.astype(in_.dtype), d_in_bias, d_out.astype(out.dtype)
        return dx.astype(x.dtype), d_scale, d_shift, *weights, d_out_bias


class _Rows:
    """A sample's rows in an array of several, to be read and written as a reference of [N, D].

    A reference itself can only be cut where tiles end.
    """

    def __init__(self, of, at):
        self._of, self._at, self.shape, self.dtype = of, at, (at.size, of.shape[1]), of.dtype

    def __getitem__(self, place):
        return self._of[self._at, place[1]]

    def __setitem__(self, place, value):
        self._of[self._at, place[1]] = value


def _places(samples_KxNxD):
    """(number of a sample, its rows where each begins with a tile)."""
    samples, tokens, _ = samples_KxNxD.shape
    return [(i, pl.ds(i * whole_tiles(tokens), tokens)) for i in range(samples)]


def _fill(samples_KxNxD, *rows_RxD) -> None:
    """Zeros in the rows between samples, which add nothing anywhere."""
    samples, tokens, _ = samples_KxNxD.shape
    pitch = whole_tiles(tokens)
    for rows in rows_RxD if pitch > tokens else ():
        for i in range(samples):
            rows[pl.ds(i * pitch + tokens, pitch - tokens)] = jnp.zeros((pitch - tokens, rows.shape[1]), rows.dtype)
