"""Our models as folders that other libraries load: a config, weights, tokenizer, image processor and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maeclip_jax.data import tokenizer as tokenizers
from maeclip_jax.data.tokenizer import files as tokenizer_files
from maeclip_jax.errors import UserError, storage
from maeclip_jax.interop import card, convert, own, pictures
from maeclip_jax.nn import embed

# The defaults of tower settings that a config may omit (nn.tower.Encoder and the modules around it).
DEFAULTS = dict(
    cls=False, cls_position=False, norm_pre=False, causal=False, patch_bias=True, padding="masked",
    projection="linear", map=None, activation="gelu", eps=1e-6, mlp_ratio=4.0, drop_path=0.0, loss="softmax",
)  # fmt: skip
# Every file that a folder of ours may hold.
FILES = (
    "config.json", "model.safetensors", "open_clip_config.json", "open_clip_model.safetensors",
    "preprocessor_config.json", "README.md", own.FILE, *tokenizer_files.NAMES,
)  # fmt: skip
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"


def write(
    source: convert.Source,
    kind: str,
    config: Mapping,
    flat: Mapping[str, np.ndarray],
    folder: Path,
    *,
    words: Mapping[str, bytes],
    about: Mapping[str, Any],
) -> convert.Report:
    """Writes `flat` ({path: array}, layers stacked) in the format of `source`; -> the report.

    `words`: files of the tokenizer; `about`: see `card.text`. Raises UserError, before anything is written, for
    pictures that are prepared in a way that the format cannot express, and StorageError if it cannot be written.
    """
    recipe = pictures.recipe(config)
    theirs = source.config_of(config)
    flat = complete(flat, config, fold_bias=not any("patch/bias" in str(row[0]) for row in source.rows))
    ready = source.changed(flat, config) if source.changed else flat
    constants = source.constants(config) if source.constants else {}
    arrays = constants | convert.out_of_ours(source.rows, ready, config)
    report = convert.Report(f"{kind} {str(folder)!r}")
    named = {p for row in source.rows for p in (row[0] if isinstance(row[0], tuple) else (row[0],))}
    written = named | (set(flat) - set(ready))  # what `changed` took has become another array
    report.used = {p: "written" for p in flat if p in written}
    report.unused = {p: f"{kind} has no place for it" for p in flat if p not in written}
    length = (config["model"].get("text_tower") or {}).get("length")
    if kind == "hf-siglip" and length != 64:
        report.notes.append(
            f"the zero-shot pipeline of transformers gives every SigLIP 64 tokens and refuses this one of {length}; "
            "README.md shows the call without it"
        )
    settings, weights = source.writes
    texts = {
        settings: json.dumps(theirs, indent=2) + "\n",
        own.FILE: own.content(config, words and config["tokenizer"]),
    }
    if kind != "open_clip":
        processor = pictures.hf_processor(recipe, siglip=kind == "hf-siglip")
        texts["preprocessor_config.json"] = json.dumps(processor, indent=2) + "\n"
    texts["README.md"] = card.text(kind, config, about, report.unused)
    texts_and_words = {name: text.encode() for name, text in texts.items()} | dict(words)
    partial = folder / f"{weights}.tmp"
    with storage.writing(folder, sum(4 * x.size for x in arrays.values())):
        folder.mkdir(parents=True, exist_ok=True)
        try:  # the weights first: a folder without them, or with half of them, must not look like a model
            with open(partial, "wb") as file:
                for part in safetensors(arrays):
                    file.write(part)
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            partial.replace(folder / weights)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        for name, content in texts_and_words.items():
            (folder / name).write_bytes(content)
    return report


def lacking(config: Mapping, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `wanted` ({dotted name of a setting: value}) that the config has otherwise."""
    out = {}
    for name, value in wanted.items():
        *parts, leaf = name.split(".")
        node: Any = config
        for part in parts:
            node = node.get(part) or {}
        if node.get(leaf, DEFAULTS.get(leaf)) != value:
            out[name] = value
    return out


def check(kind: str, source_of: Callable[[str], convert.Source], kinds: tuple[str, ...], config: Mapping) -> None:
    """Raises UserError if `kind` cannot express `config`: the settings to train with, and those of `kinds` that can."""

    def fits(other: str) -> bool:
        try:
            return not lacking(config, source_of(other).wanted(config))
        except UserError:
            return False

    if (config["model"].get("image_tower") or {}).get("causal"):
        raise UserError(f"{kind} cannot express a causal image tower; no format can")
    as_it_is = [f"{k} (its image tower alone)" if k == "hf-vision" else k for k in kinds if k != kind and fits(k)]
    instead = f"; as it is, it can be written as {' or '.join(as_it_is)}" if as_it_is else ""
    try:
        found = lacking(config, source_of(kind).wanted(config))
    except UserError as e:
        raise UserError(f"{e}{instead}") from None
    if found:
        flags = " ".join(f"--config.{name}={value}" for name, value in found.items())
        raise UserError(f"{kind} cannot express this model; it can if it is trained with {flags}{instead}")


def two_towers(kind: str, config: Mapping) -> None:
    """Raises UserError for a model without towers whose embeddings are compared."""
    model = config["model"]
    if not (model.get("image_tower") and model.get("text_tower") and "embed_width" in model):
        raise UserError(
            f"{kind} needs an image tower and a text tower that share a space; objective {config['objective']!r} has "
            "none: train clip, siglip, flip, slip, silc, tips or mae_clip"
        )


def end_of(config: Mapping) -> int:
    """The id that ends every text, where it is not the highest of the vocabulary (as CLIP's is); 0 where none is."""
    spec = config.get("tokenizer") or {}
    if not spec.get("type") or spec["type"] == "clip":
        return 0
    return next(iter(tokenizers.make(spec)._last), 0)


def end_of_text(kind: str, config: Mapping, taken: tuple[int, ...] = ()) -> dict[str, Any]:
    """Settings of a tokenizer whose texts have an end that can be found. `taken`: ids that it must not have."""
    spec = dict(config.get("tokenizer") or {})
    if spec.get("type") in ("", None, "clip"):
        return {}
    if spec["type"] in ("bert", "sentencepiece", "json"):
        try:
            if end_of({"tokenizer": spec | dict(eos=True)}) not in (0, *taken):
                return {"tokenizer.eos": True}
        except UserError:  # a model without an end of text
            pass
    return {"tokenizer.type": "clip", "tokenizer.path": CLIP_FILE, "model.text_tower.vocab": 49408}


def complete(flat: Mapping[str, np.ndarray], config: Mapping, fold_bias: bool) -> dict[str, np.ndarray]:
    """`flat` with positions as arrays where they are fixed or where there are none, a class token's position (0 where
    it has none), and, with `fold_bias`, the bias of the patches in their positions, which is the same sum."""
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
        if not fold_bias and not image.get("patch_bias", True):
            out["image/embed_image/patch/bias"] = np.zeros(width, np.float32)
    if "text/embed_text/token/embedding" in out:
        if text.get("position", "learned") == "sincos":
            out["text/embed_text/position"] = embed.sincos_1d(text["length"], text["width"])
        out.setdefault("text/embed_text/position", np.zeros((text["length"], text["width"]), np.float32))
    return out


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
