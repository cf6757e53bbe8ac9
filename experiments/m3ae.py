"""M3AE: masked autoencoding of pictures and their captions in one encoder (Geng et al. 2022); row "M3AE" of the paper.

    python -m maeclip_jax.main --config=experiments/m3ae.py:scale=demo --workdir=runs/m3ae
    python -m maeclip_jax.main --config=experiments/m3ae.py:scale=low --workdir=gs://bucket/m3ae_low

Argument: scale, size, pool (of probes and features), recipe = matched | source (docs/recipes.md), runlocal. From M3AE's
source: 75 % of patches and words masked (25 % of patches at scale=demo), weights 1 (pixels) and 0.5 (words), no pixel
normalisation, text embedding std 1. The source shares one mask over a batch: --config.model.mask_share=batch. There
padding is kept and dropped like words, so that a short caption may show none: --config.model.mask_words=any; here each
shows one at least (one). Defaults of ours: that, one mask per sample, everything of recipe=matched and at scale=demo
and photos. The paper has 52.5 % (11.3M) and 69.3 % (1.4B) ImageNet linear probe for M3AE.

B/16 on v5litepod-256 takes at least 0.3 h (87 chip-hours) at scale=low and 2.8 h (720) at scale=high
(compiler-estimated, without input and waiting for the network; tpu/README.md).
"""

from __future__ import annotations

from experiments import recipes
from experiments.argument import parse_arg
from experiments.base import base, towers
from experiments.evaluations import evals
from experiments.scales import DATA, scale_of

STREAMS = ("image", "text")


def get_config(arg=None):
    arg = parse_arg(arg, scale="demo", size="", pool="cls", recipe="matched", runlocal=False, **DATA)
    config = base(arg, "m3ae", STREAMS)
    image, text, decoder, _ = towers(arg)
    config.model.update(
        image_tower=image | dict(cls=True, pool=arg.pool, drop_path=0.0),
        text_tower=dict(vocab=text["vocab"], length=text["length"], position="sincos", std=1.0, pool="gap"),
        decoder_tower=decoder,
        streams=STREAMS,
        mask=dict(image=scale_of(arg)["hidden"], text=0.75),
        mask_share="sample",
        mask_words="one",
        weights=dict(image=1.0, text=0.5),
        norm_pix=False,
        stats="cc12m",
    )
    config.evals = evals(arg, contrastive=False, generative=True, streams=STREAMS)
    recipes.follow(config, "m3ae")
    return config
