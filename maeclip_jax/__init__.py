"""Masked autoencoding and language supervision in one tree.

`import maeclip_jax as mc` costs nothing and sets nothing: each name below is imported when it is first used.

    model = mc.load("runs/demo")                                  a model with its preprocessing: mc.Model
    config = mc.experiment("experiments/clip.py:scale=demo")      an experiment's config, to be changed
    model = mc.fit(config, "runs/mine")                           trained with the project's loop

One level down are plain Flax modules (nn), whole objectives, and pure functions on arrays: masking, pixels, pooling,
losses. Shapes stand in names: `tokens_BxNxD`. `mask` True = masked out, `pad` True = padding, everywhere.
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    import maeclip_jax.errors as errors
    import maeclip_jax.evals as evals
    import maeclip_jax.interop as interop
    from maeclip_jax.api import experiment, fit, load
    from maeclip_jax.errors import UserError
    from maeclip_jax.nn.embed import PatchEmbed, TextEmbed, sincos_1d, sincos_2d
    from maeclip_jax.nn.mask import Kept, keep_count, random_keep, restore, take
    from maeclip_jax.nn.pixels import denormalise, normalise, patchify, unpatchify
    from maeclip_jax.nn.pool import AttentionPool, Pool, Tokens, pooled
    from maeclip_jax.nn.tower import Decoder, Encoder
    from maeclip_jax.objectives.clip import Clip, EmbedHead
    from maeclip_jax.objectives.losses import (
        contrastive_sigmoid,
        contrastive_softmax,
        patch_normalise,
        reconstruction_image,
        reconstruction_text,
    )
    from maeclip_jax.objectives.mae_clip import MaeClip
    from maeclip_jax.objectives.masked import Masked
    from maeclip_jax.objectives.silc import Silc
    from maeclip_jax.objectives.slip import Slip
    from maeclip_jax.objectives.tips import Tips
    from maeclip_jax.objectives.vqa import Vqa
    from maeclip_jax.run.filled import Filled
    from maeclip_jax.run.model import Model

__all__ = sorted(name for name in __dir__() if not name.startswith("_"))  # noqa: F821 (of lazy_api_imports)
