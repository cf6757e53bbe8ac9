"""M3AE of young-geng/m3ae_public: the model.pkl of its logger (a whole train state; its parameters are read)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, mae
from maeclip_jax.interop.convert import Source, under
from maeclip_jax.interop.flax_names import dense, norm

# The defaults of its data; positions are fixed, so the file does not contain them.
SIDE, LENGTH = 256, 64
BLOCKS = (
    *norm("norm_1", "LayerNorm_0"),
    *dense("attention/qkv", "Attention_0/Dense_0", "qkv_columns", "qkv_in_one"),
    *dense("attention/out", "Attention_0/Dense_1"),
    *norm("norm_2", "LayerNorm_1"),
    *dense("mlp/up", "TransformerMLP_0/fc1"),
    *dense("mlp/down", "TransformerMLP_0/fc2"),
)
ROWS = (
    ("image_text/cls", "cls_token", "drop_2"),
    *dense("image_text/embed_image/patch", "image_embedding"),
    ("image_text/embed_text/token/embedding", "text_embedding/embedding", "same"),
    *((f"image_text/modality_{s}", f"encoder_{s}_type_embedding", "same") for s in ("image", "text")),
    *under("image_text/trunk/blocks/", "encoder/Block_{layer}/", BLOCKS),
    *norm("image_text/norm", "encoder/LayerNorm_0"),
    *dense("decoder/project", "decoder_input_projection"),
    *((f"decoder/modality_{s}", f"decoder_{s}_type_embedding", "same") for s in ("image", "text")),
    *((f"decoder/mask_{s}", f"{s}_mask_embedding", "drop_2") for s in ("image", "text")),
    *under("decoder/trunk/blocks/", "decoder/Block_{layer}/", BLOCKS),
    *norm("decoder/norm", "decoder/LayerNorm_0"),
    *dense("decoder/predict_image", "decoder_image_output/Dense_0"),
    *dense("decoder/predict_text", "decoder_text_output/Dense_0"),
)


def describe(weights: Mapping[str, np.ndarray], folder: Path) -> dict:
    """The config that follows from the arrays' shapes, with M3AE's number of heads, tanh GELU and data sizes."""
    encoder, decoder = (
        mae.sizes(weights, f"{part}/Block_{{layer}}/TransformerMLP_0/fc2/kernel", torch=False)
        for part in ("encoder", "decoder")
    )
    needed = ("image_embedding/kernel", "text_embedding/embedding")
    for name in needed:
        if name not in weights or weights[name].ndim != 2:
            raise UserError(f"there is no matrix {name!r} in the file: it is not an M3AE of pictures and texts")
    pixels, vocab = (weights[name].shape[0] for name in needed)
    patch = math.isqrt(pixels // 3)
    if 3 * patch**2 != pixels:
        raise UserError(f"M3AE's patches have {pixels} numbers, which do not make a square of pixels")
    side = SIDE // patch * patch
    words = hf.beside(folder, "bert_vocab.txt", "vocab.txt")
    return dict(
        objective="m3ae",
        model=dict(
            image_tower=dict(size=side, patch=patch, cls=True, pool="cls", activation="gelu_tanh")
            | dict(heads=mae.heads(encoder["width"]))
            | encoder,
            text_tower=dict(vocab=vocab, length=LENGTH, position="sincos", std=1.0, pool="gap"),
            decoder_tower=dict(heads=max(1, decoder["width"] // 32), activation="gelu_tanh") | decoder,
            streams=("image", "text"),
            mask=dict(image=0.75, text=0.75),
            mask_share="batch",
            weights=dict(image=1.0, text=0.5),
            norm_pix=False,
            stats="cc12m",
            compute=mae.COMPUTE,
        ),
        tokenizer=dict(type="bert", path=words, cls=False),
        ops=f"decode|resize_small({side})|center_crop({side})",
    )


SOURCE = Source(
    rows=ROWS,
    describe=describe,
    ignored=(
        ("opt_state/*", "state of the optimizer"),
        ("tokenizer_params/*", "a tokenizer of pictures"),
        ("step", "number of the step"),
    ),
    renames=((r"^state/", ""), (r"^(params/)+", "")),
)
