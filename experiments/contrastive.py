"""CLIP's towers and loss, which its neighbours share."""

from __future__ import annotations

import math

import ml_collections

from experiments.base import towers
from maeclip_jax.errors import UserError
from maeclip_jax.nn import pool as pooling


def contrastive(config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict) -> None:
    """Puts CLIP's towers and loss into `config`; `arg` holds pool, text_pool, loss and keep.

    The image tower has a class token only if it is pooled: with pooling over patches it would be an unused token.
    """
    image, text, _, width = towers(arg)
    for word in (arg.pool, arg.text_pool):
        try:
            pooling.parse(word)
        except ValueError as e:
            raise UserError(str(e)) from None
    config.model.update(
        image_tower=image
        | dict(cls=arg.pool == "cls", pool=arg.pool, norm_pre=False, projection="linear", drop_path=0.0),
        text_tower=text
        | dict(
            causal=False, position="learned", padding="masked", pool=arg.text_pool, projection="linear", drop_path=0.0
        ),
        embed_width=width,
        loss=arg.loss,
        label_smoothing=0.0,  # of the softmax
        duplicates="negative",  # of CLIP and SigLIP; positive: captions with the same ids share the target
        keep=arg.keep,
        contrast_mib=128.0,  # of a chip's 16 GiB or more
        mask_share="sample",
        stats="imagenet",
    )
    if arg.text_pool == "cls":
        config.tokenizer.cls = True
    if arg.loss == "softmax":
        config.optim.caps = (("log_logit_scale", math.log(100)),)
