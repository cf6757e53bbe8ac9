"""CLIP as openai/CLIP and open_clip write it: kinds openai-clip, open_clip and open_clip-quickgelu.

A file determines its sizes, but neither the number of heads nor the activation: quick GELU in OpenAI's models, exact
GELU in open_clip's except those called quickgelu. Nor does it show pooling, the causal mask and how pictures are
prepared: these are CLIP's, and files of open_clip's other models are refused. An open_clip_config.json beside the
weights, as on the Hub, gives all of this and takes precedence. Heads without it: OpenAI's code has 64 numbers a head
everywhere; open_clip's published ViTs are known by their sizes (80, 88, 104 and 112 a head from ViT-H on); of any other
the caller must say them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import files, hf, hf_siglip, open_clip_timm, own, pictures, processors
from maeclip_jax.interop.convert import Given, Source, under
from maeclip_jax.interop.export import end_of, end_of_text, two_towers
from maeclip_jax.interop.hf_clip import COMPUTE, IMAGE_TOWER, TEXT_TOWER

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
    ("log_logit_scale", "logit_scale", "scalar"),
    ("logit_bias", "logit_bias", "scalar"),
)
# A text projection with a bias, as open_clip's towers of timm have it.
LINEAR = (
    ("text_head/project/kernel", "text_projection.weight", "transpose"),
    ("text_head/project/bias", "text_projection.bias", "same"),
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
RENAMES = ((r"^state_dict\.", ""), (r"^text\.", ""))
NEEDED = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
}
NEEDED_TEXT = {
    "positional_embedding": 2, "token_embedding.weight": 2, "transformer.resblocks.0.mlp.c_fc.weight": 2
}  # fmt: skip
# (width, depth) of the image tower and of the text tower -> heads of the image tower, of every ViT in open_clip's
# model_configs; their text towers have 64 numbers a head.
PUBLISHED = {
    (384, 12, 256, 10): 6, (384, 12, 384, 12): 6, (512, 12, 384, 12): 8, (512, 12, 512, 12): 8, (768, 12, 512, 12): 12,
    (896, 12, 640, 12): 14, (1024, 24, 768, 12): 16, (1280, 32, 1024, 24): 16, (1408, 40, 1024, 24): 16,
    (1664, 48, 1280, 32): 16, (1792, 56, 1280, 36): 16,
}  # fmt: skip
CONFIG, DEFAULT_TEXT_HEADS = "open_clip_config.json", 8
VOCAB = 49408  # of CLIP's own words
SAY = (
    f'put its {CONFIG} beside it, with {{"model_cfg": {{"vision_cfg": {{"head_width": W}}, "text_cfg": {{"heads": '
    "N}}}, or say interop.load(KIND, PATH, heads={'image': H, 'text': N})"
)


def describe(
    weights: Mapping[str, np.ndarray], folder: Path, given: Given, *, activation: str, openai: bool = False
) -> dict:
    """The config that follows from the arrays' shapes and from open_clip_config.json, if there is one.

    `openai`: the file is OpenAI's, whose own reader has 64 numbers a head in every tower.
    """
    if any(name.startswith("visual.layer1.") for name in weights):
        raise UserError(f"weights in {str(folder)!r} have a ResNet image tower; valid: CLIP models with a ViT")
    timm = any(name.startswith("visual.trunk.") for name in weights)
    for name, axes in (NEEDED_TEXT if timm else NEEDED | NEEDED_TEXT).items():
        if name not in weights or weights[name].ndim != axes:
            raise UserError(f"weights in {str(folder)!r} are not a CLIP of openai/CLIP or open_clip: no {name!r}")
    if "input_resolution" in weights and activation == "gelu":
        raise UserError(
            f"weights in {str(folder)!r} are OpenAI's, which have input_resolution among their arrays and quick GELU: "
            "read them as openai-clip"
        )
    what = str(folder / CONFIG)
    found = {} if openai else hf.read_json(folder, CONFIG, needed=False)
    config, shown = (found.get(k) or {} for k in ("model_cfg", "preprocess_cfg"))
    vision, text = (config.get(k) or {} for k in ("vision_cfg", "text_cfg"))
    _check(vision, text, what)
    if config:
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    if openai and "visual.ln_pre.weight" not in weights:
        raise UserError("the file has no visual.ln_pre, which all of OpenAI's models have: read the file as open_clip")
    words = _trunk(weights, "transformer", text, activation, what)
    notes = []
    if timm:
        image, side = open_clip_timm.image_tower(weights, vision, what)
        given.check(image=image)
        known = text.get("heads", DEFAULT_TEXT_HEADS)
    else:
        image = _trunk(weights, "visual.transformer", vision, activation, what)
        patch = weights["visual.conv1.weight"].shape[-1]
        side = math.isqrt(len(weights["visual.positional_embedding"]) - 1) * patch
        images, known, why = _heads(image, words, vision, text, bool(config), openai)
        notes = [*why, *([] if config or openai else [_assumed(weights, activation, what)])]
        heads = given.heads_of("image", image["width"], images, SAY)
        image |= dict(size=side, patch=patch, heads=heads) | IMAGE_TOWER | _image_settings(vision, weights)
    words["heads"] = given.heads_of("text", words["width"], known, SAY)
    vocab, length = len(weights["token_embedding.weight"]), len(weights["positional_embedding"])
    shown = processors.open_clip(shown, side, image["patch"], folder, "clip")
    return dict(
        objective="clip",
        model=dict(
            image_tower=image,
            text_tower=dict(vocab=vocab, length=length) | words | TEXT_TOWER | _text_settings(text, weights),
            embed_width=_embed_width(weights),
            loss="sigmoid" if "logit_bias" in weights else "softmax",
            stats=shown["stats"],
            compute=COMPUTE,
        ),
        tokenizer=_words(text, folder),
        ops=shown["ops"],
        notes=notes,
    )


def _assumed(weights: Mapping[str, np.ndarray], activation: str, what: str) -> str:
    """What is taken for granted without a config, for the report. UserError for a file that shows it to be another."""
    words, norm = len(weights["token_embedding.weight"]), "visual.ln_pre.weight" in weights
    if words != VOCAB or not norm:
        odd = f"a vocabulary of {words}, not CLIP's {VOCAB}," if norm else "no visual.ln_pre"
        raise UserError(
            f"the file has {odd} and does not show how its towers pool and whether texts are causal; {what} that "
            "belongs to it (open_clip has it on the Hub) must lie beside it"
        )
    return f"no {CONFIG}: pool cls, causal texts, {activation} and CLIP's preprocessing are assumed"


def _embed_width(weights: Mapping[str, np.ndarray]) -> int:
    for name, axis in (("text_projection", 1), ("text_projection.weight", 0)):
        if name in weights and weights[name].ndim == 2:
            return weights[name].shape[axis]
    raise UserError("there is no matrix 'text_projection' in the file: it is not a CLIP of openai/CLIP or open_clip")


def _heads(image: Mapping, words: Mapping, vision: Mapping, text: Mapping, config: bool, openai: bool) -> tuple:
    """(heads of the image tower, of the text tower, lines that say why), None where nothing says them."""
    if config:  # what it leaves out has open_clip's defaults
        return image["width"] // (vision.get("head_width") or 64), text.get("heads", DEFAULT_TEXT_HEADS), []
    sizes = tuple(tower[k] for tower in (image, words) for k in ("width", "depth"))
    narrow = (image["width"] // 64, words["width"] // 64)
    published = PUBLISHED.get(sizes)
    if published not in (None, narrow[0]) and openai:
        raise UserError(f"a tower {sizes[0]} wide is none of OpenAI's but open_clip's: read the file as open_clip")
    if openai:
        return *narrow, [f"heads {narrow}: openai/CLIP's code has 64 numbers a head in all its models"]
    if published:
        return published, narrow[1], [f"heads {(published, narrow[1])}: those of open_clip's ViT of these sizes"]
    return None, None, []


def _words(text: Mapping, folder: Path) -> dict:
    """The tokenizer beside the weights: ours, CLIP's, or the one that open_clip takes from a library."""
    if ours := own.tokenizer(folder):
        return ours
    if text.get("hf_tokenizer_name"):
        clean = (text.get("tokenizer_kwargs") or {}).get("clean", "whitespace")
        if clean != "canonicalize":
            raise UserError(f"{folder / CONFIG}: tokenizer_kwargs.clean is {clean!r}; valid here: 'canonicalize'")
        return hf_siglip.words(folder, canonical=True) | dict(unescape=True)
    return dict(type="clip", path=hf.beside(folder, "bpe_simple_vocab_16e6.txt.gz", "merges.txt", "tokenizer.json"))


