"""Our parameters as a folder that `transformers` loads: config.json, model.safetensors, preprocessor_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError, storage
from maeclip_jax.interop import convert
from maeclip_jax.nn import embed
from maeclip_jax.nn.pixels import STATS

# The defaults of tower settings that a config may omit (nn.tower.Encoder and the modules around it).
DEFAULTS = dict(
    cls=False, cls_position=False, norm_pre=False, causal=False, patch_bias=True, padding="masked",
    projection="linear", map=None,
)  # fmt: skip


def write(source: convert.Source, kind: str, config: Mapping, flat: Mapping[str, np.ndarray], folder: Path):
    """Writes `flat` ({path: array}, layers stacked) in the format of `source`; -> the report. Raises UserError, before
    anything is written, if the format cannot express it, and StorageError if it cannot be written."""
    theirs = source.config_of(config)
    flat = complete(flat, config, fold_bias=not any("patch/bias" in str(row[0]) for row in source.rows))
    constants = source.constants(config) if source.constants else {}
    arrays = constants | convert.out_of_ours(source.rows, flat, config)
    report = convert.Report(f"{kind} {str(folder)!r}")
    named = {p for row in source.rows for p in (row[0] if isinstance(row[0], tuple) else (row[0],))}
    report.used = {p: "written" for p in flat if p in named}
    report.unused = {p: f"{kind} has no place for it" for p in flat if p not in named}
    weights, partial = folder / "model.safetensors", folder / "model.safetensors.tmp"
    with storage.writing(folder, sum(4 * x.size for x in arrays.values())):
        folder.mkdir(parents=True, exist_ok=True)
        try:  # the weights first: a folder without them, or with half of them, must not look like a model
            with open(partial, "wb") as file:
                for part in safetensors(arrays):
                    file.write(part)
            partial.replace(weights)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        (folder / "config.json").write_text(json.dumps(theirs, indent=2) + "\n")
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(config["model"]), indent=2) + "\n")
    return report


def needs(kind: str, config: Mapping, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError for the first setting that `kind` cannot express. `wanted`: tower -> setting -> value."""
    for tower, settings in wanted.items():
        have = config["model"].get(tower)
        if have is None:
            raise UserError(f"{kind} needs an {tower}; objective {config['objective']!r} has none")
        for name, value in settings.items():
            is_ = have.get(name, DEFAULTS.get(name))
            if is_ != value:
                raise UserError(
                    f"{kind} cannot express this model: {tower}.{name} is {is_!r} and would have to be {value!r}; "
                    "hf-vision writes any image tower"
                )


def complete(flat: Mapping[str, np.ndarray], config: Mapping, fold_bias: bool) -> dict[str, np.ndarray]:
    """`flat` with fixed positions as arrays, a class token's position (0 where it has none), and, with `fold_bias`, the
    bias of the patches in their positions, which is the same sum."""
    out = {p: np.asarray(x) for p, x in flat.items()}
    image, text = (config["model"].get(t) or {} for t in ("image_tower", "text_tower"))
    if image:
        side, width = image["size"] // image["patch"], image["width"]
        if image.get("position", "sincos") == "sincos":
            out["image/embed_image/position"] = embed.sincos_2d(side, side, width)
        out.setdefault("image/embed_image/position", np.zeros((side * side, width), np.float32))
        bias = out.pop("image/embed_image/patch/bias", None) if fold_bias else None
        if bias is not None:
            out["image/embed_image/position"] = out["image/embed_image/position"] + bias
        if image.get("cls"):
            out.setdefault("image/cls_position", np.zeros(width, np.float32))
    if "text/embed_text/token/embedding" in out and text.get("position", "learned") == "sincos":
        out["text/embed_text/position"] = embed.sincos_1d(text["length"], text["width"])
    return out


def preprocessor(model: Mapping) -> dict:
    """What transformers' CLIPImageProcessor reads: shorter side resized (bicubic), middle cut out, normalised."""
    mean, std = STATS[model.get("stats", "imagenet")]
    side = model["image_tower"]["size"]
    return dict(
        image_processor_type="CLIPImageProcessor", do_resize=True, size=dict(shortest_edge=side), resample=3,
        do_center_crop=True, crop_size=dict(height=side, width=side), do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=list(mean), image_std=list(std), do_convert_rgb=True,
    )  # fmt: skip


def safetensors(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The bytes of a safetensors file of float32 arrays: u64 length, JSON header, then the arrays one by one."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, x in arrays.items():
        header[name] = dict(dtype="F32", shape=list(x.shape), data_offsets=[at, at := at + 4 * x.size])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for x in arrays.values():
        yield np.asarray(x, "<f4", order="C").tobytes()
