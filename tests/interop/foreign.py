"""Folders of weights as other code bases write them, made of random parameters of ours, without torch."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np

from maeclip_jax import interop
from maeclip_jax.interop import convert, files
from maeclip_jax.params import flatten, unflatten
from tests.parameters import leaf

TOWER = dict(width=12, depth=2, heads=3, mlp_ratio=2.0, activation="quick_gelu", eps=1e-5)
MERGES = "#version: 0.2\na b\nc d</w>\n"
VOCAB = 516  # of MERGES


def clip_config(**changes):
    """A CLIP as openai and transformers have it; `changes` to its model."""
    from maeclip_jax.interop.hf_clip import COMPUTE, IMAGE_TOWER, TEXT_TOWER

    model = dict(
        image_tower=dict(size=32, patch=8) | TOWER | IMAGE_TOWER,
        text_tower=dict(vocab=VOCAB, length=20) | TOWER | TEXT_TOWER,
        embed_width=8,
        loss="softmax",
        stats="clip",
        compute=COMPUTE,
    )
    return ml_collections.ConfigDict(dict(objective="clip", model=model | changes))


def mae_model() -> dict:
    """The model of a small MAE."""
    tower = dict(width=24, depth=2, heads=2)
    return dict(
        image_tower=tower | dict(size=32, patch=8, cls=True, pool="cls"), decoder_tower=tower, mask=dict(image=0.75),
        weights=dict(image=1.0), norm_pix=True, streams=("image",), stats="imagenet",
    )  # fmt: skip


def random_params(config) -> dict:
    """Random parameters of a config, as a tree."""
    plain = {"objective": config.objective, "model": config.model.to_dict()}
    return unflatten({p: leaf(p, shape) for p, shape in convert.shapes(plain).items()})


def hf_clip(folder: Path, **changes) -> tuple[Path, dict[str, np.ndarray]]:
    """(folder of a CLIPModel with its merges, our parameters in it by path)."""
    config = clip_config(**changes)
    params = random_params(config)
    interop.save("hf-clip", config, params, folder, tokenizer=False)
    (folder / "merges.txt").write_text(MERGES)
    return folder, flatten(params)


def rewrite(folder: Path, change) -> None:
    """Lets `change` alter the arrays of a folder's model.safetensors, a dict by name."""
    from maeclip_jax.interop import export

    arrays = {k: np.array(v) for k, v in files.read(folder).items()}
    change(arrays)
    (folder / "model.safetensors").write_bytes(b"".join(export.safetensors(arrays)))
