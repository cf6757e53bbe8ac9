"""SigLIP of `transformers` (SiglipModel; also SigLIP 2 of one resolution): a folder with config.json and weights.

Its text tower attends to padding and takes the last position, whatever stands there: texts are as long as they were in
training, filled with the end of text (id 1; SigLIP 2: padding, id 0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf, processors
from maeclip_jax.interop.convert import Given, Source, under
from maeclip_jax.interop.export import two_towers
from maeclip_jax.interop.hf_clip import COMPUTE

# What config.json leaves out: the defaults of transformers' SiglipTextConfig and SiglipVisionConfig.
_BOTH = dict(
    hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12,
)  # fmt: skip
TEXT = _BOTH | dict(vocab_size=32000, max_position_embeddings=64)
VISION = _BOTH | dict(image_size=224, patch_size=16)
_HEAD, _MAP = "vision_model.head", "image_head/pool/map"
_QKV = ("query", "key", "value")
ROWS = (
    ("image/embed_image/patch/kernel", "vision_model.embeddings.patch_embedding.weight", "patch"),
    ("image/embed_image/patch/bias", "vision_model.embeddings.patch_embedding.bias", "same"),
    ("image/embed_image/position", "vision_model.embeddings.position_embedding.weight", "same"),
    *under("image/", "vision_model.", hf.BLOCKS),
    *hf.norm("image/norm", "vision_model.post_layernorm"),
    (f"{_MAP}/probe", f"{_HEAD}.probe", "drop_1"),
    (tuple(f"{_MAP}/{x}/kernel" for x in _QKV), f"{_HEAD}.attention.in_proj_weight", "thirds"),
    (tuple(f"{_MAP}/{x}/bias" for x in _QKV), f"{_HEAD}.attention.in_proj_bias", "thirds"),
    (f"{_MAP}/out/kernel", f"{_HEAD}.attention.out_proj.weight", "transpose"),
    (f"{_MAP}/out/bias", f"{_HEAD}.attention.out_proj.bias", "same"),
    *hf.norm(f"{_MAP}/norm", f"{_HEAD}.layernorm"),
    (f"{_MAP}/up/kernel", f"{_HEAD}.mlp.fc1.weight", "transpose"),
    (f"{_MAP}/up/bias", f"{_HEAD}.mlp.fc1.bias", "same"),
    (f"{_MAP}/down/kernel", f"{_HEAD}.mlp.fc2.weight", "transpose"),
    (f"{_MAP}/down/bias", f"{_HEAD}.mlp.fc2.bias", "same"),
    ("text/embed_text/token/embedding", "text_model.embeddings.token_embedding.weight", "same"),
    ("text/embed_text/position", "text_model.embeddings.position_embedding.weight", "same"),
    *under("text/", "text_model.", hf.BLOCKS),
    *hf.norm("text/norm", "text_model.final_layer_norm"),
    ("text_head/project/kernel", "text_model.head.weight", "transpose"),
    ("text_head/project/bias", "text_model.head.bias", "same"),
    ("log_logit_scale", "logit_scale", "drop_1"),
    ("logit_bias", "logit_bias", "drop_1"),
)


def describe(weights: Mapping[str, np.ndarray], folder: Path, given: Given) -> dict:
    """The config of a folder's config.json; the tokenizer where its model is there."""
    found = hf.read_json(folder, "config.json")
    if found.get("model_type", "siglip") != "siglip":
        raise UserError(f"{str(folder)!r} holds a {found['model_type']!r} model; hf-siglip reads 'siglip'")
    what = str(folder / "config.json")
    vision, text = (found.get(k) or {} for k in ("vision_config", "text_config"))
    if not vision.get("vision_use_head", True):
        raise UserError(f"{what}: vision_use_head is False; hf-siglip reads models with the attention head")
    image, section = hf.tower(vision, VISION, what), TEXT | text
    head = {k: image[k] for k in ("activation", "mlp_ratio", "eps")}
    size, side = hf.picture(vision, VISION, what), hf.side_of(vision, VISION, what)
    pictures = processors.hugging_face(folder, side, size["patch"], stats="half", squash=True)
    given.check(image=image, text=hf.tower(text, TEXT, what))
    return dict(
        objective="clip",
        model=dict(
            image_tower=size
            | image
            | dict(cls=False, position="learned", patch_bias=True, pool="map", projection="none", map=head),
            text_tower=dict(vocab=section["vocab_size"], length=section["max_position_embeddings"])
            | hf.tower(text, TEXT, what)
            | dict(causal=False, position="learned", padding="attended", pool="last", projection="affine"),
            embed_width=image["width"],
            loss="sigmoid",
            stats=pictures["stats"],
            compute=COMPUTE,
        ),
        tokenizer=words(folder),
        ops=pictures["ops"],
    )


def words(folder: Path, canonical: bool | None = None) -> dict:
    """The tokenizer in `folder`, by the rules of its vocabulary.

    SigLIP's: ASCII punctuation is taken away, the end of text fills a text up. SigLIP 2's (Gemma's vocabulary): lower
    case, punctuation stays, padding fills. `canonical`: whether punctuation goes, where that is known otherwise.
    """
    path = hf.beside(folder, "spiece.model", "tokenizer.model", "tokenizer.json")
    found = dict(type="json" if path.endswith(".json") else "sentencepiece", path=path, eos=True)
    gemma = bool(path) and _is_gemma(folder, path)
    punctuation = gemma if canonical is None else not canonical
    return found | dict(fill="pad" if gemma else "eos") | (dict(lower=True) if punctuation else dict(canonical=True))


