"""CLIP of `transformers` (CLIPModel): a folder with config.json and model.safetensors (or pytorch_model.bin)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, processors
from maeclip_jax.interop.convert import Given, Source, under
from maeclip_jax.interop.export import end_of, end_of_text, two_towers

# What config.json leaves out: the defaults of transformers' CLIPTextConfig and CLIPVisionConfig.
_BOTH = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, num_hidden_layers=12)
TEXT = _BOTH | dict(
    hidden_size=512, intermediate_size=2048, num_attention_heads=8, vocab_size=49408, max_position_embeddings=77
)
VISION = _BOTH | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224, patch_size=32)
_POSITION = ("image/cls_position", "image/embed_image/position")
ROWS = (
    ("image/cls", "vision_model.embeddings.class_embedding", "same"),
    ("image/embed_image/patch/kernel", "vision_model.embeddings.patch_embedding.weight", "patch"),
    (_POSITION, "vision_model.embeddings.position_embedding.weight", "cls_first"),
    *hf.norm("image/norm_pre", "vision_model.pre_layrnorm"),
    *under("image/", "vision_model.", hf.BLOCKS),
    *hf.norm("image/norm", "vision_model.post_layernorm"),
    ("image_head/project/kernel", "visual_projection.weight", "transpose"),
    ("text/embed_text/token/embedding", "text_model.embeddings.token_embedding.weight", "same"),
    ("text/embed_text/position", "text_model.embeddings.position_embedding.weight", "same"),
    *under("text/", "text_model.", hf.BLOCKS),
    *hf.norm("text/norm", "text_model.final_layer_norm"),
    ("text_head/project/kernel", "text_projection.weight", "transpose"),
    ("log_logit_scale", "logit_scale", "scalar"),
)
# Settings that openai/CLIP's towers have in every format, besides their sizes.
IMAGE_TOWER = dict(
    cls=True, cls_position=True, norm_pre=True, position="learned", patch_bias=False, pool="cls", projection="linear"
)
TEXT_TOWER = dict(causal=True, position="learned", padding="masked", pool="last", projection="linear")
# Where the byte-pair merges may be: tokenizer.json is what version 5 of transformers writes alone.
MERGES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "tokenizer.json")
COMPUTE = dict(dtype="float32", layers="scan", remat="none", attention="xla")


def describe(weights: Mapping[str, np.ndarray], folder: Path, given: Given) -> dict:
    """The config of a folder's config.json; the tokenizer where its merges are there."""
    found = hf.read_json(folder, "config.json")
    if found.get("model_type", "clip") != "clip":
        raise UserError(f"{str(folder)!r} holds a {found['model_type']!r} model; hf-clip reads 'clip'")
    what = str(folder / "config.json")
    vision, text = (found.get(k) or {} for k in ("vision_config", "text_config"))
    image = hf.picture(vision, VISION, what) | hf.tower(vision, VISION, what)
    words = TEXT | text
    side = hf.side_of(vision, VISION, what)
    pictures = processors.hugging_face(folder, side, image["patch"], stats="clip", squash=False)
    model = dict(
        image_tower=image | IMAGE_TOWER,
        text_tower=dict(vocab=words["vocab_size"], length=words["max_position_embeddings"])
        | hf.tower(text, TEXT, what)
        | TEXT_TOWER,
        embed_width=found.get("projection_dim") or 512,
        loss="softmax",
        stats=pictures["stats"],
        compute=COMPUTE,
    )
    given.check(image=model["image_tower"], text=model["text_tower"])
    return dict(
        objective="clip",
        model=model,
        tokenizer=dict(type="clip", path=hf.beside(folder, *MERGES)),
        ops=pictures["ops"],
    )


def wanted(config: Mapping) -> dict:
    """What a model must have to be a CLIPModel. A class token without a position, fixed positions and a bias of the
    patches are accepted."""
    two_towers("hf-clip", config)
    image = dict(cls=True, norm_pre=True, pool="cls", projection="linear")
    text = dict(causal=True, pool="last", padding="masked", projection="linear", norm_pre=False, cls=False)
    return (
        {f"model.image_tower.{k}": v for k, v in image.items()}
        | {f"model.text_tower.{k}": v for k, v in text.items()}
        # Where eos_token_id is 2, transformers takes the highest id of a text for its end.
        | end_of_text("hf-clip", config, taken=(2,))
    )


def config_of(config: Mapping) -> dict:
    """The config.json of a model of ours."""
    model = config["model"]
    image, text = model["image_tower"], model["text_tower"]
    vision = dict(model_type="clip_vision_model", image_size=image["size"], patch_size=image["patch"], num_channels=3)
    words = dict(model_type="clip_text_model", vocab_size=text["vocab"], max_position_embeddings=text["length"])
    # CLIP's end of a text is its highest id, which transformers finds where eos_token_id is 2.
    words |= dict(eos_token_id=end_of(config) or 2, bos_token_id=0, pad_token_id=0)
    width = model.get("embed_width", 512)
    return dict(
        architectures=["CLIPModel"],
        model_type="clip",
        dtype="float32",
        projection_dim=width,
        vision_config=vision | hf.section(image) | dict(projection_dim=width),
        text_config=words | hf.section(text) | dict(projection_dim=width),
    )


SOURCE = Source(rows=ROWS, describe=describe, ignored=hf.IGNORED, config_of=config_of, wanted=wanted)
