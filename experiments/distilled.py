"""What the objectives that learn from a teacher of themselves share: views, head, temperatures."""

from __future__ import annotations

import ml_collections

from experiments.clip import STREAMS
from experiments.scales import LARGE, ops, scale_of
from experiments.sizes import SIZES
from maeclip_jax.errors import UserError


def distilled(config: ml_collections.ConfigDict, **views: int) -> None:
    """Puts `model.distil` into CLIP's config, and the whole picture into its batches where CLIP sees a part of it.

    `views`: how many `globals` and `locals`. Everything else is CLIP's. UserError for keep below 1.
    """
    arg, scale = config.arg, scale_of(config.arg)
    if config.model.keep < 1:
        raise UserError(f"keep={config.model.keep:g}: views that are distilled keep all of their patches; valid: 1")
    size, whole = SIZES[scale["size"]], bool(scale["crop"])
    big = arg.scale in LARGE and not arg.runlocal
    config.model.distil = dict(
        **views, first="picture", global_area=(0.4, 1.0), local_area=(0.05, 0.4),
        local_patches=max(1, round(size["side"] // size["patch"] * 96 / 224)),
        views="batch" if whole else "image",
        hidden=2048 if big else 256, width=256 if big else 64, prototypes=65536 if big else 512,
        student_temperature=0.1, teacher_temperature=0.04, centring="mean", centre_momentum=0.9, momentum=0.996,
    )  # fmt: skip
    square = "views({side},area=(1,1),ratio=(1,1),count=1)"
    config.data.ops = ops(scale, STREAMS, train=True, views=square if whole else "")
