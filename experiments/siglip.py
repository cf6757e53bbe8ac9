"""SigLIP: CLIP with a sigmoid for every pair instead of softmax over the batch (Zhai et al. 2023), and its towers.

    python -m maeclip_jax.main --config=experiments/siglip.py:scale=demo --workdir=runs/siglip
    python -m maeclip_jax.main --config=experiments/siglip.py:scale=high --workdir=gs://bucket/siglip_high

Argument: as experiments/clip.py, with loss=sigmoid, pool=map, text_pool=last. From google-research/big_vision and its
paper: t = 10 and b = -10 at the start and t without a limit, attention pooling of pictures, texts at their last
position with padding attended to, 64 tokens, only texts projected (with a bias), learned positions, tanh GELU, pixels
in [-1, 1]. With recipe=source their batch, steps and optimizer, whose decay the learning rate does not scale, as their
SigLIP 2 is reported to have them (docs/recipes.md). Defaults of ours: everything else, such as words (theirs 32k
SentencePiece).
The paper has no such row; SigLIP's own numbers are of other data (WebLI; B/16 took 16 TPU v4 chips three days).
"""

from __future__ import annotations

from experiments import clip


def get_config(arg=None):
    config = clip.get_config(f"loss=sigmoid,pool=map,text_pool=last,{arg or ''}", "siglip")
    model = config.model
    mlp = dict(activation="gelu_tanh")
    model.image_tower.update(position="learned", projection="none", map=mlp, **mlp)
    model.text_tower.update(padding="attended", projection="affine", **mlp)
    model.update(embed_width=model.image_tower.width, stats="half")
    return config
