"""MAE of `transformers` (ViTMAEForPreTraining, or ViTMAEModel: the encoder alone), in and out.

Hub files and what versions 4 and 5 of transformers write have three spellings; `RENAMES` brings them to the Hub's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, mae, processors
from maeclip_jax.interop.convert import Given, Source, under

# What config.json leaves out: the defaults of transformers' ViTMAEConfig.
DEFAULTS = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, hidden_act="gelu",
    layer_norm_eps=1e-12, image_size=224, patch_size=16, decoder_hidden_size=512, decoder_num_hidden_layers=8,
    decoder_num_attention_heads=16, decoder_intermediate_size=2048, mask_ratio=0.75, norm_pix_loss=False,
)  # fmt: skip
RENAMES = (
    (r"^(embeddings|encoder|layers|layernorm)\.", r"vit.\1."),
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
BLOCKS = (
    *(
        row
        for leaf, suffix in (("kernel", "weight"), ("bias", "bias"))
        for row in (
            (
                f"attention/qkv/{leaf}",
                tuple(f"attention.attention.{x}.{suffix}" for x in ("query", "key", "value")),
                "qkv",
            ),
            (f"attention/out/{leaf}", f"attention.output.dense.{suffix}", "transpose"),
            (f"mlp/up/{leaf}", f"intermediate.dense.{suffix}", "transpose"),
            (f"mlp/down/{leaf}", f"output.dense.{suffix}", "transpose"),
        )
    ),
    *hf.norm("norm_1", "layernorm_before"),
    *hf.norm("norm_2", "layernorm_after"),
)
POSITION, DECODER_POSITION = "vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"
ROWS = (
    ("image/cls", "vit.embeddings.cls_token", "drop_2"),
    ("image/embed_image/patch/kernel", "vit.embeddings.patch_embeddings.projection.weight", "patch"),
    ("image/embed_image/patch/bias", "vit.embeddings.patch_embeddings.projection.bias", "same"),
    (("image/cls_position", "image/embed_image/position"), POSITION, "cls_first_1"),
    *under("image/trunk/blocks/", "vit.encoder.layer.{layer}.", BLOCKS),
    *hf.norm("image/norm", "vit.layernorm"),
    ("decoder/project/kernel", "decoder.decoder_embed.weight", "transpose"),
    ("decoder/project/bias", "decoder.decoder_embed.bias", "same"),
    ("decoder/mask_image", "decoder.mask_token", "drop_2"),
    *under("decoder/trunk/blocks/", "decoder.decoder_layers.{layer}.", BLOCKS),
    *hf.norm("decoder/norm", "decoder.decoder_norm"),
    ("decoder/predict_image/kernel", "decoder.decoder_pred.weight", "transpose"),
    ("decoder/predict_image/bias", "decoder.decoder_pred.bias", "same"),
)


def describe(weights: Mapping[str, np.ndarray], folder: Path, given: Given) -> dict:
    """The config of a folder's config.json."""
    found = hf.read_json(folder, "config.json")
    if found.get("model_type", "vit_mae") != "vit_mae":
        raise UserError(f"{str(folder)!r} holds a {found['model_type']!r} model; hf-vit-mae reads 'vit_mae'")
    what = str(folder / "config.json")
    values = DEFAULTS | found
    decoder = {k.removeprefix("decoder_"): v for k, v in values.items() if k.startswith("decoder_")}
    image = hf.picture(found, DEFAULTS, what) | hf.tower(found, DEFAULTS, what)
    decoder = hf.tower(decoder | dict(hidden_act=values["hidden_act"]), DEFAULTS, what)
    given.check(image=image, decoder=decoder)
    side = hf.side_of(found, DEFAULTS, what)
    return mae.described(
        image=image,
        decoder=decoder | dict(eps=float(values["layer_norm_eps"])),
        positions=(weights.get(POSITION), weights.get(DECODER_POSITION)),
        mask=float(values["mask_ratio"]),
        norm_pix=bool(values["norm_pix_loss"]),
        pictures=processors.hugging_face(folder, side, image["patch"], stats="imagenet", squash=False),
    )


def wanted(config: Mapping) -> dict:
    """What a model must have to be a ViTMAE; UserError for another objective."""
    if config["objective"] != "mae":
        raise UserError(f"hf-vit-mae writes objective 'mae', not {config['objective']!r}")
    image = config["model"]["image_tower"]
    one = {f"model.decoder_tower.{k}": image.get(k, v) for k, v in (("activation", "gelu"), ("eps", 1e-6))}
    return one | {"model.image_tower.cls": True, "model.image_tower.norm_pre": False}


def config_of(config: Mapping) -> dict:
    """The ViTMAE config.json of one of our MAE models."""
    model = config["model"]
    image, decoder = model["image_tower"], dict(activation="gelu", eps=1e-6) | model["decoder_tower"]
    return hf.section(image) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "image_size": image["size"],
        "patch_size": image["patch"],
        "num_channels": 3,
        "qkv_bias": True,
        "mask_ratio": model["mask"]["image"],
        "norm_pix_loss": model["norm_pix"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        **{f"decoder_{k}": v for k, v in hf.section(decoder).items() if k not in ("hidden_act", "layer_norm_eps")},
    }


def constants(config: Mapping) -> dict[str, np.ndarray]:
    """The decoder's fixed positions, which their files hold as an array."""
    image, decoder = (config["model"][f"{t}_tower"] for t in ("image", "decoder"))
    return {DECODER_POSITION: mae.fixed(image, decoder["width"])}


SOURCE = Source(
    rows=ROWS,
    describe=describe,
    ignored=((POSITION, mae.FIXED), (DECODER_POSITION, mae.FIXED)),
    renames=RENAMES,
    fresh=mae.FRESH,
    config_of=config_of,
    wanted=wanted,
    constants=constants,
)
