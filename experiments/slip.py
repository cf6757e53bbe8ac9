"""SLIP: CLIP, plus SimCLR on two augmented views of the picture (Mu et al. 2021): self-supervision without masks.

    python -m maeclip_jax.main --config=experiments/slip.py:scale=demo,pool=max --workdir=runs/slip
    python -m maeclip_jax.main --config=experiments/slip.py:scale=low,pool=cls --workdir=gs://bucket/slip_low

Argument: as experiments/clip.py. From SLIP's source: weight 1, temperature 0.1, head 4096-4096-256, two views of the
whole picture (8 to 100 % of its area), which make three pictures an example where CLIP sees a crop; with recipe=source
their batch, steps and optimizer (docs/recipes.md). Defaults of ours: everything else, such as towers, words, and a
narrow head at scale=demo and photos. The paper has no such row; SLIP's own, ViT-B/16 on CC12M, 35 epochs: zero-shot
40.7 % against 36.5 % of CLIP, linear probe 73.7 % against 69.0 %.
"""

from __future__ import annotations

from experiments import clip, recipes
from experiments.scales import ops, scale_of


def get_config(arg=None):
    config = clip.get_config(arg, method="")
    config.objective = "slip"
    big = config.arg.scale in ("low", "high") and not config.arg.runlocal
    config.model.simclr = dict(hidden=4096 if big else 256, width=256 if big else 64, temperature=0.1, weight=1.0)
    scale = scale_of(config.arg)
    whole = bool(scale["crop"])  # where CLIP sees a part, the views are of the whole picture all the same
    config.model.simclr.views = "batch" if whole else "image"
    config.data.ops = ops(scale, clip.STREAMS, train=True, views="views({side})" if whole else "")
    recipes.follow(config, "slip")
    return config