def _is_gemma(folder: Path, path: str) -> bool:
    """Whether the vocabulary is Gemma's, which has a beginning of text; SigLIP's are T5's, which have none."""
    name = str(hf.read_json(folder, "tokenizer_config.json", needed=False).get("tokenizer_class") or "")
    if name:
        return name.startswith(("Gemma", "Siglip2"))
    try:
        if path.endswith(".json"):
            return "<bos>" in json.loads(Path(path).read_text())["model"]["vocab"]
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=Path(path).read_bytes()).bos_id() >= 0
    except (ValueError, KeyError, TypeError, RuntimeError):  # the tokenizer says what is wrong when it is made
        return False


def wanted(config: Mapping) -> dict:
    """What a model must have to be a SiglipModel.

    Besides SigLIP's own head, the mean over patches (`gap`) is accepted with a projection or without: see `as_map`.
    """
    two_towers("hf-siglip", config)
    model = config["model"]
    image = model["image_tower"]
    out = {f"model.image_tower.{k}": False for k in ("cls", "norm_pre")}
    if image["pool"] == "map":
        head = dict(activation="gelu", mlp_ratio=4.0, eps=1e-6) | dict(image.get("map") or {})
        out |= {f"model.image_tower.{k}": v for k, v in head.items()}
        out |= {"model.image_tower.projection": "none", "model.embed_width": image["width"]}
    else:
        out |= {"model.image_tower.pool": "gap", "model.embed_width": min(model["embed_width"], image["width"])}
    text = dict(causal=False, pool="last", padding="attended", norm_pre=False, cls=False)
    # A softmax's temperature alone would bring every score to 1: transformers takes the sigmoid.
    return out | {f"model.text_tower.{k}": v for k, v in text.items()} | {"model.loss": "sigmoid"}


def config_of(config: Mapping) -> dict:
    """The config.json of a model of ours."""
    image, text = (config["model"][f"{t}_tower"] for t in ("image", "text"))
    vision = dict(model_type="siglip_vision_model", image_size=image["size"], patch_size=image["patch"], num_channels=3)
    words = dict(model_type="siglip_text_model", vocab_size=text["vocab"], max_position_embeddings=text["length"])
    words |= dict(projection_size=image["width"], pad_token_id=None, bos_token_id=None, eos_token_id=None)
    return dict(
        architectures=["SiglipModel"],
        model_type="siglip",
        dtype="float32",
        vision_config=vision | hf.section(image),
        text_config=words | hf.section(text),
    )


def changed(flat: Mapping[str, np.ndarray], config: Mapping) -> dict[str, np.ndarray]:
    """`flat` with the head of a SigLIP where the model has another one, and texts projected as wide as pictures are."""
    out, model = dict(flat), config["model"]
    width, embed = model["image_tower"]["width"], model["embed_width"]
    if model["image_tower"]["pool"] != "map":
        kernel = out.pop("image_head/project/kernel", np.eye(width, dtype=np.float32))
        bias = out.pop("image_head/project/bias", np.zeros(embed, np.float32))
        out |= {f"{_MAP}/{k}": x for k, x in as_map(_wide(kernel, width), _wide(bias, width), config).items()}
    out["text_head/project/kernel"] = _wide(
        out.get("text_head/project/kernel", np.eye(model["text_tower"]["width"], dtype=np.float32)), width
    )
    out["text_head/project/bias"] = _wide(out.get("text_head/project/bias", np.zeros(embed, np.float32)), width)
    return out


def _wide(x: np.ndarray, width: int) -> np.ndarray:
    """`x` with zeros up to `width` columns, which change no cosine."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def as_map(kernel_DxD: np.ndarray, bias_D: np.ndarray, config: Mapping) -> dict[str, np.ndarray]:
    """The parameters of an attention pool that is the mean over tokens, projected: queries and keys are 0, so that all
    tokens weigh the same, and the MLP behind it adds 0."""
    tower = config["model"]["image_tower"]
    width, inner = tower["width"], round(tower.get("mlp_ratio", 4.0) * tower["width"])
    square, row = np.zeros((width, width), np.float32), np.zeros(width, np.float32)
    return {
        "probe": row[None], "query/kernel": square, "query/bias": row, "key/kernel": square, "key/bias": row,
        "value/kernel": np.eye(width, dtype=np.float32), "value/bias": row, "out/kernel": kernel_DxD,
        "out/bias": bias_D, "norm/scale": row + 1, "norm/bias": row, "up/kernel": np.zeros((width, inner), np.float32),
        "up/bias": np.zeros(inner, np.float32), "down/kernel": np.zeros((inner, width), np.float32), "down/bias": row,
    }  # fmt: skip


SOURCE = Source(rows=ROWS, describe=describe, ignored=hf.IGNORED, config_of=config_of, wanted=wanted, changed=changed)