def _check(vision: Mapping, text: Mapping, what: str) -> None:
    """Raises UserError for a setting of open_clip that our towers do not support."""
    reads_all = bool(text.get("no_causal_mask"))
    pools = ("first", "last") if reads_all else ("argmax", "eos", "first", "last")
    for section, name, valid in (
        (vision, "pool_type", ("tok", "avg")),
        (vision, "attentional_pool", (False,)),
        (vision, "final_ln_after_pool", (False,)),
        (text, "pool_type", pools),
        (text, "hf_model_name", (None,)),
        (text, "embed_cls", (False,)),
    ):
        default = "argmax" if section is text and name == "pool_type" else valid[0]
        if section.get(name, default) not in valid:
            raise UserError(
                f"{what}: {name} is {section.get(name, default)!r}; valid here: {', '.join(map(repr, valid))}"
            )


def _image_settings(vision: Mapping, weights: Mapping) -> dict:
    """Settings of the image tower that open_clip has and openai/CLIP does not."""
    pool = {"tok": "cls", "avg": "gap"}[vision.get("pool_type", "tok")]
    return dict(pool=pool, norm_pre="visual.ln_pre.weight" in weights)


def _text_settings(text: Mapping, weights: Mapping) -> dict:
    """The same of the text tower. A pool of the last position, whatever stands there, reads padding as words."""
    word = text.get("pool_type", "argmax")
    attended = bool(text.get("no_causal_mask")) or word == "last"
    return dict(
        causal=not text.get("no_causal_mask"), padding="attended" if attended else "masked",
        pool="cls" if word == "first" else "last",
        projection="affine" if "text_projection.bias" in weights else "linear",
    )  # fmt: skip


