"""MAE: masked autoencoding of pictures alone (He et al. 2021); row "MAE" of the paper's table of linear probes.

    python -m maeclip_jax.main --config=experiments/mae.py:scale=demo --workdir=runs/mae
    python -m maeclip_jax.main --config=experiments/mae.py:scale=low,size=B/16 --workdir=gs://bucket/mae_low

Argument: scale = demo | photos | low | high, size = one of SIZES, pool = pooling of probes and features, recipe =
matched (batch, steps, optimizer and crops are those of the other objectives) | source (those of MAE's code; both are in
docs/recipes.md), runlocal. From MAE's source: 75 % masked per sample, normalised pixels, decoder 8 x 512 where the size
has it. Defaults of ours: everything of recipe=matched, everything at scale=demo (25 % masked, patches that count by
their variance) and scale=photos but the optimizer of recipe=source. The paper has 33.9 % ImageNet linear probe for MAE
at 11.3M pictures.

B/16 on v5litepod-256 takes at least 0.2 h (54 chip-hours) at scale=low and 1.7 h (450) at scale=high
(compiler-estimated, without input and waiting for the network; tpu/README.md).
"""

from __future__ import annotations

from experiments import recipes
from experiments.argument import parse_arg
from experiments.base import base, towers
from experiments.evaluations import evals
from experiments.scales import DATA, scale_of

STREAMS = ("image",)


def get_config(arg=None):
    arg = parse_arg(arg, scale="demo", size="", pool="cls", recipe="matched", runlocal=False, **DATA)
    config = base(arg, "mae", STREAMS)
    image, _, decoder, _ = towers(arg)
    scale = scale_of(arg)
    config.model.update(
        image_tower=image | dict(cls=True, pool=arg.pool, drop_path=0.0),
        decoder_tower=decoder,
        streams=STREAMS,
        mask=dict(image=scale["hidden"]),
        mask_share="sample",
        weights=dict(image=1.0),
        norm_pix=True,
        patch_weight=scale["patch_weight"],
        stats="imagenet",
    )
    config.evals = evals(arg, contrastive=False, generative=True, streams=STREAMS)
    recipes.follow(config, "mae")
    return config
