"""What evaluators on masks share: names of the classes, their prompts, masks checked against them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals.prompt_lists import fill, read_list, read_templates
from maeclip_jax.evals.protocol import Context, embed_texts, unit_rows


def class_names(context: Context, data: Mapping, classes: str | Sequence[str] | None, who: str) -> list[str]:
    """Readable names, index = id in the mask; "" where an id has no name. `classes`: None (the source's own
    `mask_classes`), a list, or a .json or .txt file."""
    names = classes if classes is not None else getattr(context.source(data), "mask_classes", None)
    if isinstance(names, str):
        names = read_list(names, "classes")
    if not names or len(names) < 2 or len(names) > 255 or isinstance(names, Mapping):
        raise UserError(
            f"{who} needs the names of 2 to 255 mask classes and got {len(names or ())}; set `classes` to a list in "
            "the order of ids, or a .json or .txt file with one"
        )
    return [str(n).replace("_", " ").strip() for n in names]


def make_prompts(context: Context, phrases: Sequence[str], templates: str | Sequence[str], length: int) -> np.ndarray:
    """int32 [P, K, T]: every phrase in every template."""
    forms = read_templates(templates)
    return np.stack([[context.tokenizer(fill(f, phrase), length) for f in forms] for phrase in phrases])


def embed_prompts(context: Context, params: Any, prompts_PxKxT: np.ndarray, batch_size: int) -> np.ndarray:
    """[P, E] float32, rows of length 1: a phrase is the mean of its prompts, each of length 1 before."""
    p, k, t = prompts_PxKxT.shape
    z_RxE = np.concatenate(list(embed_texts(context, params, prompts_PxKxT.reshape(p * k, t), batch_size)))
    return unit_rows(z_RxE.reshape(p, k, -1).mean(1))


def check_masks(mask_BxHxW: np.ndarray, names: Sequence[str], ignore: Collection[int], who: str) -> None:
    """Raises UserError for an array that is not a mask, and for an id that is neither a class nor ignored."""
    if mask_BxHxW.ndim != 3 or mask_BxHxW.dtype.kind not in "ui":
        raise UserError(
            f"{who}: a batch of masks is whole numbers [B, H, W], not {mask_BxHxW.dtype}{list(mask_BxHxW.shape)}"
        )
    bad = [i for i in np.unique(mask_BxHxW).tolist() if i >= len(names) and i not in ignore]
    if bad:
        raise UserError(
            f"{who}: id {bad[0]} in a mask, but there are {len(names)} classes (valid ids: 0 to {len(names) - 1}, and "
            f"{', '.join(map(str, sorted(ignore)))} to be ignored)"
        )