def _trunk(weights: Mapping[str, np.ndarray], name: str, section: Mapping, activation: str, what: str) -> dict:
    """Settings of a trunk but for its heads. `section`: what the config called `what` says of it."""
    inner, width = weights[f"{name}.resblocks.0.mlp.c_fc.weight"].shape
    depth = 0
    while f"{name}.resblocks.{depth}.mlp.c_fc.weight" in weights:
        depth += 1
    if section.get("width", width) != width:
        raise UserError(f"{what}: width is {section['width']}, the arrays of {name} are {width} wide")
    acts = section.get("act_kwargs") or {}
    if acts not in ({}, {"approximate": "tanh"}, {"approximate": "none"}) or (acts and activation != "gelu"):
        raise UserError(f"{what}: act_kwargs are {acts}; valid here: {{'approximate': 'tanh'}}, with GELU")
    if acts.get("approximate") == "tanh":
        activation = "gelu_tanh"
    eps = (section.get("norm_kwargs") or {}).get("eps", 1e-5)
    return dict(width=width, depth=depth, mlp_ratio=inner / width, activation=activation, eps=float(eps))


def wanted(config: Mapping) -> dict:
    """What a model must have to be a CLIP of open_clip, whose image towers all have a class token, and whose texts have
    no padding: it is seen by nobody where the tower is causal, and read like words otherwise."""
    two_towers("open_clip", config)
    image, text = (config["model"][f"{t}_tower"] for t in ("image", "text"))
    quick = "quick_gelu" in (image.get("activation"), text.get("activation"))
    out = {"model.image_tower.cls": True}
    out |= {"model.image_tower.pool": image["pool"] if image["pool"] in ("cls", "gap") else "cls"}
    out |= {f"model.{t}_tower.activation": "quick_gelu" for t in ("image", "text") if quick}
    out |= {f"model.text_tower.{k}": False for k in ("norm_pre", "cls")}
    out |= {"model.text_tower.pool": text["pool"] if text["pool"] in ("cls", "last") else "last"}
    if not text.get("causal"):
        return out | {"model.text_tower.padding": "attended"}
    ends = text.get("padding", "masked") == "masked" and out["model.text_tower.pool"] == "last"
    return out | (end_of_text("open_clip", config) if ends else {})


