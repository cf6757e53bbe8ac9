"""CLIP as openai/CLIP and open_clip write it: kinds openai-clip, open_clip and open_clip-quickgelu.

A file determines its sizes, but neither the number of heads (64 wide in all published ViTs) nor the activation: quick
GELU in OpenAI's models, exact GELU in open_clip's except those called quickgelu. An open_clip_config.json beside the
weights, as on the Hub, gives both and takes precedence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf
from maeclip_jax.interop.convert import Source, under
from maeclip_jax.interop.hf_clip import COMPUTE, IMAGE_TOWER, TEXT_TOWER

HEAD_WIDTH = 64
BLOCKS = (
    *hf.norm("norm_1", "ln_1"),
    ("attention/qkv/kernel", "attn.in_proj_weight", "qkv_in_one"),
    ("attention/qkv/bias", "attn.in_proj_bias", "qkv_in_one"),
    ("attention/out/kernel", "attn.out_proj.weight", "transpose"),
    ("attention/out/bias", "attn.out_proj.bias", "same"),
    *hf.norm("norm_2", "ln_2"),
    ("mlp/up/kernel", "mlp.c_fc.weight", "transpose"),
    ("mlp/up/bias", "mlp.c_fc.bias", "same"),
    ("mlp/down/kernel", "mlp.c_proj.weight", "transpose"),
    ("mlp/down/bias", "mlp.c_proj.bias", "same"),
)
ROWS = (
    ("image/cls", "visual.class_embedding", "same"),
    ("image/embed_image/patch/kernel", "visual.conv1.weight", "patch"),
    (("image/cls_position", "image/embed_image/position"), "visual.positional_embedding", "cls_first"),
    *hf.norm("image/norm_pre", "visual.ln_pre"),
    *under("image/trunk/blocks/", "visual.transformer.resblocks.{layer}.", BLOCKS),
    *hf.norm("image/norm", "visual.ln_post"),
    ("image_head/project/kernel", "visual.proj", "same"),
    ("text/embed_text/token/embedding", "token_embedding.weight", "same"),
    ("text/embed_text/position", "positional_embedding", "same"),
    *under("text/trunk/blocks/", "transformer.resblocks.{layer}.", BLOCKS),
    *hf.norm("text/norm", "ln_final"),
    ("text_head/project/kernel", "text_projection", "same"),
    ("log_logit_scale", "logit_scale", "same"),
    ("logit_bias", "logit_bias", "same"),
)
IGNORED = (
    ("input_resolution", "a size"),
    ("context_length", "a size"),
    ("vocab_size", "a size"),
    ("attn_mask", "the causal mask"),
    ("optimizer.*", "state of the optimizer"),
    ("scaler.*", "state of the loss scaling"),
    ("epoch", "number of the epoch"),
)
RENAMES = ((r"^state_dict\.", ""), (r"^module\.", ""), (r"^text\.", ""))
NEEDED = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
    "text_projection": 2,
}


def describe(weights: Mapping[str, np.ndarray], folder: Path, *, activation: str) -> dict:
    """The config that follows from the arrays' shapes and from open_clip_config.json, if there is one."""
    if any(name.startswith("visual.layer1.") for name in weights):
        raise UserError(f"weights in {str(folder)!r} have a ResNet image tower; valid: CLIP models with a ViT")
    for name, axes in NEEDED.items():
        if name not in weights or weights[name].ndim != axes:
            raise UserError(f"weights in {str(folder)!r} are not a CLIP of openai/CLIP or open_clip: no {name!r}")
    found = hf.read_json(folder, "open_clip_config.json", needed=False)
    config = found.get("model_cfg") or {}
    vision, text = (config.get(k) or {} for k in ("vision_cfg", "text_cfg"))
    _check(vision, text, str(folder / "open_clip_config.json"))
    if config:
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    patch = weights["visual.conv1.weight"].shape[-1]
    side = math.isqrt(len(weights["visual.positional_embedding"]) - 1) * patch
    image = _trunk(weights, "visual.transformer", vision.get("head_width") or HEAD_WIDTH, activation)
    head_width = weights["token_embedding.weight"].shape[1] // text["heads"] if text.get("heads") else HEAD_WIDTH
    words = _trunk(weights, "transformer", head_width, activation)
    vocab, length = len(weights["token_embedding.weight"]), len(weights["positional_embedding"])
    return dict(
        objective="clip",
        model=dict(
            image_tower=dict(size=side, patch=patch) | image | IMAGE_TOWER,
            text_tower=dict(vocab=vocab, length=length) | words | TEXT_TOWER,
            embed_width=weights["text_projection"].shape[1],
            loss="sigmoid" if "logit_bias" in weights else "softmax",
            stats=hf.stats_of(found.get("preprocess_cfg") or {}, "clip", ("mean", "std"), folder),
            compute=COMPUTE,
        ),
        tokenizer=dict(type="clip", path=hf.beside(folder, "bpe_simple_vocab_16e6.txt.gz", "merges.txt")),
        ops=f"decode|resize_small({side})|center_crop({side})",
    )


def _check(vision: Mapping, text: Mapping, what: str) -> None:
    """Raises UserError for a setting of open_clip that our towers do not support."""
    for section, name, valid in (
        (vision, "pool_type", "tok"),
        (vision, "timm_model_name", None),
        (text, "pool_type", "argmax"),
        (text, "hf_model_name", None),
        (text, "no_causal_mask", False),
    ):
        if section.get(name, valid) != valid:
            raise UserError(f"{what}: {name} is {section[name]!r}; valid here: {valid!r}")


def _trunk(weights: Mapping[str, np.ndarray], name: str, head_width: int, activation: str) -> dict:
    inner, width = weights[f"{name}.resblocks.0.mlp.c_fc.weight"].shape
    depth = 0
    while f"{name}.resblocks.{depth}.mlp.c_fc.weight" in weights:
        depth += 1
    if not head_width or width % head_width:
        raise UserError(f"{name} is {width} wide, which does not divide into heads of {head_width}")
    shape = dict(width=width, depth=depth, heads=width // head_width, mlp_ratio=inner / width)
    return shape | dict(activation=activation, eps=1e-5)


def _source(activation: str) -> Source:
    of = functools.partial(describe, activation=activation)
    return Source(rows=ROWS, describe=of, ignored=IGNORED, renames=RENAMES)


SOURCE, GELU = _source("quick_gelu"), _source("gelu")
