"""Fused attention for short sequences, forward and backward, as two Pallas kernels for TPU: `attention=fused`.

The scores of 196 tokens fit in the chip's own memory, so a program holds whole samples there: scores and softmax never
travel to HBM, which is half the step of a ViT-B/16 otherwise (LOG.md). Queries, keys and values come as one array
[B, N, 3 W] with columns (3, heads, width), W = heads * width, so that no copy is made of them.

Heads narrower than the 128 lanes of a vector are worked on in groups that fill them: a head is picked by zeros in the
other heads' lanes, since a product with 64 columns takes as long as one with 128 and moving lanes takes longer. Lowered
for anything but a TPU, plain XLA computes the same; `attention=fused_interpret` runs the kernels' own code anywhere.
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

from maeclip_jax.nn import mesh
from maeclip_jax.nn.kernels import AB, ABT, ATB, LANES, dot, moved, run

MOST_TOKENS = 640  # beyond, a head's scores and their gradients do not fit in the chip's memory beside the tokens
ROWS_A_STEP = 256  # tokens that one step of the kernel's grid works on, if samples are shorter
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row that may attend to nothing attends evenly, as in XLA


def in_order(x: jax.Array, heads: int) -> jax.Array:
    """The last axis of a parameter, (heads, 3, width), in the order that `fused` takes: (3, heads, width).

    With heads split over `tensor`, each device's part of the columns is in that order for its own heads. Raises
    ValueError if they do not divide.
    """
    here = jax.sharding.get_abstract_mesh()
    parts = here.shape["tensor"] if "tensor" in here.axis_names else 1
    if heads % parts:
        valid = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ValueError(
            f"attention fused: {heads} heads do not divide over mesh.tensor={parts}; valid: mesh.tensor={valid}, or "
            "attention xla"
        )
    split = x.reshape(*x.shape[:-1], parts, heads // parts, 3, -1)
    return split.swapaxes(-2, -3).reshape(x.shape)


def fused(
    qkv_BxNx3W: jax.Array,
    bias_3W: jax.Array,
    pad_BxN: jax.Array | None = None,
    *,
    heads: int,
    causal: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(width)) v of `qkv + bias` -> [B, N, W] in the dtype of `qkv`; softmax in float32.

    `pad_BxN`: True for padding, which no token attends to. The bias is a separate argument so that its gradient is
    summed in the kernel that computes the tokens' gradients. On a mesh the batch is split over (replica, fsdp) and
    columns over `tensor`, see `in_order`. Raises ValueError for more than MOST_TOKENS tokens.
    """
    tokens, width = qkv_BxNx3W.shape[1], qkv_BxNx3W.shape[2] // 3 // heads
    if tokens > MOST_TOKENS:
        raise ValueError(f"attention fused takes up to {MOST_TOKENS} tokens, not {tokens}; valid here: xla, cudnn")
    return _attend(Attend(width, causal, interpret), qkv_BxNx3W, bias_3W, hidden_scores(pad_BxN))


def hidden_scores(pad_BxN: jax.Array | None) -> jax.Array | None:
    """[B, 1, N] float32: what is added to scores of padding (True), which no token attends to; None without any."""
    return None if pad_BxN is None else jnp.where(pad_BxN, MASKED, 0.0).astype(jnp.float32)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how, qkv, bias, hidden):
    return _forward(how, qkv, bias, hidden)[0]


def _forward(how, qkv, bias, hidden):
    qkv = qkv + bias.astype(qkv.dtype)[None, None]
    out, lse_BxNxH = _on_mesh(how.forward, (qkv, hidden), outputs=2)
    return out, (qkv, bias, hidden, lse_BxNxH)


def _backward(how, saved, d_out):
    qkv, bias, hidden, lse_BxNxH = saved
    d_qkv, d_bias_Bx1x3W = _on_mesh(how.backward, (qkv, hidden, lse_BxNxH, d_out), outputs=2)
    return d_qkv, jnp.sum(d_bias_Bx1x3W, axis=(0, 1)).astype(bias.dtype), None


_attend.defvjp(_forward, _backward)


