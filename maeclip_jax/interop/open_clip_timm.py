"""What open_clip's models with an image tower of timm (SigLIP) have besides the arrays of its own towers.

The file alone shows neither heads nor activation: the config beside it names the timm model, which determines both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, mae
from maeclip_jax.interop.convert import under

# timm model -> (heads, activation), as timm/models/vision_transformer.py registers them.
MODELS = {
    **{f"vit_base_patch16_siglip_{s}": (12, "gelu") for s in (224, 256, 384, 512)},
    **{f"vit_large_patch16_siglip_{s}": (16, "gelu") for s in (256, 384)},
    **{f"vit_so400m_patch14_siglip_{s}": (16, "gelu") for s in (224, 378, 384)},
    **{f"vit_so400m_patch16_siglip_{s}": (16, "gelu_tanh") for s in (256, 384, 512)},
    **{f"vit_giantopt_patch16_siglip_{s}": (16, "gelu_tanh") for s in (256, 384)},
    "vit_base_patch32_siglip_256": (12, "gelu_tanh"),
    "vit_large_patch16_siglip_512": (16, "gelu_tanh"),
}
_TRUNK, _POOL, _MAP = "visual.trunk", "visual.trunk.attn_pool", "image_head/pool/map"


def _dense(ours: str, theirs: str) -> tuple:
    return (f"{ours}/kernel", f"{theirs}.weight", "transpose"), (f"{ours}/bias", f"{theirs}.bias", "same")


ROWS = (
    ("image/embed_image/patch/kernel", f"{_TRUNK}.patch_embed.proj.weight", "patch"),
    ("image/embed_image/patch/bias", f"{_TRUNK}.patch_embed.proj.bias", "same"),
    ("image/embed_image/position", f"{_TRUNK}.pos_embed", "drop_1"),
    *under("image/trunk/blocks/", f"{_TRUNK}.blocks.{{layer}}.", mae.BLOCKS),
    *hf.norm("image/norm", f"{_TRUNK}.norm"),
    (f"{_MAP}/probe", f"{_POOL}.latent", "drop_1"),
    *_dense(f"{_MAP}/query", f"{_POOL}.q"),
    ((f"{_MAP}/key/kernel", f"{_MAP}/value/kernel"), f"{_POOL}.kv.weight", "halves"),
    ((f"{_MAP}/key/bias", f"{_MAP}/value/bias"), f"{_POOL}.kv.bias", "halves"),
    *_dense(f"{_MAP}/out", f"{_POOL}.proj"),
    *hf.norm(f"{_MAP}/norm", f"{_POOL}.norm"),
    *_dense(f"{_MAP}/up", f"{_POOL}.mlp.fc1"),
    *_dense(f"{_MAP}/down", f"{_POOL}.mlp.fc2"),
    *_dense("image_head/project", "visual.head.proj"),
)


def image_tower(weights: Mapping[str, np.ndarray], vision: Mapping, what: str) -> tuple[dict, int]:
    """(tower settings of `vision`, the vision_cfg in the config called `what`; side of the pictures in pixels).

    The settings' size is what the patches cover. UserError for a timm model that is not in MODELS.
    """
    name = vision.get("timm_model_name")
    if not name:
        raise UserError(
            f"the image tower is one of timm, whose heads and activation the file does not say; {what} that belongs to "
            "it (open_clip has it on the Hub) must lie beside it"
        )
    if name not in MODELS:
        raise UserError(f"{what}: timm_model_name is {name!r}; valid here: {', '.join(sorted(MODELS))}")
    if vision.get("timm_pool", "avg") != "map" or f"{_POOL}.latent" not in weights:
        raise UserError(f"{what}: timm_pool is {vision.get('timm_pool', 'avg')!r}; valid here: 'map'")
    for needed, axes in ((f"{_TRUNK}.patch_embed.proj.weight", 4), (f"{_TRUNK}.pos_embed", 3)):
        if needed not in weights or weights[needed].ndim != axes:
            raise UserError(f"the file lacks {needed!r}, which a ViT of timm has")
    heads, activation = MODELS[name]
    shape = mae.sizes(weights, f"{_TRUNK}.blocks.{{layer}}.mlp.fc2.weight", torch=True)
    up = f"{_POOL}.mlp.fc1.weight"
    if up not in weights or weights[up].ndim != 2:
        raise UserError(f"the file lacks the matrix {up!r}, which timm's attention pooling has")
    patch = weights[f"{_TRUNK}.patch_embed.proj.weight"].shape[-1]
    covered = math.isqrt(weights[f"{_TRUNK}.pos_embed"].shape[1]) * patch
    side = vision.get("image_size", covered)
    if not isinstance(side, int) or side // patch * patch != covered:
        raise UserError(f"{what}: image_size is {side!r}, the positions in the file are for {covered} pixels")
    projection = "none"
    if "visual.head.proj.weight" in weights:
        projection = "affine" if "visual.head.proj.bias" in weights else "linear"
    tower = dict(size=covered, patch=patch, cls=False, position="learned", patch_bias=True, pool="map")
    tower |= shape | dict(heads=heads, activation=activation, eps=1e-6, projection=projection)
    ratio = weights[up].shape[0] / weights[up].shape[1]
    return tower | dict(map=dict(activation=activation, mlp_ratio=ratio, eps=1e-6)), side
