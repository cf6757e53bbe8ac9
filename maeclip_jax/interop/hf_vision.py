"""Any image tower of ours as the vision model of `transformers` that is the same network: written, not read.

    norm_pre and a class token      CLIPVisionModel     last_hidden_state is before the final norm (pooler_output after)
    a class token                   ViTModel            last_hidden_state = [class token, patches] after the final norm
    neither                         SiglipVisionModel   last_hidden_state = patches after the final norm, no head

`transformers.AutoModel.from_pretrained(folder)` finds the class in config.json. Pooling and projection have no place in
these: gap is the mean over last_hidden_state's patches, max their maximum.
"""

from __future__ import annotations

from collections.abc import Mapping

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, hf_clip, hf_vit_mae
from maeclip_jax.interop.convert import Source, under

_CLIP = tuple(row for row in hf_clip.ROWS if str(row[1]).find("vision_model.") >= 0)
_SIGLIP = (
    ("image/embed_image/patch/kernel", "vision_model.embeddings.patch_embedding.weight", "patch"),
    ("image/embed_image/patch/bias", "vision_model.embeddings.patch_embedding.bias", "same"),
    ("image/embed_image/position", "vision_model.embeddings.position_embedding.weight", "same"),
    *under("image/", "vision_model.", hf.BLOCKS),
    *hf.norm("image/norm", "vision_model.post_layernorm"),
)
_VIT = (
    ("image/cls", "embeddings.cls_token", "drop_2"),
    (("image/cls_position", "image/embed_image/position"), "embeddings.position_embeddings", "cls_first_1"),
    ("image/embed_image/patch/kernel", "embeddings.patch_embeddings.projection.weight", "patch"),
    ("image/embed_image/patch/bias", "embeddings.patch_embeddings.projection.bias", "same"),
    *under("image/trunk/blocks/", "encoder.layer.{layer}.", hf_vit_mae.BLOCKS),
    *hf.norm("image/norm", "layernorm"),
)


def source_for(config: Mapping) -> Source:
    """The table of the vision model that is `config`'s image tower; UserError if it has none of its own."""
    tower = config["model"].get("image_tower") or {}
    if "width" not in tower or config["objective"] == "m3ae":
        raise UserError(f"hf-vision writes an image tower; objective {config['objective']!r} has none of its own")
    name, kind, rows = (
        ("CLIPVisionModel", "clip_vision_model", _CLIP)
        if tower.get("norm_pre")
        else ("ViTModel", "vit", _VIT)
        if tower.get("cls")
        else ("SiglipVisionModel", "siglip_vision_model", _SIGLIP)
    )
    found = dict(architectures=[name], model_type=kind, dtype="float32", vision_use_head=False, qkv_bias=True)
    found |= dict(image_size=tower["size"], patch_size=tower["patch"], num_channels=3) | hf.section(tower)
    wanted = {"model.image_tower.cls": True} if tower.get("norm_pre") else {}
    return Source(rows=rows, describe=None, config_of=lambda _: found, wanted=lambda _: wanted)
