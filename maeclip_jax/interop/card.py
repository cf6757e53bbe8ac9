"""The model card of a folder of weights: README.md, which hubs show."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from typing import Any

# The packages whose versions the card names.
_PACKAGES = ("maeclip_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "sentencepiece")
_HF = """```python
from transformers import pipeline

scores = pipeline("zero-shot-image-classification", "FOLDER")("photo.jpg", candidate_labels=["a dog", "a cat"])
```"""
_PAIR = """```python
import torch
from transformers import AutoModel, AutoProcessor

model, process = AutoModel.from_pretrained("FOLDER"), AutoProcessor.from_pretrained("FOLDER")
inputs = process(images=picture, text=["a dog", "a cat"], padding="max_length", truncation=True, return_tensors="pt")
scores = torch.sigmoid(model(**inputs).logits_per_image)
```

The zero-shot pipeline of `transformers` gives every SigLIP texts of 64 tokens and refuses this model, which reads
LENGTH."""
_OPEN_CLIP = """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
```

On a hub, `text_cfg.hf_tokenizer_name` in open_clip_config.json must be the name of the repository."""
_VISION = """```python
from transformers import AutoImageProcessor, AutoModel

model, process = AutoModel.from_pretrained("FOLDER"), AutoImageProcessor.from_pretrained("FOLDER")
tokens = model(**process(picture, return_tensors="pt")).last_hidden_state
```"""
_TASKS = {"hf-clip": "zero-shot-image-classification", "hf-siglip": "zero-shot-image-classification",
          "open_clip": "zero-shot-image-classification"}  # fmt: skip


def text(kind: str, config: Mapping, about: Mapping[str, Any], left_out: Mapping[str, str]) -> str:
    """README.md of a model written as `kind`.

    `about`: what is known of its training, each part may be missing: `name`, `step`, `total` (words), `data` (words),
    `batch_size`, `seed`, `averaged` (the decay, if these are the running average of the parameters), `evals` ({metric:
    {"value", "unit", "chance"}}). `left_out`: our parameters without a place, and why.
    """
    model, task = config["model"], _TASKS.get(kind, "image-feature-extraction")
    library = "open_clip" if kind == "open_clip" else "transformers"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {task}", "tags:", "- maeclip_jax", "---", ""]
    lines += [f"# {about.get('name') or config['objective']}", ""]
    lines += [f"A model of the objective `{config['objective']}`, trained with maeclip_jax and written as {kind}.", ""]
    lines += ["## Use", "", _use(kind, model), ""]
    lines += ["## Model", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _settings(config)]
    lines += ["", "## Training", ""]
    steps = "unknown" if about.get("step") is None else f"{about['step']:,}"
    steps += f" ({about['total']} were planned)" if about.get("total") else ""
    lines += [f"- Data: {about.get('data') or 'unknown'}", f"- Steps: {steps}"]
    lines += [f"- {name}: {about[key]}" for name, key in (("Batch size", "batch_size"), ("Seed", "seed"))
              if about.get(key) is not None]  # fmt: skip
    if about.get("averaged"):
        lines += [f"- Parameters: their running average over the steps, decay {about['averaged']:g}"]
    lines += ["", "## Evaluations", ""]
    lines += _evaluations(about) or ["None were made."]
    if left_out:
        parts = sorted({name.split("/")[0] for name in left_out})
        lines += ["", "## Left out", "", f"{kind} has no place for {', '.join(f'`{p}`' for p in parts)}."]
    lines += ["", "## Versions", "", *(f"- {name} {version}" for name, version in _versions().items()), ""]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    """Of Python, and of _PACKAGES as far as they are installed."""
    import importlib.metadata

    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _use(kind: str, model: Mapping) -> str:
    length = (model.get("text_tower") or {}).get("length")
    if kind == "open_clip":
        return _OPEN_CLIP
    if kind == "hf-siglip" and length != 64:
        return _PAIR.replace("LENGTH", str(length))
    return _HF if kind in _TASKS else _VISION


def _settings(config: Mapping) -> list[tuple[str, Any]]:
    """(name, value) of what a reader wants to know of the model."""
    found = []
    for tower, names in (("image_tower", ("size", "patch", "width", "depth", "heads", "pool")),
                         ("text_tower", ("vocab", "length", "width", "depth", "heads", "pool"))):  # fmt: skip
        have = config["model"].get(tower) or {}
        found += [(f"{tower} {name}", have[name]) for name in names if name in have]
    for name in ("embed_width", "loss", "stats"):
        found += [(name, config["model"][name])] if name in config["model"] else []
    words = config.get("tokenizer") or {}
    return found + ([("tokenizer", words["type"])] if words.get("type") else [])


def _evaluations(about: Mapping) -> list[str]:
    rows = []
    for name, one in (about.get("evals") or {}).items():
        chance = "" if one.get("chance") is None else f"{one['chance']:.4g}"
        rows.append(f"| {name} | {one['value']:.4g} | {one.get('unit') or ''} | {chance} |")
    return ["| metric | value | unit | chance |", "|---|---|---|---|", *rows] if rows else []
