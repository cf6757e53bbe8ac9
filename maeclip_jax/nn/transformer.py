"""A pre-norm transformer trunk on [B, N, D]: own attention, layers scanned or unrolled, rematerialised by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn import attention as fused_attention
from maeclip_jax.nn import attention_layer, attention_layer_device, mlp_device
from maeclip_jax.nn import mlp as fused_mlp
from maeclip_jax.nn.broadcast import broadcast
from maeclip_jax.nn.dense import product
from maeclip_jax.nn.mesh import batch_sharded, share, whole

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # openai/CLIP
}
# How q, k, v become one: a library's [B, N, H, d] (implementation), or our kernel (interpreted or not). For `fused`,
# run.setup puts the chip's word. Words in LAYER compute norm, attention and the sum with the tokens in one kernel where
# `attention_kernel` allows it, and else what `fused_core` and `fused_interpret` do.
LAYER = {"fused_layer": False, "fused_layer_interpret": True}
ATTENTION = {"xla": "xla", "cudnn": "cudnn", "fused": False, "fused_core": False, "fused_interpret": True, **LAYER}
# How the MLP is computed: by XLA, or by our kernel (interpreted or not). For `auto`, run.setup puts the chip's word.
MLP = {"auto": None, "xla": None, "fused": False, "fused_interpret": True}
# What a block keeps for its backward pass; the rest is computed again, all that is in a kernel included.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
LAYERS = ("scan", "unroll")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def _pick(what: str, name: str, table: dict):
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; valid: {', '.join(table)}")
    return table[name]


def compute_dtype(name: str) -> jnp.dtype:
    """What activations and matrix products are computed in; parameters and losses stay float32."""
    return jnp.dtype(_pick("dtype", name, DTYPES))


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function that a config's word names."""
    return _pick("activation", name, ACTIVATIONS)


def layer_norm(name: str, eps: float = 1e-6) -> nn.LayerNorm:
    """LayerNorm in float32 whatever the compute dtype; eps 1e-6 (ViT, MAE, Flax default), 1e-5 in openai/CLIP."""
    return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, name=name)


class Affine(nn.Module):
    """A Dense's parameters alone, for a kernel. Of queries, keys and values: columns (heads, 3, head width), so that
    `tensor` splits heads.
    """

    features: int

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
        """(kernel, bias), float32."""
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (width, self.features))
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


