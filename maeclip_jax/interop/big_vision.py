"""Two towers of google-research/big_vision (SigLIP, image-text): its .npz with the trees img/ and txt/, t and b.

Layers may be separate (encoderblock_0, ...) or stacked (encoderblock). Positions are learned, and GELU is flax's tanh
approximation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf_siglip, mae
from maeclip_jax.interop.convert import Given, Source, under
from maeclip_jax.interop.flax_names import dense, norm

# No op of ours resizes without antialiasing. Of those that do, bicubic comes nearest where pictures shrink: at a third
# of their size 7.7 of 255 from big_vision's (root mean square, photographs), and bilinear 8.6.
RESIZED = (
    "pictures are resized by antialiased bicubic, as transformers does for SigLIP; big_vision's own resize is "
    "bilinear without antialiasing"
)
_ATTENTION = "MultiHeadDotProductAttention_0"
BLOCKS = (
    *norm("norm_1", "LayerNorm_0"),
    *(
        (f"attention/qkv/{leaf}", tuple(f"{_ATTENTION}/{x}/{leaf}" for x in ("query", "key", "value")), "qkv_by_head")
        for leaf in ("kernel", "bias")
    ),
    *dense("attention/out", f"{_ATTENTION}/out", "from_heads"),
    *norm("norm_2", "LayerNorm_1"),
    *dense("mlp/up", "MlpBlock_0/Dense_0"),
    *dense("mlp/down", "MlpBlock_0/Dense_1"),
)
MAP = (
    ("probe", "probe", "drop_1"),
    *(row for x in ("query", "key", "value") for row in dense(x, f"{_ATTENTION}/{x}", "by_head", "by_head")),
    *dense("out", f"{_ATTENTION}/out", "from_heads"),
    *norm("norm", "LayerNorm_0"),
    *dense("up", "MlpBlock_0/Dense_0"),
    *dense("down", "MlpBlock_0/Dense_1"),
)
ROWS = (
    ("image/cls", "img/cls", "drop_2"),
    *dense("image/embed_image/patch", "img/embedding", "patch_hwio"),
    ("image/embed_image/position", "img/pos_embedding", "drop_1"),
    *under("image/trunk/blocks/", "img/Transformer/encoderblock_{layer}/", BLOCKS),
    *norm("image/norm", "img/Transformer/encoder_norm"),
    *under("image_head/pool/map/", "img/MAPHead_0/", MAP),
    *dense("image_head/project", "img/head"),
    ("text/embed_text/token/embedding", "txt/Embed_0/embedding", "same"),
    ("text/embed_text/position", "txt/pos_embedding", "drop_1"),
    *under("text/trunk/blocks/", "txt/Encoder_0/encoderblock_{layer}/", BLOCKS),
    *norm("text/norm", "txt/Encoder_0/encoder_norm"),
    *under("text_head/pool/map/", "txt/MAPHead_0/", MAP),
    *dense("text_head/project", "txt/head"),
    ("log_logit_scale", "t", "drop_1"),
    ("logit_bias", "b", "drop_1"),
)


def describe(weights: Mapping[str, np.ndarray], folder: Path, given: Given) -> dict:
    """The config that the arrays imply. Without an attention head, texts are pooled at the last position (SigLIP)."""
    for name, axes in {
        "img/embedding/kernel": 4, "img/pos_embedding": 3, "txt/Embed_0/embedding": 2, "txt/pos_embedding": 3
    }.items():  # fmt: skip
        if name not in weights or weights[name].ndim != axes:
            raise UserError(f"there is no {name!r} in the file: it is not a pair of towers of big_vision")
    image, widths = _tower(weights, "img", "Transformer", "cls" if "img/cls" in weights else "gap")
    text, other = _tower(weights, "txt", "Encoder_0", "last")
    given.check(image=image, text=text)
    patch = weights["img/embedding/kernel"].shape[0]
    side = math.isqrt(weights["img/pos_embedding"].shape[1]) * patch
    if widths != other:
        raise UserError(f"pictures are embedded in {widths} numbers and texts in {other}")
    vocab, length = weights["txt/Embed_0/embedding"].shape[0], weights["txt/pos_embedding"].shape[1]
    return dict(
        objective="clip",
        model=dict(
            image_tower=image | dict(size=side, patch=patch, cls="img/cls" in weights),
            text_tower=text | dict(vocab=vocab, length=length, padding="attended"),
            embed_width=widths,
            loss="sigmoid" if "b" in weights else "softmax",
            stats="half",
            compute=mae.COMPUTE,
        ),
        tokenizer=hf_siglip.words(folder),
        ops=f"decode|resize({side})",
        notes=[RESIZED],
    )


def _tower(weights: Mapping[str, np.ndarray], part: str, trunk: str, pool: str) -> tuple[dict, int]:
    """(tower settings that follow from its arrays, width of its embeddings)."""
    shape = mae.sizes(weights, f"{part}/{trunk}/encoderblock_{{layer}}/MlpBlock_0/Dense_1/kernel", torch=False)
    width, head = shape["width"], weights.get(f"{part}/head/kernel")
    query = weights.get(f"{part}/{trunk}/encoderblock_0/{_ATTENTION}/query/kernel", np.empty(0))
    if query.ndim != 3:
        raise UserError(f"the attention of {part}/{trunk} has no kernel [width, heads, width of a head] in the file")
    pool = "map" if f"{part}/MAPHead_0/probe" in weights else pool
    tower = shape | dict(
        heads=query.shape[1],
        activation="gelu_tanh",
        position="learned",
        pool=pool,
        projection="none" if head is None else "affine",
    )
    if pool == "map":
        tower["map"] = dict(activation="gelu_tanh", mlp_ratio=shape["mlp_ratio"])
    return tower, width if head is None else head.shape[1]


SOURCE = Source(
    rows=ROWS,
    describe=describe,
    ignored=(("opt/*", "state of the optimizer"),),
    renames=((r"^params/", ""),),
    stacked="encoderblock",
)
