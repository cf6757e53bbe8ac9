"""The norm, the MLP and the sum of both with the tokens on the arrays of one device: two Pallas kernels, and XLA.

A step of the kernels' grid works on some samples and on a part of the hidden units. Samples lie beside each other as
[B, N, D], and N rows rarely fill the chip's tiles: a block's are put together once, so that products see as many rows
as possible. The backward pass computes what is between the tokens and the gradients again.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from maeclip_jax.nn import kernels, norm
from maeclip_jax.nn.kernels import AB, ABT, ATB, LANES, dot, moved, run, whole_tiles

# Forward and backward: tokens of a step, hidden units of a step, at most. Few of either leave the matrix units idle
# between steps; the backward pass keeps more of both at a time.
ROWS, UNITS = {"forward": 1024, "backward": 1600}, {"forward": 1024, "backward": 512}
# Share of the steps in which a kernel's branches run, in their order: of the parts of the hidden units, the first and
# the last; of the blocks of samples, the last. A pre-flight multiplies with it.
BRANCHES = {"forward": ("units", "units"), "backward": ("units", "units", "rows")}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a pass divides the work: `samples` and hidden `units` of a step, `steps` of both, bytes of `memory`."""

    samples: int
    units: int
    steps: tuple[int, int]
    memory: int


