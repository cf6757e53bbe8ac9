"""Rows for what Flax calls its arrays: the same leaves as ours, in other places."""

from __future__ import annotations

from maeclip_jax.interop.convert import Row


def dense(ours: str, theirs: str, kernel: str = "same", bias: str = "same") -> tuple[Row, ...]:
    """Kernel and bias of a Dense, or of what stands for one."""
    return (f"{ours}/kernel", f"{theirs}/kernel", kernel), (f"{ours}/bias", f"{theirs}/bias", bias)


def norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """Scale and bias of a LayerNorm."""
    return tuple((f"{ours}/{leaf}", f"{theirs}/{leaf}", "same") for leaf in ("scale", "bias"))
