"""Where in a picture an objective looks: maps of one value a patch, as pure functions of (objective, params, arrays).

All of them work with any pooling, since they ask the objective for what it computes and listen in on its modules by
their paths. To be listened to, layers must have names, so a scanned trunk is unrolled first. Call them under jit.

    similarity    the patch on its own, projected, against the text
    gradcam       Grad-CAM (Selvaraju et al. 2017) on the tokens that enter a block; the score is the cosine of picture
                  and text, so a text needs no classifier
    rollout       attention roll-out (Abnar & Zuidema 2020); it knows no text
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.errors import UserError
from maeclip_jax.nn.pool import parse
from maeclip_jax.params import flatten, unflatten

# How many times the float32 eps of its inputs a Grad-CAM map's contrast must exceed to be more than rounding.
ROUNDING = 16


def check(objective: Any, pools: tuple[str, ...], block: int) -> int:
    """`block` counted from the first; UserError for a block or a pooling that the image tower cannot have."""
    tower = objective.image_tower
    depth = tower["depth"]
    if not -depth <= block <= depth:
        raise UserError(
            f"no block {block} in the image tower; valid: 0 to {depth - 1}, -1 for the last, {depth} for what leaves "
            "the final norm"
        )
    for word in [p for p in pools if p != "own"]:
        try:
            kind = parse(word)[0]
        except ValueError as e:
            raise UserError(f"{e}, own") from None
        if kind == "map" and word != tower["pool"]:
            raise UserError("pool 'map' has parameters, which this tower lacks; valid: own, gap, max, topk(k), ...")
        if kind == "cls" and not tower.get("cls"):
            raise UserError(
                "pool 'cls' takes a class token, which this tower lacks; valid: own, gap, max, topk(k), ..."
            )
    return block if block >= 0 else block + depth


def unrolled(objective: Any, params: Any) -> tuple[Any, dict]:
    """The same function with its layers one after another: block i listens to the name `block_0i`, and its attention
    is called with normalised tokens, as no kernel of a block's half does.
    """
    flat = {}
    for path, leaf in flatten(params).items():
        tower, stacked, rest = path.partition("/trunk/blocks/")
        names = [f"{tower}/trunk/block_{i:02}/{rest}" for i in range(len(leaf))] if stacked else [path]
        flat |= dict(zip(names, leaf if stacked else [leaf]))
    compute = dict(objective.compute or {}) | {"layers": "unroll", "remat": "none", "attention": "xla"}
    return objective.clone(compute=compute), unflatten(flat)


def patches(objective: Any) -> int:
    """How many patches a picture has; in the sequence they come last, after the class token if there is one."""
    return (objective.image_tower["size"] // objective.image_tower["patch"]) ** 2


def listen(function: Callable[[], Any], hooks: dict[tuple[str, ...], Callable]) -> Any:
    """`function()`, while each hook `(call, x) -> y` stands for the call of the image tower's module of that path.

    Paths are without the encoder's own name, which is `image` or `image_text`; only pictures may be encoded.
    """

    def interceptor(call, args, kwargs, context):
        hook = hooks.get(context.module.path[1:]) if context.method_name == "__call__" else None
        return call(*args, **kwargs) if hook is None else hook(lambda x: call(x, *args[1:], **kwargs), args[0])

    with nn.intercept_methods(interceptor):
        return function()


def similarity(objective: Any, params: Any, image_BxHxWx3: jax.Array, text: jax.Array) -> jax.Array:
    """[B, Q, N] float32: cosine of each patch, projected on its own, with each text (of length 1).

    `text`: [Q, E], or [B, Q, E] where every picture has its own.
    """
    dense_BxNxE = objective.apply({"params": params}, {"image": image_BxHxWx3}, method="dense")["image"]
    return text @ jnp.swapaxes(dense_BxNxE, 1, 2)


def embedding(
    objective: Any, params: Any, image_BxHxWx3: jax.Array, *, pool: str, block: int, probe: jax.Array | float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Picture embeddings [B, E], and the tokens [B, T, D] that entered `block` after `probe` was added to them.

    `pool`: "own", or another pooling in its place, with the same weights. `block`: the number of blocks means the
    tokens that leave the final norm and are pooled. Of an unrolled objective.
    """
    if pool != "own":
        objective = objective.clone(image_tower=dict(objective.image_tower) | {"pool": pool})
    entered = []

    def add(x_BxTxD):
        entered.append(x_BxTxD + jnp.asarray(probe, x_BxTxD.dtype))
        return entered[0]

    def embed():
        return objective.apply({"params": params}, {"image": image_BxHxWx3}, method="embed")["image"]

    hooks = {("trunk", f"block_{block:02}"): lambda call, x: call(add(x))}
    if block == objective.image_tower["depth"]:
        hooks = {("norm",): lambda call, x: add(call(x))}
    return listen(embed, hooks), entered[0]