class Attention(nn.Module):
    """Multi-head self-attention, implemented as ATTENTION names it; no token attends to `pad` [B, N] True."""

    heads: int
    causal: bool = False
    attention: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BxNxD: jax.Array, pad_BxN: jax.Array | None = None, layer: Callable | None = None
    ) -> jax.Array:
        """`layer`: what computes it from the tokens, the padding and the four weights, in the order of `in_order`."""
        b, n, d = x_BxNxD.shape
        if d % self.heads:
            raise ValueError(f"width {d} does not divide into {self.heads} heads")
        how = _pick("attention", self.attention, ATTENTION)
        kernel, bias = Affine(3 * d, name="qkv")(d)
        x, kernel, bias = (a.astype(self.dtype) for a in (x_BxNxD, kernel, bias))
        if layer:  # before it is gathered, so that each device puts its own rows in order
            kernel, bias = (fused_attention.in_order(a, self.heads) for a in (kernel, bias))
        kernel = whole(kernel, None, "tensor")
        out, out_bias = (a.astype(self.dtype) for a in Affine(d, name="out")(d))
        out = whole(out, "tensor", None)
        if layer:
            return layer(x, pad_BxN, kernel, bias, out, out_bias, heads=self.heads, causal=self.causal)
        if isinstance(how, str):
            qkv = product(x, kernel)
            qkv = (qkv + broadcast(bias, qkv.shape)).reshape(b, n, self.heads, 3, d // self.heads)
            mask = attention_mask(n, pad_BxN, self.causal)
            y = jax.nn.dot_product_attention(*(qkv[..., i, :] for i in range(3)), mask=mask, implementation=how)
        else:
            kernel, bias = (fused_attention.in_order(a, self.heads) for a in (kernel, bias))
            y = fused_attention.fused(
                product(x, kernel), bias, pad_BxN, heads=self.heads, causal=self.causal, interpret=how
            )
        return product(y.reshape(b, n, d), out) + broadcast(out_bias, (b, n, d))


class Mlp(nn.Module):
    """Dense, activation, Dense."""

    hidden: int
    activation: str = "gelu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxNxD: jax.Array, fused: Callable | None = None) -> jax.Array:
        """`fused`: what computes it in place of XLA, from the tokens, the four weights, the activation and its name."""
        x, act = x_BxNxD, activation(self.activation)
        weights = *Affine(self.hidden, name="up")(x.shape[-1]), *Affine(x.shape[-1], name="down")(self.hidden)
        x, up, up_bias, down, down_bias = (a.astype(self.dtype) for a in (x, *weights))
        up, down = whole(up, None, "tensor"), whole(down, "tensor", None)
        if fused:
            return fused(x, up, up_bias, down, down_bias, act=act, name=self.activation)
        hidden = product(x, up)
        return product(act(hidden + broadcast(up_bias, hidden.shape)), down) + broadcast(down_bias, x.shape)


class Norm(nn.Module):
    """A LayerNorm's parameters alone, for a kernel."""

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
        """(scale, bias), float32."""
        scale = self.param("scale", nn.initializers.ones_init(), (width,))
        return scale, self.param("bias", nn.initializers.zeros_init(), (width,))


def mlp_kernel(word: str, x_BxNxD: jax.Array, hidden: int, dtype: jnp.dtype) -> bool | None:
    """Whether the kernel of a norm, an MLP and their sum with the tokens is interpreted; None: XLA computes them.

    `word`: a key of MLP. The kernel is taken for tokens in the compute dtype, and only where it is worthwhile.
    """
    how = _pick("mlp", word, MLP)
    if how is None or x_BxNxD.dtype != dtype:
        return None
    batch, units = share(x_BxNxD.shape[0], hidden)
    rows, width = (batch, x_BxNxD.shape[1]), x_BxNxD.shape[2]
    return how if how or mlp_device.worthwhile(rows, width, units, dtype) else None


def attention_kernel(word: str, x_BxNxD: jax.Array, heads: int, dtype: jnp.dtype) -> bool | None:
    """As `mlp_kernel`, of a norm, attention with its projections and their sum with the tokens; `word` of ATTENTION."""
    _pick("attention", word, ATTENTION)
    how, width = LAYER.get(word), x_BxNxD.shape[2]
    if how is None or x_BxNxD.dtype != dtype or width % heads:
        return None
    batch, columns = share(x_BxNxD.shape[0], width)
    rows, head = (batch, x_BxNxD.shape[1]), width // heads
    return how if how or attention_layer_device.worthwhile(rows, width, columns, head, dtype) else None


def draw_paths(rng: jax.Array, batch: int, depth: int) -> jax.Array:
    """What `Trunk` drops paths by: uniform [batch, depth, 2], the last axis for attention and MLP."""
    return jax.random.uniform(rng, (batch, depth, 2))


def path_factors(noise_BxLx2: jax.Array, rate: float) -> jax.Array:
    """[L, B, 2]: what the two branches of each layer are multiplied by, 0 or 1 / share of them that is kept.

    Stochastic depth per example (Huang et al. 2016) as in timm: layer i of L drops `rate * i / (L - 1)` of its
    branches, so the first drops none, and the mean of a branch stays what it was.
    """
    depth = noise_BxLx2.shape[1]
    kept_L = 1 - rate * jnp.arange(depth) / max(depth - 1, 1)
    return jnp.moveaxis((noise_BxLx2 < kept_L[None, :, None]) / kept_L[None, :, None], 1, 0)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Returns (x, None), the shape nn.scan wants.

    `factors_Bx2`: what the two branches of each example are multiplied by; see `path_factors`.
    """

    heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    causal: bool = False
    attention: str = "xla"
    mlp: str = "xla"
    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(
        self, x_BxNxD: jax.Array, pad_BxN: jax.Array | None = None, factors_Bx2: jax.Array | None = None
    ) -> tuple[jax.Array, None]:
        def kept(branch_BxNxD: jax.Array, which: int) -> jax.Array:
            if factors_Bx2 is None:
                return branch_BxNxD
            return (branch_BxNxD * factors_Bx2[:, which, None, None]).astype(branch_BxNxD.dtype)

        x = batch_sharded(x_BxNxD)
        hidden = round(self.mlp_ratio * x.shape[-1])
        attention = Attention(self.heads, self.causal, self.attention, self.dtype, name="attention")
        mlp = Mlp(hidden, self.activation, self.dtype, name="mlp")
        # A kernel of a half adds its branch to the tokens, and drops no path.
        how = attention_kernel(self.attention, x, self.heads, self.dtype) if factors_Bx2 is None else None
        if how is None:
            y = layer_norm("norm_1", self.eps)(x).astype(self.dtype)
            x = x + kept(attention(y, pad_BxN), 0)
        else:
            norm_1 = Norm(name="norm_1")(x.shape[-1])

            def first(x, pad, *weights, **of):
                return attention_layer.fused(x, pad, *norm_1, *weights, eps=self.eps, interpret=how, **of)

            x = batch_sharded(attention(x, pad_BxN, first))
        how = mlp_kernel(self.mlp, x, hidden, self.dtype) if factors_Bx2 is None else None
        if how is None:
            y = layer_norm("norm_2", self.eps)(x).astype(self.dtype)
            return batch_sharded(x + kept(mlp(y), 1)), None
        norm_2 = Norm(name="norm_2")(x.shape[-1])

        def second(x, *weights, **of):
            return fused_mlp.fused(x, *norm_2, *weights, eps=self.eps, interpret=how, **of)

        return batch_sharded(mlp(x, second)), None


class Trunk(nn.Module):
    """`depth` blocks. Parameters: `blocks/...` with a leading layer axis when scanned, `block_00/...` when unrolled.

    `params.stack_layers` and `params.unstack_layers` convert losslessly between the two. `drop_path`: share of its
    branches that the last layer drops where there is noise to do it by; see `path_factors`.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    causal: bool = False
    attention: str = "xla"
    mlp: str = "xla"
    layers: str = "scan"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self, x_BxNxD: jax.Array, pad_BxN: jax.Array | None = None, noise_BxLx2: jax.Array | None = None
    ) -> jax.Array:
        """`noise_BxLx2`: of `draw_paths`; without it nothing is dropped."""
        policy = _pick("remat", self.remat, REMAT)
        kwargs = dict(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            causal=self.causal,
            attention=self.attention,
            mlp=self.mlp,
            dtype=self.dtype,
            eps=self.eps,
        )
        if self.layers not in LAYERS:
            raise ValueError(f"unknown layers {self.layers!r}; valid: {', '.join(LAYERS)}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")
        dropped = () if noise_BxLx2 is None else (path_factors(noise_BxLx2, self.drop_path),)
        block = Block
        if policy is not None:
            # Inside a scan the loop itself keeps XLA from undoing the rematerialisation.
            block = nn.remat(Block, prevent_cse=self.layers == "unroll", policy=policy)
        if self.layers == "scan":
            scan = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True},
                in_axes=(nn.broadcast, 0) if dropped else nn.broadcast, length=self.depth,
            )  # fmt: skip
            return scan(**kwargs, name="blocks")(x_BxNxD, pad_BxN, *dropped)[0]
        x = x_BxNxD
        for i in range(self.depth):
            x, _ = block(**kwargs, name=f"block_{i:02}")(x, pad_BxN, *(factors[i] for factors in dropped))
        return x


def attention_mask(length: int, pad_BxN: jax.Array | None, causal: bool) -> jax.Array | None:
    """[B or 1, 1, N or 1, N], True = may attend; None when everything may."""
    mask = None
    if pad_BxN is not None:
        mask = ~pad_BxN[:, None, None, :]
    if causal:
        triangle = jnp.tril(jnp.ones((length, length), bool))[None, None]
        mask = triangle if mask is None else mask & triangle
    return mask
