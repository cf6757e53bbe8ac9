"""Parts shared by the MAE formats: fixed positions, the config, and the table of facebookresearch/mae (kind `mae`).

Its .pth files hold the encoder alone (mae_pretrain_*: the decoder is then newly initialized) or both
(mae_visualize_*, *_full).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf
from maeclip_jax.interop.convert import Source, under

FIXED = "fixed sine-cosine positions, which ours computes"
FRESH = (("decoder/*", "the file holds the encoder alone"),)
DECODER = dict(width=512, depth=8, heads=16)  # of every published model
COMPUTE = dict(dtype="float32", layers="scan", remat="none", attention="xla")


def fixed(image: Mapping, width: int) -> np.ndarray:
    """Positions as MAE's files have them: [1, 1 + patches, width], 0 for the class token."""
    from maeclip_jax.nn.embed import sincos_2d

    side = image["size"] // image["patch"]
    return np.concatenate([np.zeros((1, width), np.float32), sincos_2d(side, side, width)])[None]


def described(*, image: dict, decoder: dict, positions: tuple, mask: float, norm_pix: bool, stats: str) -> dict:
    """The config of an MAE with these towers; `positions`: those that the file holds for (encoder, decoder), or None.

    UserError if the decoder's positions are not MAE's fixed ones; those of the encoder may be learned.
    """
    own, decoders = positions
    if decoders is not None and not _is_fixed(decoders, image, decoder["width"]):
        raise UserError("the decoder's positions are not MAE's fixed ones (sine-cosine of a square grid)")
    place = dict(position="sincos")
    if own is not None and not _is_fixed(own, image, image["width"]):
        place = dict(position="learned", cls_position=True)
    side = image["size"]
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
            stats=stats,
            compute=COMPUTE,
        ),
        tokenizer=dict(type="", path=""),
        ops=f"decode|resize_small({side})|center_crop({side})",
    )


def _is_fixed(positions: np.ndarray, image: Mapping, width: int) -> bool:
    want = fixed(image, width)
    return positions.shape == want.shape and np.abs(positions.astype(np.float32) - want).max() < 1e-4


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


def describe(weights: Mapping[str, np.ndarray], folder: Path) -> dict:
    """The config that the arrays' shapes imply, with the heads of the published models (64 wide, 80 in ViT-H)."""
    trunk = sizes(weights, "blocks.{layer}.mlp.fc2.weight", torch=True)
    for name, axes in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if name not in weights or weights[name].ndim != axes:
            raise UserError(f"there is no {name!r} in the file: it is not an MAE of facebookresearch/mae")
    patch = weights["patch_embed.proj.weight"].shape[-1]
    side = math.isqrt(weights["pos_embed"].shape[1] - 1) * patch
    decoder = dict(DECODER)
    if "decoder_blocks.0.mlp.fc2.weight" in weights:
        decoder = sizes(weights, "decoder_blocks.{layer}.mlp.fc2.weight", torch=True)
        decoder["heads"] = max(1, decoder["width"] // 32)
    return described(
        image=dict(size=side, patch=patch, heads=heads(trunk["width"])) | trunk,
        decoder=decoder,
        positions=(weights["pos_embed"], weights.get("decoder_pos_embed")),
        mask=0.75,
        norm_pix=True,
        stats="imagenet",
    )


def heads(width: int) -> int:
    """The number of heads of ViT-S, -B, -L and -H, and of models that scale like them."""
    return 16 if width == 1280 else max(1, width // 64)


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