def plan(way: str, batch: int, tokens: int, width: int, hidden: int, item: int = 2) -> Plan | None:
    """The plan of a pass over [batch, tokens, width] of `item` bytes on a device; None if nothing fits in its memory.

    As many samples at a time as ROWS and `kernels.vmem_to_plan` allow and divide the batch.
    """
    units = next((n for n in range(UNITS[way], 0, -LANES) if hidden % n == 0), hidden)
    for samples in sorted((n for n in range(1, batch + 1) if batch % n == 0), reverse=True):
        rows = whole_tiles(samples * tokens)
        windows = (2 if way == "forward" else 3) * 2 * rows * width * item  # of tokens in and out, two each
        weights = (2 if way == "forward" else 4) * 2 * width * units * item
        kept = rows * width * (item + 4) if way == "forward" else rows * width * (2 * item + 4) + 8 * width * hidden
        memory = windows + weights + kept + rows * units * (8 if way == "forward" else 16)
        if (rows <= ROWS[way] or samples == 1) and memory <= kernels.vmem_to_plan():
            return Plan(samples, units, (batch // samples, hidden // units), memory)
    return None


def worthwhile(rows_BxN: tuple[int, int], width: int, hidden: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels fit, and are faster, for a device's share of a batch and of the hidden units.

    See `kernels.worthwhile`.
    """
    (batch, tokens), item = rows_BxN, jnp.dtype(dtype).itemsize
    whole = width % LANES == 0 and hidden % LANES == 0 and item == 2
    plans = (plan(way, batch, tokens, width, hidden, item) for way in ("forward", "backward"))
    return whole and kernels.worthwhile(batch, tokens, plans)


@dataclasses.dataclass(frozen=True)
class Mlp:
    """The MLP with activation `act`, after its norm, on the arrays of one device, by kernel or by XLA.

    `residual`: whether the tokens, and the last bias, are added.
    """

    act: Callable[[jax.Array], jax.Array]
    name: str
    eps: float = 1e-6
    interpret: bool = False
    residual: bool = True

    def forward(self, x, scale, shift, up, up_bias, down, down_bias):
        """[B, N, D], [1, D], [1, D], [D, F], [1, F], [D, F], [1, D] -> [B, N, D], the only one of a tuple."""
        args = x, scale, shift, up, up_bias, down, down_bias
        return self._choose("forward", self._forward_block, self._forward_xla, args)

    def backward(self, x, dy, scale, shift, up, up_bias, down):
        """-> gradients of all but `dy`, then of down_bias: x, weights in their dtype, vectors [1, ...] in float32."""
        args = x, dy, scale, shift, up, up_bias, down
        return self._choose("backward", self._backward_block, self._backward_xla, args)

    def _choose(self, way: str, block: Callable, xla: Callable, args):
        def kernel(interpret, *args):
            backward = way == "backward"
            x, (up, *_) = args[0], args[4 if backward else 3 :]
            (batch, tokens, width), (_, hidden), dtype = x.shape, up.shape, x.dtype
            how = plan(way, batch, tokens, width, hidden, dtype.itemsize)
            if how is None:
                raise ValueError(
                    f"mlp fused: {tokens} tokens {width} wide with {hidden} hidden units do not fit in the chip's own "
                    "memory; valid here: xla"
                )
            samples, units, rows = how.samples, how.units, whole_tiles(how.samples * tokens)
            blocks, parts = how.steps

            def last(i, j):  # of the blocks: results that all of them add to are written then, a part after the other
                return jnp.where(i == blocks - 1, j, 0)

            own = pl.BlockSpec((samples, tokens, width), lambda i, j: (i, 0, 0))
            vector = pl.BlockSpec((1, width), lambda i, j: (0, 0))
            matrix, bias = (pl.BlockSpec((n, units), lambda i, j: (0, j)) for n in (width, 1))
            ins = [own] * (1 + backward) + [vector, vector, matrix, bias, matrix] + [vector] * (not backward)
            outs, out_specs = [jax.ShapeDtypeStruct(x.shape, dtype)], [own]
            scratch = [pltpu.VMEM((rows, width), dtype)]
            if backward:
                wide, narrow = (jax.ShapeDtypeStruct((1, n), jnp.float32) for n in (hidden, width))
                weights = jax.ShapeDtypeStruct((width, hidden), dtype)
                outs += [narrow, narrow, weights, wide, weights, narrow]
                of_units = [pl.BlockSpec((n, units), lambda i, j: (0, last(i, j))) for n in (width, 1, width)]
                out_specs += [vector, vector, *of_units, vector]
                vector_sum, matrix_sum = (1, width), (parts, width, units)
                sums = vector_sum, vector_sum, matrix_sum, (parts, 1, units), matrix_sum, vector_sum
                scratch += [pltpu.VMEM((rows, width), dtype), *(pltpu.VMEM(s, jnp.float32) for s in sums)]
            scratch.append(pltpu.VMEM((rows, width), jnp.float32))
            products = 5 if backward else 2
            weights_again = (blocks - 1) * 2 * up.size * dtype.itemsize  # for each block
            return pl.pallas_call(
                functools.partial(block, how.steps),
                grid=how.steps,
                in_specs=ins,
                out_specs=out_specs,
                out_shape=outs,
                scratch_shapes=scratch,
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=kernels.vmem_limit(how.memory)
                ),
                cost_estimate=pl.CostEstimate(
                    flops=2 * products * batch * tokens * width * hidden,
                    transcendentals=batch * tokens * hidden,
                    bytes_accessed=moved((*args, *outs)) + weights_again,
                ),
                name=f"mlp_{way}{'' if self.residual else '_part'}_{self.name}_{blocks}x{parts}_steps",
                interpret=interpret,
            )(*args)

        return run(kernel, xla, args, self.interpret)

    # Kernels, on references to a block of samples and a part of the weights.

    def _in_kernel(self) -> Callable[[jax.Array], jax.Array]:
        """The activation in operations that Pallas has for TPUs."""
        return IN_KERNEL.get(self.name, self.act)

    def _forward_block(self, steps, x, scale, shift, up, up_bias, down, down_bias, y, rows, total):
        part = pl.program_id(1)
        pl.when(part == 0)(lambda: self._normed_together(x, scale, shift, rows))
        h = dot(rows[...], up[...], AB) + up_bias[...].astype(jnp.float32)
        more = dot(self._in_kernel()(h).astype(rows.dtype), down[...], ABT)
        total[...] = jnp.where(part == 0, 0.0, total[...]) + more

        @pl.when(part == steps[1] - 1)
        def _():
            for i, at in _places(x):
                added = x[i].astype(jnp.float32) + down_bias[...].astype(jnp.float32) if self.residual else 0.0
                y[i] = (total[at] + added).astype(y.dtype)

    def _backward_block(
        self, steps, x, dy, scale, shift, up, up_bias, down, dx, d_scale, d_shift, d_up, d_up_bias, d_down, d_down_bias,
        rows, d_rows, scales, shifts, ups, up_biases, downs, down_biases, total,
    ):  # fmt: skip
        block, part = pl.program_id(0), pl.program_id(1)

        def add(to, at, more):
            to[at] = jnp.where(block == 0, 0.0, to[at]) + more

        @pl.when(part == 0)
        def _():
            self._normed_together(x, scale, shift, rows)
            _together(dy, d_rows)
            add(down_biases, ..., jnp.sum(d_rows[...].astype(jnp.float32), axis=0, keepdims=True))

        h = dot(rows[...], up[...], AB) + up_bias[...].astype(jnp.float32)
        a, back = jax.vjp(self._in_kernel(), h)
        (dh,) = back(dot(d_rows[...], down[...], AB))
        add(up_biases, part, jnp.sum(dh, axis=0, keepdims=True))
        a, dh = a.astype(rows.dtype), dh.astype(rows.dtype)
        total[...] = jnp.where(part == 0, 0.0, total[...]) + dot(dh, up[...], ABT)
        add(ups, part, dot(rows[...], dh, ATB))
        add(downs, part, dot(d_rows[...], a, ATB))

        @pl.when(part == steps[1] - 1)
        def _():
            for_scale = for_shift = jnp.zeros(scale.shape, jnp.float32)
            for i, at in _places(x):
                d, more_scale, more_shift = norm.backward(x[i], scale[...], total[at], self.eps)
                for_scale, for_shift = for_scale + more_scale, for_shift + more_shift
                dx[i] = (d + dy[i].astype(jnp.float32) if self.residual else d).astype(dx.dtype)
            add(scales, ..., for_scale)
            add(shifts, ..., for_shift)

        @pl.when(block == steps[0] - 1)
        def _():
            d_up[...], d_down[...] = ups[part].astype(d_up.dtype), downs[part].astype(d_down.dtype)
            d_up_bias[...], d_down_bias[...] = up_biases[part], down_biases[...]
            d_scale[...], d_shift[...] = scales[...], shifts[...]

    def _normed_together(self, x_KxNxD, scale, shift, rows_RxD) -> None:
        """Normalised samples in rows, one after the other, and zeros in what is left."""
        for i, at in _places(x_KxNxD):
            rows_RxD[at] = norm.normed(x_KxNxD[i], scale[...], shift[...], self.eps)
        _fill(x_KxNxD, rows_RxD)

    # The same in XLA.

    def _hidden_xla(self, x, scale, shift, up, up_bias):
        """(the normalised tokens, their hidden units in float32)."""
        y = norm.normed(x, scale[None], shift[None], self.eps)
        h = jnp.einsum("bnd,df->bnf", y, up, preferred_element_type=jnp.float32)
        return y, h + up_bias.astype(jnp.float32)[None]

    def _forward_xla(self, x, scale, shift, up, up_bias, down, down_bias):
        a = self.act(self._hidden_xla(x, scale, shift, up, up_bias)[1]).astype(x.dtype)
        y = jnp.einsum("bnf,df->bnd", a, down, preferred_element_type=jnp.float32)
        added = x.astype(jnp.float32) + down_bias.astype(jnp.float32)[None] if self.residual else 0.0
        return ((y + added).astype(x.dtype),)

    def _backward_xla(self, x, dy, scale, shift, up, up_bias, down):
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        y, h = self._hidden_xla(x, scale, shift, up, up_bias)
        a, back = jax.vjp(self.act, h)
        (dh,) = back(einsum("bnd,df->bnf", dy, down))
        d_bias, d_down_bias = (jnp.sum(z.astype(jnp.float32), axis=(0, 1))[None] for z in (dh, dy))
        a, dh = a.astype(x.dtype), dh.astype(x.dtype)
        d_up, d_down = einsum("bnd,bnf->df", y, dh), einsum("bnd,bnf->df", dy, a)
        dx, d_scale, d_shift = norm.backward(x, scale[None], einsum("bnf,df->bnd", dh, up), self.eps)
        dx = dx + dy.astype(jnp.float32) if self.residual else dx
        weights = d_up.astype(up.dtype), d_bias, d_down.astype(down.dtype)
        return dx.astype(x.dtype), d_scale, d_shift, *weights, d_down_bias


@jax.custom_jvp
def _gelu(x: jax.Array) -> jax.Array:
    """jax.nn.gelu(x, approximate=False), within a few units in the last place of the largest |x| in float32."""
    return x * _normal(x)


@_gelu.defjvp
def _gelu_jvp(x, dx):
    """By hand: jax 0.12.0.1 does not lower its own derivative of erf."""
    (x,), (dx,) = x, dx
    density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return x * _normal(x), dx * (_normal(x) + x * density)


def _normal(x: jax.Array) -> jax.Array:
    """The share of a standard normal distribution that is below x."""
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


# By name, activations in other operations than they are elsewhere: Pallas has `erf` for TPUs, but no `erfc` (jax 0.10.2
# to 0.12.0.1).
IN_KERNEL = {"gelu": _gelu}


def _places(samples_KxNxD):
    """(number of a sample, its rows where samples lie one after the other)."""
    samples, tokens, _ = samples_KxNxD.shape
    return [(i, pl.ds(i * tokens, tokens)) for i in range(samples)]


def _fill(samples_KxNxD, rows_RxD) -> None:
    """Zeros in the rows that samples leave."""
    samples, tokens, width = samples_KxNxD.shape
    left = rows_RxD.shape[0] - samples * tokens
    if left:
        rows_RxD[pl.ds(samples * tokens, left)] = jnp.zeros((left, width), rows_RxD.dtype)


def _together(samples_KxNxD, rows_RxD) -> None:
    """Samples in rows, one after the other, and zeros in what is left."""
    for i, at in _places(samples_KxNxD):
        rows_RxD[at] = samples_KxNxD[i]
    _fill(samples_KxNxD, rows_RxD)