def gradients(
    objective: Any, params: Any, image_BxHxWx3: jax.Array, text_BxQxE: jax.Array, *, pool: str = "own", block: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, T, D] that enter `block` (see `embedding`), and of the cosines of picture and texts the gradients with
    respect to them, [Q, B, T, D].

    One forward pass and, for each text, one backward pass through the blocks from `block` on. All of it is computed in
    float32, whatever the objective's own dtype: gradients that nearly cancel are smaller than the rounding of bfloat16.
    """
    objective, params = unrolled(objective, params)
    objective = objective.clone(compute=dict(objective.compute) | {"dtype": "float32", "attention": "xla"})

    def embed(probe):
        return embedding(objective, params, image_BxHxWx3, pool=pool, block=block, probe=probe)

    x_BxTxD = embed(0.0)[1]
    _, pull = jax.vjp(lambda probe: embed(probe)[0], jnp.zeros_like(x_BxTxD))
    return x_BxTxD, jax.vmap(lambda text_BxE: pull(text_BxE)[0])(jnp.swapaxes(text_BxQxE, 0, 1))


def gradcam(
    objective: Any, params: Any, image_BxHxWx3: jax.Array, text_BxQxE: jax.Array, *, pool: str = "own", block: int
) -> jax.Array:
    """[B, Q, N] float32 >= 0: ReLU of the tokens entering `block` (before its first norm), weighed by channel.

    A channel's weight is the mean over patches of the gradient of the cosine of picture and text. The usual choice is
    the last block, from where a class token still looks at the patches. Under `max` that says little: LayerNorm does
    not care for the length of a token, so the gradient at the patch that wins a channel is at right angles to it, and
    what lights up is the others. There the tokens that leave the final norm are what to weigh (`embedding`).
    A map is 0 everywhere if no patch raises the cosine, or if its contrast is within rounding error. Two things are
    rounded: the cosine, whose gradient may cancel (each patch has a share of 1 / N in it), and the products of weights
    and tokens, which may cancel in the sum over channels.
    """
    with jax.default_matmul_precision("highest"):  # accelerators round the factors of float32 products otherwise
        x_BxTxD, gradient_QxBxTxD = gradients(objective, params, image_BxHxWx3, text_BxQxE, pool=pool, block=block)
        first = x_BxTxD.shape[1] - patches(objective)
        x_BxNxD, gradient_QxBxNxD = x_BxTxD[:, first:], gradient_QxBxTxD[:, :, first:]
        map_BxQxN = jax.nn.relu(jnp.einsum("qbd,bnd->bqn", gradient_QxBxNxD.mean(2), x_BxNxD))
        terms_BxQxN = jnp.einsum("qbd,bnd->bqn", jnp.abs(gradient_QxBxNxD).mean(2), jnp.abs(x_BxNxD))
    size_BxQx1 = 1 / x_BxNxD.shape[1] + terms_BxQxN.max(-1, keepdims=True)
    contrast_BxQx1 = map_BxQxN.max(-1, keepdims=True) - map_BxQxN.min(-1, keepdims=True)
    # What is not finite stays so, and is not taken for rounding.
    return jnp.where(contrast_BxQx1 <= ROUNDING * jnp.finfo(jnp.float32).eps * size_BxQx1, 0, map_BxQxN)


def attention(qkv_BxTx3D: jax.Array, heads: int) -> jax.Array:
    """Who attends to whom, [B, T, T], mean over heads, rows sum to 1; from a block's queries, keys and values."""
    b, t, d = qkv_BxTx3D.shape
    qkv = qkv_BxTx3D.astype(jnp.float32).reshape(b, t, heads, 3, d // 3 // heads)
    logits = jnp.einsum("bqhd,bkhd->bhqk", qkv[..., 0, :], qkv[..., 1, :]) * (d // 3 // heads) ** -0.5
    return jax.nn.softmax(logits, axis=-1).mean(1)


def rollout(objective: Any, params: Any, image_BxHxWx3: jax.Array, *, pool: str = "own") -> jax.Array:
    """[B, N] float32: the share of each patch in the pooled picture if attention were all that moves information.

    Every block is (A + I) / 2 with A the mean attention of its heads. The blocks' product is read from the side of
    the pooling: a token weighs as much as the pooled channels depend on it, the mean over channels of d pooled / d
    token after the final norm. That is the class token's row for `cls`, the mean of the patches' rows for `gap`, and
    for `max` and its kin each patch's row by the share of channels it wins. Negative weights, which only `map` has,
    count as none.
    """
    objective, params = unrolled(objective, params)
    depth, heads = objective.image_tower["depth"], objective.image_tower["heads"]

    def total(probe):
        held = {}

        def project(i):
            """Queries, keys and values of block i, from what enters its attention and that layer's parameters."""

            def hook(call, x_BxTxD):
                held[i] = x_BxTxD.astype(jnp.float32)
                return call(x_BxTxD)

            def parameters(call, width):
                kernel, bias = call(width)
                held[i] = held[i] @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)[None, None]
                return kernel, bias

            at = ("trunk", f"block_{i:02}", "attention")
            return {at: hook, (*at, "qkv"): parameters}

        hooks = {path: hook for i in range(depth) for path, hook in project(i).items()}
        hooks["norm",] = lambda call, x: held.setdefault("tokens", call(x) + probe)
        batch = {"image": image_BxHxWx3}
        pooled = listen(lambda: objective.apply({"params": params}, batch, (pool,), method="features")[pool], hooks)
        return pooled.sum(), held

    held = total(0.0)[1]
    weight_BxTxD = jax.grad(lambda probe: total(probe)[0])(jnp.zeros_like(held["tokens"]))
    share_BxT = jax.nn.relu(weight_BxTxD.mean(-1))
    share_BxT /= jnp.maximum(share_BxT.sum(-1, keepdims=True), 1e-12)
    for i in reversed(range(depth)):
        share_BxT = (share_BxT + jnp.einsum("bq,bqk->bk", share_BxT, attention(held[i], heads))) / 2
    return share_BxT[:, -patches(objective) :]
