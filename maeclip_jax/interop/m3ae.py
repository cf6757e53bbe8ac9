"""M3AE of young-geng/m3ae_public: the model.pkl of its logger (a whole train state; its parameters are read)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, mae, processors
from maeclip_jax.interop.convert import Given, Source, under
from maeclip_jax.interop.flax_names import dense, norm
from maeclip_jax.nn.pixels import STATS

# The defaults of its data where the file has no `variant`; positions are fixed, so no array has them.
SIDE, LENGTH = 256, 64
HEADS = mae.HEADS | {384: 6}  # by width, of its types small, base, large and huge
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


def describe(weights: Mapping[str, np.ndarray], folder: Path, given: Given) -> dict:
    """The config that follows from the arrays' shapes and from the run's `variant`, with M3AE's tanh GELU."""
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
    run = {name.removeprefix("variant."): v for name, v in given.settings.items() if name.startswith("variant.")}
    side = run.get("data.image_size", SIDE) // patch * patch
    length = run.get("data.tokenizer_max_length", LENGTH)
    stats = run.get("data.image_normalization", "cc12m")
    if stats not in STATS:
        raise UserError(
            f"its pictures are normalised by {stats!r}, which nn.pixels.STATS does not have; valid: {', '.join(STATS)}"
        )
    heads = {
        tower: given.heads_of(tower, sizes["width"], _heads(run, setting, sizes["width"], published), mae.SAY)
        for tower, sizes, setting, published in (
            ("image", encoder, "m3ae.num_heads", HEADS),
            ("decoder", decoder, "m3ae.dec_num_heads", mae.DECODER_HEADS),
        )
    }
    words = hf.beside(folder, "bert_vocab.txt", "vocab.txt")
    return dict(
        objective="m3ae",
        model=dict(
            image_tower=dict(size=side, patch=patch, cls=True, pool="cls", activation="gelu_tanh")
            | dict(heads=heads["image"])
            | encoder,
            text_tower=dict(vocab=vocab, length=length, position="sincos", std=1.0, pool="gap"),
            decoder_tower=dict(heads=heads["decoder"], activation="gelu_tanh") | decoder,
            streams=("image", "text"),
            mask={s: float(run.get(f"m3ae.{s}_mask_ratio", 0.75)) for s in ("image", "text")},
            mask_share="batch",
            weights={s: float(run.get(f"{s}_loss_weight", own)) for s, own in (("image", 1.0), ("text", 0.5))},
            norm_pix=False,
            stats=stats,
            compute=mae.COMPUTE,
        ),
        tokenizer=dict(type="bert", path=words, cls=False),
        ops=processors.ops(side, patch, squash=False),
        notes=[] if run else ["the file has no variant, its run's settings: the defaults of M3AE's code are taken"],
    )


def _heads(run: Mapping, setting: str, width: int, published: Mapping[int, int]) -> int | None:
    """Heads of a tower by the run's settings. A model type goes before the numbers; without either, by its width."""
    if "m3ae.model_type" in run or setting not in run:
        return published.get(width)
    return run[setting]


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
