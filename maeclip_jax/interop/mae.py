"""Parts shared by the MAE formats: fixed positions, the config, and the table of facebookresearch/mae (kind `mae`).

Its .pth files hold the encoder alone (mae_pretrain_*: the decoder is then newly initialized) or both
(mae_visualize_*, *_full).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, processors
from maeclip_jax.interop.convert import Given, Source, under

FIXED = "fixed sine-cosine positions, which ours computes"
FRESH = (("decoder/*", "the file holds the encoder alone"),)
DECODER = dict(width=512, depth=8, heads=16)  # of every published model
# Width of a published tower -> its heads: ViT-B, -L and -H of models_mae.py, and the decoder of all of them.
HEADS, DECODER_HEADS = {768: 12, 1024: 16, 1280: 16}, {512: 16}
MODELS = r"mae_vit_(base_patch16|large_patch16|huge_patch14)(_dec512d8b)?"  # what `args.model` calls them
SAY = "say interop.load(KIND, PATH, heads={'image': N, 'decoder': M})"
COMPUTE = dict(dtype="float32", layers="scan", remat="none", attention="xla")


def fixed(image: Mapping, width: int) -> np.ndarray:
    """Positions as MAE's files have them: [1, 1 + patches, width], 0 for the class token."""
    from maeclip_jax.nn.embed import sincos_2d

    side = image["size"] // image["patch"]
    return np.concatenate([np.zeros((1, width), np.float32), sincos_2d(side, side, width)])[None]


def described(*, image: dict, decoder: dict, positions: tuple, mask: float, norm_pix: bool, pictures: dict) -> dict:
    """The config of an MAE with these towers; `positions`: those that the file holds for (encoder, decoder), or None;
    `pictures`: dict(ops, stats).

    UserError if the decoder's positions are not MAE's fixed ones; those of the encoder may be learned.
    """
    own, decoders = positions
    if decoders is not None and not _is_fixed(decoders, image, decoder["width"]):
        raise UserError("the decoder's positions are not MAE's fixed ones (sine-cosine of a square grid)")
    place = dict(position="sincos")
    if own is not None and not _is_fixed(own, image, image["width"]):
        place = dict(position="learned", cls_position=True)
    return dict(
        objective="mae",
        model=dict(
            image_tower=image | place | dict(cls=True, pool="cls"),
            decoder_tower=decoder,
            streams=("image",),
            mask=dict(image=mask),
            mask_share="sample",
            weights=dict(image=1.0),
            norm_pix=norm_pix,
            stats=pictures["stats"],
            compute=COMPUTE,
        ),
        tokenizer=dict(type="", path=""),
        ops=pictures["ops"],
    )


def _is_fixed(positions: np.ndarray, image: Mapping, width: int) -> bool:
    """Whether these are MAE's positions, as exact as the numbers of the file are: half precision rounds them."""
    want, have = fixed(image, width), positions.astype(np.float32)
    if have.shape != want.shape:
        return False
    # Arrays that went through half precision before they were written as float32 are rounded all the same.
    rounded = next((t for t in (ml_dtypes.bfloat16, np.float16) if np.array_equal(have.astype(t), have)), np.float32)
    # The values are at most 1, so half a step there bounds the rounding; twice that, for one that fell the other way.
    return np.abs(have - want).max() <= max(1e-4, float(ml_dtypes.finfo(rounded).eps))


def sizes(weights: Mapping[str, np.ndarray], down: str, *, torch: bool) -> dict:
    """width, depth and mlp_ratio of a trunk; UserError if it is not there.

    `down`: name, with {layer}, of the MLP's second matrix: torch's [width, inner] or flax's [inner, width].
    """
    depth = 0
    while down.format(layer=depth) in weights:
        depth += 1
    if not depth or weights[down.format(layer=0)].ndim != 2:
        raise UserError(f"there is no matrix {down.format(layer=0)!r} in the file")
    width, inner = weights[down.format(layer=0)].shape[:: 1 if torch else -1]
    return dict(width=width, depth=depth, mlp_ratio=inner / width)


