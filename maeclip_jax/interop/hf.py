"""What formats of Hugging Face share: config.json, and how a transformer is spelled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from maeclip_jax.errors import UserError, choose

# Their `hidden_act` -> our activation; the first of several is written.
ACTIVATIONS = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}  # fmt: skip


def norm(ours: str, theirs: str) -> tuple:
    """Rows of a LayerNorm."""
    return ((f"{ours}/scale", f"{theirs}.weight", "same"), (f"{ours}/bias", f"{theirs}.bias", "same"))


# Rows of a pre-norm transformer, as CLIP and SigLIP spell it, under image/ or text/ and theirs.
BLOCKS = (
    *(
        row
        for leaf, suffix in (("kernel", "weight"), ("bias", "bias"))
        for row in (
            (
                f"trunk/blocks/attention/qkv/{leaf}",
                tuple(f"encoder.layers.{{layer}}.self_attn.{x}_proj.{suffix}" for x in "qkv"),
                "qkv",
            ),
            (
                f"trunk/blocks/attention/out/{leaf}",
                f"encoder.layers.{{layer}}.self_attn.out_proj.{suffix}",
                "transpose",
            ),
            (f"trunk/blocks/mlp/up/{leaf}", f"encoder.layers.{{layer}}.mlp.fc1.{suffix}", "transpose"),
            (f"trunk/blocks/mlp/down/{leaf}", f"encoder.layers.{{layer}}.mlp.fc2.{suffix}", "transpose"),
        )
    ),
    *norm("trunk/blocks/norm_1", "encoder.layers.{layer}.layer_norm1"),
    *norm("trunk/blocks/norm_2", "encoder.layers.{layer}.layer_norm2"),
)
IGNORED = (("*.position_ids", "counts 0, 1, 2, ..."),)


def read_json(folder: Path, name: str, *, needed: bool = True) -> dict:
    """The JSON object in `folder`; {} if it is not there and not needed. UserError otherwise."""
    path = folder / name
    if not path.is_file() and not needed:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
        return found
    except FileNotFoundError:
        raise UserError(f"weights in {str(folder)!r} need the {name} that belongs to them: it is missing") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{str(path)!r} is not a valid {name}: {' '.join(str(e).split())}") from None


def tower(section: Mapping, defaults: Mapping, what: str) -> dict:
    """width, depth, heads, mlp_ratio, activation and eps of a section of config.json."""
    values = dict(defaults) | _given(section)
    sizes = {
        ours: _whole(values, theirs, what)
        for ours, theirs in (
            ("width", "hidden_size"),
            ("depth", "num_hidden_layers"),
            ("heads", "num_attention_heads"),
            ("inner", "intermediate_size"),
        )
    }
    inner = sizes.pop("inner")
    if sizes["width"] % sizes["heads"]:
        raise UserError(f"{what}: hidden_size {sizes['width']} does not divide into {sizes['heads']} heads")
    activation = choose(f"hidden_act in {what}:", values["hidden_act"], ACTIVATIONS)
    return sizes | dict(mlp_ratio=inner / sizes["width"], activation=activation, eps=float(values["layer_norm_eps"]))


def section(tower: Mapping) -> dict:
    """The inverse of `tower`."""
    width = tower["width"]
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return dict(
        hidden_size=width,
        num_hidden_layers=tower["depth"],
        num_attention_heads=tower["heads"],
        intermediate_size=round(tower.get("mlp_ratio", 4.0) * width),
        hidden_act=names[tower.get("activation", "gelu")],
        layer_norm_eps=tower.get("eps", 1e-6),
    )


def picture(section: Mapping, defaults: dict, what: str) -> dict:
    """size and patch; of a picture that does not divide, what the patches cover (the rest is not looked at)."""
    side, patch = side_of(section, defaults, what), _whole(defaults | _given(section), "patch_size", what)
    return dict(size=side // patch * patch, patch=patch)


def side_of(section: Mapping, defaults: dict, what: str) -> int:
    """The side of the pictures that the model takes, in pixels, whether its patches divide it or not."""
    return _whole(defaults | _given(section), "image_size", what)


def beside(folder: Path, *names: str) -> str:
    """The path of the first of the files `names` that is in `folder`, or ''."""
    return next((str(folder / n) for n in names if (folder / n).is_file()), "")


def _given(section: Mapping) -> dict:
    return {k: v for k, v in section.items() if v is not None}


def _whole(values: Mapping, key: str, what: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{what}: {key} is {value!r}; it must be a whole number above 0")
    return value
