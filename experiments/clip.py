"""CLIP: two towers, one contrastive loss (Radford et al. 2021); rows "CLIP", "CLIP_GAP" and "CLIP_MAX" of the paper.

    python -m maeclip_jax.main --config=experiments/clip.py:scale=demo,pool=max --workdir=runs/clip
    python -m maeclip_jax.main --config=experiments/clip.py:scale=high,pool=max --workdir=gs://bucket/clip_high_max

Argument: scale, size, pool (pictures: gap max cls map logsumexp(tau) topk(k)), text_pool, loss = softmax | sigmoid
(SigLIP), keep (share of patches seen in training: FLIP when below 1), recipe = matched | source (docs/recipes.md),
data, pairs, diversity (scales.py), runlocal. From the paper: BERT-like
bidirectional text tower, GAP or MAX over the picture's tokens. Defaults of ours: text_pool=gap, pooling after the
final norm and before the projection, AdamW (0.9, 0.98), decay 0.2, lr 5e-4 at batch 16,384, scale=demo and photos.
The paper has, at 1.4B: zero-shot 61.8 % (GAP) and 63.7 % (MAX), linear probe 75.9 % and 77.5 %.

B/16 on v5litepod-256 takes at least 0.4 h (100 chip-hours) at scale=low and 3.2 h (820) at scale=high
(compiler-estimated, without input and waiting for the network; tpu/README.md).
"""

from __future__ import annotations

from experiments import recipes
from experiments.argument import parse_arg
from experiments.base import base
from experiments.contrastive import contrastive
from experiments.evaluations import evals
from experiments.scales import DATA

STREAMS = ("image", "text")


def get_config(arg=None, method="clip"):
    arg = parse_arg(
        arg,
        scale="demo",
        size="",
        pool="gap",
        text_pool="gap",
        loss="softmax",
        keep=1.0,
        recipe="matched",
        runlocal=False,
        **DATA,
    )
    config = base(arg, "clip", STREAMS)
    contrastive(config, arg)
    config.evals = evals(arg, contrastive=True, generative=False, streams=STREAMS)
    if method:  # else the caller changes more before
        recipes.follow(config, method)
    return config