BLOCKS = (
    *(
        row
        for leaf, suffix in (("kernel", "weight"), ("bias", "bias"))
        for row in (
            (f"attention/qkv/{leaf}", f"attn.qkv.{suffix}", "qkv_in_one"),
            (f"attention/out/{leaf}", f"attn.proj.{suffix}", "transpose"),
            (f"mlp/up/{leaf}", f"mlp.fc1.{suffix}", "transpose"),
            (f"mlp/down/{leaf}", f"mlp.fc2.{suffix}", "transpose"),
        )
    ),
    *hf.norm("norm_1", "norm1"),
    *hf.norm("norm_2", "norm2"),
)
ROWS = (
    ("image/cls", "cls_token", "drop_2"),
    ("image/embed_image/patch/kernel", "patch_embed.proj.weight", "patch"),
    ("image/embed_image/patch/bias", "patch_embed.proj.bias", "same"),
    (("image/cls_position", "image/embed_image/position"), "pos_embed", "cls_first_1"),
    *under("image/trunk/blocks/", "blocks.{layer}.", BLOCKS),
    *hf.norm("image/norm", "norm"),
    ("decoder/project/kernel", "decoder_embed.weight", "transpose"),
    ("decoder/project/bias", "decoder_embed.bias", "same"),
    ("decoder/mask_image", "mask_token", "drop_2"),
    *under("decoder/trunk/blocks/", "decoder_blocks.{layer}.", BLOCKS),
    *hf.norm("decoder/norm", "decoder_norm"),
    ("decoder/predict_image/kernel", "decoder_pred.weight", "transpose"),
    ("decoder/predict_image/bias", "decoder_pred.bias", "same"),
)


def describe(weights: Mapping[str, np.ndarray], folder: Path, given: Given) -> dict:
    """The config that the arrays' shapes and the run's `args` imply; heads are those of the published models.

    Files without `args` are pretrained on normalised patches with a mask of 0.75, as the paper's best models are.
    """
    trunk = sizes(weights, "blocks.{layer}.mlp.fc2.weight", torch=True)
    for name, axes in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if name not in weights or weights[name].ndim != axes:
            raise UserError(f"there is no {name!r} in the file: it is not an MAE of facebookresearch/mae")
    patch = weights["patch_embed.proj.weight"].shape[-1]
    side = math.isqrt(weights["pos_embed"].shape[1] - 1) * patch
    decoder = dict(DECODER)
    run = {name.removeprefix("args."): value for name, value in given.settings.items() if name.startswith("args.")}
    published = re.fullmatch(MODELS, str(run.get("model", "mae_vit_base_patch16")))  # others may have any heads
    known, decoders = (HEADS, DECODER_HEADS) if published else ({}, {})
    if "decoder_blocks.0.mlp.fc2.weight" in weights:
        decoder = sizes(weights, "decoder_blocks.{layer}.mlp.fc2.weight", torch=True)
        decoder["heads"] = given.heads_of("decoder", decoder["width"], decoders.get(decoder["width"]), SAY)
    heads = given.heads_of("image", trunk["width"], known.get(trunk["width"]), SAY)
    silent = [k for k in ("norm_pix_loss", "mask_ratio") if k not in run]
    notes = [f"the file does not say {' and '.join(silent)}: taken to be as in the paper's best models"]
    made = described(
        image=dict(size=side, patch=patch, heads=heads) | trunk,
        decoder=decoder,
        positions=(weights["pos_embed"], weights.get("decoder_pos_embed")),
        mask=float(run.get("mask_ratio", 0.75)),
        norm_pix=bool(run.get("norm_pix_loss", True)),
        pictures=dict(ops=processors.ops(side, patch, squash=False), stats="imagenet"),
    )
    return made | dict(notes=notes if silent else [])


SOURCE = Source(
    rows=ROWS,
    describe=describe,
    ignored=(
        ("pos_embed", FIXED),
        ("decoder_pos_embed", FIXED),
        ("optimizer.*", "state of the optimizer"),
        ("scaler.*", "state of the loss scaling"),
        ("args.*", "settings of the run"),
    ),
    renames=((r"^(module|model)\.", ""),),
    fresh=FRESH,
)