def config_of(config: Mapping) -> dict:
    """The open_clip_config.json of a model of ours."""
    model = config["model"]
    image, text = model["image_tower"], model["text_tower"]
    last = "last" if text.get("padding", "masked") == "attended" else "eos" if end_of(config) else "argmax"
    vision = dict(
        image_size=image["size"], patch_size=image["patch"], layers=image["depth"], width=image["width"],
        head_width=image["width"] // image["heads"], mlp_ratio=image.get("mlp_ratio", 4.0),
        no_ln_pre=not image.get("norm_pre", False), pool_type={"cls": "tok", "gap": "avg"}[image["pool"]],
    )  # fmt: skip
    words = dict(
        context_length=text["length"], vocab_size=text["vocab"], width=text["width"], heads=text["heads"],
        layers=text["depth"], mlp_ratio=text.get("mlp_ratio", 4.0), no_causal_mask=not text.get("causal", False),
        pool_type="first" if text["pool"] == "cls" else last, proj_bias=text.get("projection") == "affine",
    )  # fmt: skip
    words |= dict(eos_id=end_of(config)) if end_of(config) else {}
    # A tokenizer of ours is read from the folder; without this name open_clip takes CLIP's own.
    words |= dict(hf_tokenizer_name=".") if (config.get("tokenizer") or {}).get("type") else {}
    for section, tower in ((vision, image), (words, text)):
        section["norm_kwargs"] = dict(eps=tower.get("eps", 1e-6))
        if tower.get("activation", "gelu") == "gelu_tanh":
            section["act_kwargs"] = dict(approximate="tanh")
    quick = image.get("activation") == "quick_gelu"
    out = dict(embed_dim=model["embed_width"], vision_cfg=vision, text_cfg=words)
    out |= dict(quick_gelu=True) if quick else {}
    out |= dict(init_logit_bias=-10.0) if model.get("loss", "softmax") == "sigmoid" else {}
    return dict(model_cfg=out, preprocess_cfg=pictures.open_clip_processor(pictures.recipe(config)))


def changed(flat: Mapping[str, np.ndarray], config: Mapping) -> dict[str, np.ndarray]:
    """`flat` with a projection of pictures and of texts where the model has none: open_clip's always project."""
    out = dict(flat)
    for tower in ("image", "text"):
        if config["model"][f"{tower}_tower"].get("projection", "linear") == "none":
            out[f"{tower}_head/project/kernel"] = np.eye(config["model"]["embed_width"], dtype=np.float32)
    return out


def source_for(config: Mapping) -> Source:
    """The format of open_clip for `config`; its texts' projection has another name where it has a bias."""
    bias = (config["model"].get("text_tower") or {}).get("projection") == "affine"
    rows = (*(row for row in ROWS if row[1] != "text_projection"), *LINEAR) if bias else ROWS
    return dataclasses.replace(
        GELU, rows=rows, config_of=config_of, wanted=wanted, changed=changed,
        writes=("open_clip_config.json", "open_clip_model.safetensors"),
    )  # fmt: skip


def _source(activation: str, **settings) -> Source:
    of = functools.partial(describe, activation=activation, **settings)
    rows = (*ROWS, *open_clip_timm.ROWS, *LINEAR)
    return Source(rows=rows, describe=of, ignored=IGNORED, renames=RENAMES, files=files.OPEN_CLIP)


OPENAI, QUICK, GELU = _source("quick_gelu", openai=True), _source("quick_gelu"), _source("gelu")