def _on_mesh(function: Callable, args: Sequence[jax.Array | None], outputs: int):
    """`function` on every device's part of [B, ...] arrays.

    Rows over the batch axes (on every device whole if they do not divide), the last axis over `tensor`, except that of
    the second, `hidden`, which is tokens.
    """
    rows, tensor = mesh.parts(args[0].shape[0])
    split = jax.P(rows, None, tensor)
    ins = (None if x is None else jax.P(rows) if i == 1 else split for i, x in enumerate(args))
    return mesh.on_mesh(function, tuple(ins), (split,) * outputs)(*args)


@dataclasses.dataclass(frozen=True)
class Attend:
    """Attention of heads `width` wide on the arrays of one device, by kernel or by XLA."""

    width: int
    causal: bool
    interpret: bool

    def forward(self, qkv, hidden):
        """-> (out [B, N, W], log of the sum of exponents [B, N, H] float32)."""
        b, n, w3 = qkv.shape
        outs = ((b, n, w3 // 3), qkv.dtype), ((b, n, w3 // 3 // self.width), jnp.float32)
        return self._choose(self.forward_sample, self.forward_xla, "forward", 2, outs, (qkv, hidden))

    def backward(self, qkv, hidden, lse, d_out):
        """-> (gradient of qkv, its sum over each sample's tokens [B, 1, 3 W] float32)."""
        outs = (qkv.shape, qkv.dtype), ((qkv.shape[0], 1, qkv.shape[2]), jnp.float32)
        if hidden is not None:  # here, where XLA does it on the way
            d_out = self.even(lse, d_out)
        return self._choose(self.backward_sample, self.backward_xla, "backward", 5, outs, (qkv, hidden, lse, d_out))

    def even(self, lse, d_out):
        """`d_out` [..., N, W] as `backward_sample` takes it where tokens are hidden.

        The lse of a row that may attend to nothing is MASKED, with log(N) lost in it, so that its exp(score - lse) is 1
        for each token: what it lacks is put into the gradient.
        """
        return jnp.where(lse[..., :1] < MASKED / 2, d_out / d_out.shape[-2], d_out)

    def _choose(self, sample: Callable, xla: Callable, name: str, products: int, outs, args):
        def kernel(interpret, *args):
            given, args = [x is not None for x in args], [x for x in args if x is not None]
            batch, tokens = args[0].shape[:2]
            block = math.gcd(batch, 1 << (max(1, ROWS_A_STEP // tokens).bit_length() - 1))

            def step(*refs):
                refs = iter(refs)
                ins = [next(refs) if is_given else None for is_given in given]
                results = list(refs)
                for i in range(block):  # unrolled: the compiler's schedule of a step is then the whole of its time
                    sample(*(None if x is None else x.at[i] for x in ins), *(x.at[i] for x in results))

            def spec(shape):
                return pl.BlockSpec((block, *shape[1:]), lambda i: (i, 0, 0))

            results = [jax.ShapeDtypeStruct(*out) for out in outs]
            heads = outs[0][0][2] // self.width // (1 if name == "forward" else 3)
            return pl.pallas_call(
                step,
                grid=(batch // block,),
                in_specs=[spec(x.shape) for x in args],
                out_specs=[spec(shape) for shape, _ in outs],
                out_shape=results,
                compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
                cost_estimate=pl.CostEstimate(
                    flops=2 * products * batch * heads * tokens * tokens * self.width,
                    transcendentals=batch * heads * tokens * tokens,
                    bytes_accessed=moved((*args, *results)),
                ),
                name=f"attention_{name}_{heads}x{self.width}{'_causal' * self.causal}_{batch // block}_steps",
                interpret=interpret,
            )(*args)

        return run(kernel, xla, args, self.interpret)

    # Kernels, on references to one sample.

    def _groups(self, total: int):
        """(head, its columns in a group's, the group's slice) of heads in groups that fill the lanes."""
        heads = total // self.width
        group = max(g for g in range(1, heads + 1) if heads % g == 0 and (g == 1 or g * self.width <= LANES))
        for first in range(0, heads, group):
            yield slice(first * self.width, (first + group) * self.width), range(first, first + group)

    def _only(self, x, place: int):
        """Zeros but for the head at `place` of a group."""
        if x.shape[1] == self.width:
            return x
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where((lane >= place * self.width) & (lane < (place + 1) * self.width), x, jnp.zeros_like(x))

    def _scores(self, q, k, hidden):
        """[N, N] float32, masked."""
        s = dot(q, k, ABT) * self.width**-0.5
        if hidden is not None:
            s += hidden[...]
        if self.causal:
            row, column = (jax.lax.broadcasted_iota(jnp.int32, s.shape, axis) for axis in (0, 1))
            s = jnp.where(row >= column, s, MASKED)
        return s

    def _slope(self, hidden, lse):
        """Gradient of a row's scores by q k: none where they are all masked."""
        return self.width**-0.5 if hidden is None else jnp.where(lse < MASKED / 2, 0.0, self.width**-0.5)

    def forward_sample(self, qkv, hidden, out, lse):
        total, sums = out.shape[1], []
        for here, heads in self._groups(total):
            q, k, v = (qkv[:, i * total + here.start : i * total + here.stop] for i in range(3))
            y = jnp.zeros(q.shape, jnp.float32)
            for place in range(len(heads)):
                s = self._scores(self._only(q, place), k, hidden)
                top = jnp.max(s, axis=1, keepdims=True)
                p = jnp.exp(s - top)
                sum_ = jnp.sum(p, axis=1, keepdims=True)
                y += dot(p.astype(v.dtype), self._only(v, place), AB) / sum_
                sums.append(top + jnp.log(sum_))
            out[:, here] = y.astype(out.dtype)
        lse[...] = jnp.concatenate(sums, axis=1)

    def backward_sample(self, qkv, hidden, lse, d_out, d_qkv, d_bias):
        total = d_out.shape[1]
        slope = self._slope(hidden, lse[:, :1])  # heads hide alike
        for here, heads in self._groups(total):
            at = [slice(i * total + here.start, i * total + here.stop) for i in range(3)]
            q, k, v = (qkv[:, s] for s in at)
            dy = d_out[:, here]
            dq = dk = dv = jnp.zeros(q.shape, jnp.float32)
            for place, head in enumerate(heads):
                q_h, k_h, dy_h = (self._only(x, place) for x in (q, k, dy))
                p = jnp.exp(self._scores(q_h, k, hidden) - lse[:, head : head + 1])
                dp = dot(dy_h, v, ABT)
                ds = p * (dp - jnp.sum(p * dp, axis=1, keepdims=True)) * slope
                ds, p = ds.astype(q.dtype), p.astype(q.dtype)
                dq, dk, dv = dq + dot(ds, k_h, AB), dk + dot(ds, q_h, ATB), dv + dot(p, dy_h, ATB)
            for s, x in zip(at, (dq, dk, dv)):
                d_qkv[:, s] = x.astype(d_qkv.dtype)
                d_bias[:, s] = jnp.sum(x, axis=0, keepdims=True)

    # The same in XLA.

    def _weights_xla(self, qkv, hidden):
        """(q, k, v [B, N, H, width], scores [B, H, N, N] float32)."""
        b, n, _ = qkv.shape
        q, k, v = (x.reshape(b, n, -1, self.width) for x in jnp.split(qkv, 3, axis=2))
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * self.width**-0.5
        if hidden is not None:
            s += hidden[:, None]
        return q, k, v, jnp.where(jnp.tril(jnp.ones((n, n), bool))[None, None], s, MASKED) if self.causal else s

    def forward_xla(self, qkv, hidden):
        _, _, v, s = self._weights_xla(qkv, hidden)
        p = jax.nn.softmax(s, axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", p, v, preferred_element_type=jnp.float32)
        return y.astype(qkv.dtype).reshape(*qkv.shape[:2], -1), jax.nn.logsumexp(s, axis=-1).swapaxes(1, 2)

    def backward_xla(self, qkv, hidden, lse, d_out):
        q, k, v, s = self._weights_xla(qkv, hidden)
        dy, lse = d_out.reshape(v.shape), lse.swapaxes(1, 2)[..., None]
        slope = self._slope(hidden, lse)
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        p = jnp.exp(s - lse)
        dp = einsum("bqhd,bkhd->bhqk", dy, v)
        ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)) * slope
        ds, p = ds.astype(q.dtype), p.astype(q.dtype)
        parts = einsum("bhqk,bkhd->bqhd", ds, k), einsum("bhqk,bqhd->bkhd", ds, q), einsum("bhqk,bqhd->bkhd", p, dy)
        d_qkv = jnp.concatenate([x.reshape(d_out.shape) for x in parts], axis=2)
        return d_qkv.astype(qkv.dtype), jnp.sum(d_qkv, axis=1, keepdims=True)
