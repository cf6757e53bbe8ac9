"""MAE: masked autoencoding of pictures alone (He et al. 2021); row "MAE" of the paper's table of linear probes.

    python -m maeclip_jax.main --config=experiments/mae.py:scale=demo --workdir=runs/mae
    python -m maeclip_jax.main --config=experiments/mae.py:scale=low,size=B/16 --workdir=gs://bucket/mae_low

Argument: scale = demo | photos | low | high, size = one of SIZES, pool = pooling of probes and features, recipe =
matched | source, runlocal. From MAE's source: 75 % masked per sample, normalised pixels, AdamW (0.9, 0.95), decay 0.05,
lr 1.5e-4 per 256, decoder 8 x 512; with recipe=source (scale=low, high) its batch of 4096, and bicubic crops of 20 to
100 % of the area, mirrored for half. Defaults of ours: everything at scale=demo and scale=photos; pairs and epochs of
scale=low and high; with recipe=matched the batch of 16,384 and crops of 50 to 100 %, not mirrored, as CLIP has them
there. The paper has 33.9 % ImageNet linear probe for MAE at 11.3M pictures.

B/16 on v5litepod-256 takes at least 0.2 h (54 chip-hours) at scale=low and 1.7 h (450) at scale=high
(compiler-estimated, without input and waiting for the network; tpu/README.md).
"""

from __future__ import annotations

from experiments.argument import parse_arg
from experiments.base import base, towers
from experiments.evaluations import evals
from experiments.scales import DATA

STREAMS = ("image",)


def get_config(arg=None):
    arg = parse_arg(arg, scale="demo", size="", pool="cls", recipe="matched", runlocal=False, **DATA)
    config = base(arg, "mae", STREAMS)
    image, _, decoder, _ = towers(arg)
    config.model.update(
        image_tower=image | dict(cls=True, pool=arg.pool),
        decoder_tower=decoder,
        streams=STREAMS,
        mask=dict(image=0.75),
        mask_share="sample",
        weights=dict(image=1.0),
        norm_pix=True,
        stats="imagenet",
    )
    config.optim.update(lr=1.5e-4, lr_per_examples=256, b2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=0.0)
    if arg.scale in ("demo", "photos"):
        config.optim.update(lr=1e-3, lr_per_examples=0)
    config.evals = evals(arg, contrastive=False, generative=True, streams=STREAMS)
    return config
