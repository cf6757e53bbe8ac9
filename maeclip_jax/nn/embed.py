"""Token embeddings of pictures and texts, and fixed sine-cosine positions."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maeclip_jax.nn.broadcast import broadcast
from maeclip_jax.nn.dense import Dense
from maeclip_jax.nn.mesh import gathered, sum_of_rows

POSITIONS = ("sincos", "learned", "none")


def sincos_1d(length: int, width: int) -> np.ndarray:
    """Fixed positions [length, width], float32: sines, then cosines of omega = 10000^(-i / (width/2)) (M3AE, MAE)."""
    return _sincos(np.arange(length, dtype=np.float64), width)


def sincos_2d(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed 2-D positions [rows * columns, width]: the first half encodes the column, the second the row.

    Source: facebookresearch/mae ("w goes first"). Width must divide by 4.
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine positions need a width divisible by 4, got {width}")
    row, column = np.meshgrid(np.arange(rows, dtype=np.float64), np.arange(columns, dtype=np.float64), indexing="ij")
    return np.concatenate([_sincos(column.ravel(), width // 2), _sincos(row.ravel(), width // 2)], axis=1)


def _sincos(at: np.ndarray, width: int) -> np.ndarray:
    if width % 2:
        raise ValueError(f"sine-cosine positions need an even width, got {width}")
    omega = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angle = at[:, None] * omega[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def positions(module: nn.Module, kind: str, fixed_NxD: np.ndarray) -> jax.Array | None:
    """Position table [N, D] of `kind`: the fixed one, a learned one of that shape (parameter `position`), or None."""
    if kind == "sincos":
        return jnp.asarray(fixed_NxD)
    if kind == "learned":
        return module.param("position", nn.initializers.normal(0.02), fixed_NxD.shape)
    if kind == "none":
        return None
    raise ValueError(f"unknown positions {kind!r}; valid: {', '.join(POSITIONS)}")


def _at(table_NxD: jax.Array, ids_BxK: jax.Array | None) -> jax.Array:
    """Positions of kept tokens [B, K, D], or of all of them [1, N, D]."""
    return table_NxD[None] if ids_BxK is None else jnp.take(table_NxD, ids_BxK, axis=0)


def _on_grid(table_NxD: jax.Array, grid: tuple[int, int], count: int) -> jax.Array:
    """Positions of a smaller square picture [1, count, D]: the table of the whole grid, resampled bilinearly."""
    side = math.isqrt(count)
    if count == table_NxD.shape[0]:
        return table_NxD[None]
    if side * side != count:
        raise ValueError(f"{count} patches are neither the grid of {grid[0]}x{grid[1]} nor a square of their own")
    table = table_NxD.reshape(*grid, -1)
    return jax.image.resize(table, (side, side, table.shape[-1]), "linear", antialias=False).reshape(1, count, -1)


@jax.custom_vjp
def lookup(table_VxD: jax.Array, ids_BxK: jax.Array) -> jax.Array:
    """Rows [B, K, D] of a table. The gradient is summed in float32 and rounded to the table's dtype once.

    In bfloat16 the gradient of padding, or of a frequent word, would stop growing after a few hundred.
    """
    return jnp.take(gathered(table_VxD), ids_BxK, axis=0)


def _lookup_back(saved, d_BxKxD):
    ids_BxK, like_Vx0 = saved

    def added(ids, d):
        return jnp.zeros((like_Vx0.shape[0], d.shape[-1]), jnp.promote_types(d.dtype, jnp.float32)).at[ids].add(d)

    return sum_of_rows(added, ids_BxK, d_BxKxD).astype(like_Vx0.dtype), None


lookup.defvjp(lambda table, ids: (lookup(table, ids), (ids, table[:, :0])), _lookup_back)


class PatchEmbed(nn.Module):
    """Patches [B, K, P] at grid places `ids_BxK` (None: all, in order) -> tokens [B, K, width].

    Masking comes first and embedding second, so only kept patches pay for the matmul. Without `ids_BxK`, a square of
    fewer patches is a smaller picture, which has the positions of the whole one, resampled. `hidden`: (mask_BxK,
    token_D), a token that stands in place of the masked ones; positions are added to it, too.
    """

    width: int
    grid: tuple[int, int]
    position: str = "sincos"
    dtype: jnp.dtype = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(
        self,
        patches_BxKxP: jax.Array,
        ids_BxK: jax.Array | None = None,
        hidden: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        init = nn.initializers.xavier_uniform()
        dense = Dense(self.width, use_bias=self.bias, kernel_init=init, dtype=self.dtype, name="patch")
        x_BxKxD = dense(patches_BxKxP)
        if hidden is not None:
            token = broadcast(hidden[1].astype(x_BxKxD.dtype), x_BxKxD.shape)
            x_BxKxD = jnp.where(hidden[0][..., None], token, x_BxKxD)
        table = positions(self, self.position, sincos_2d(*self.grid, self.width))
        if table is None:
            return x_BxKxD
        count = patches_BxKxP.shape[1]
        at = _on_grid(table, self.grid, count) if ids_BxK is None else _at(table, ids_BxK)
        return x_BxKxD + broadcast(at.astype(x_BxKxD.dtype), x_BxKxD.shape)


class TextEmbed(nn.Module):
    """Token ids [B, K] at places `ids_BxK` (None: all, in order) -> tokens [B, K, width].

    `std` of the embedding table: 0.02 as BERT and CLIP; 1.0 is what the M3AE code has.
    """

    width: int
    vocab: int
    length: int
    position: str = "learned"
    std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text_BxK: jax.Array, ids_BxK: jax.Array | None = None) -> jax.Array:
        if text_BxK.shape[1] > self.length:
            raise ValueError(f"text of {text_BxK.shape[1]} tokens, but the text tower has {self.length} positions")
        init = nn.initializers.normal(self.std)
        token = nn.Embed(self.vocab, self.width, embedding_init=init, name="token")
        x_BxKxD = lookup(token.embedding.astype(self.dtype), text_BxK)
        table = positions(self, self.position, sincos_1d(self.length, self.width))
        if table is None:
            return x_BxKxD
        table = table[: text_BxK.shape[1]] if ids_BxK is None else table
        return x_BxKxD + broadcast(_at(table, ids_BxK).astype(x_BxKxD.dtype), x_BxKxD.shape)
