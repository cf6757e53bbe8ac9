"""maeclip_jax.json beside weights that we wrote: what no other format says, so that `load` gives back what was saved.

The tokenizer by the name of its vocabulary in the folder, and what is done to a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maeclip_jax.data.tokenizer import files as tokenizer_files

FILE = "maeclip_jax.json"


def content(config: Mapping, tokenizer: Mapping | None) -> str:
    """The file's text. `config`: of the model that is written; `tokenizer`: its spec, None where none is written."""
    found: dict[str, Any] = {}
    if tokenizer:
        found["tokenizer"] = tokenizer_files.saved(tokenizer)
    if (config.get("preprocess") or {}).get("image"):
        found["preprocess"] = dict(image=config["preprocess"]["image"])
    return json.dumps(found, indent=2) + "\n"


def tokenizer(folder: Path) -> dict[str, Any] | None:
    """The spec of the tokenizer that we wrote into `folder`; None without one, or where its vocabulary is gone."""
    words = _found(folder).get("tokenizer")
    if not words:
        return None
    name = Path(words["path"]).name
    path = folder / name
    return dict(words) | dict(path=str(path) if name else "") if not name or path.is_file() else None


def restored(described: Mapping, folder: Path) -> dict:
    """`described` (see `convert.Source`) with what the file in `folder` says; unchanged where there is none."""
    out = dict(described)
    if words := tokenizer(folder):
        out["tokenizer"] = words
    if found := _found(folder).get("preprocess"):
        out["ops"] = found["image"]
    return out


def _found(folder: Path) -> dict[str, Any]:
    from maeclip_jax.interop import hf

    return hf.read_json(folder, FILE, needed=False)
