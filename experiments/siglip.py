"""SigLIP: CLIP with a sigmoid for every pair instead of softmax over the batch (Zhai et al. 2023), and its towers.

    python -m maeclip_jax.main --config=experiments/siglip.py:scale=demo --workdir=runs/siglip
    python -m maeclip_jax.main --config=experiments/siglip.py:scale=high --workdir=gs://bucket/siglip_high

Argument: as experiments/clip.py, with loss=sigmoid, pool=map, text_pool=last. From google-research/big_vision and its
paper: t = 10 and b = -10 at the start and t without a limit, attention pooling of pictures, texts at their last
position with padding attended to, 64 tokens, only texts projected (with a bias), learned positions, tanh GELU, pixels
in [-1, 1], b2 = 0.95; at scale=low and high a decay that the learning rate does not scale, with lr 1e-3, decay 1e-4
and clipping at 1 (as their SigLIP 2 is reported to have them). At scale=demo and photos the optimizer is CLIP's.
Defaults of ours: everything else, such as words (theirs 32k SentencePiece), batch (theirs 32k), examples.
The paper has no such row; SigLIP's own numbers are of other data (WebLI; B/16 took 16 TPU v4 chips three days).
"""

from __future__ import annotations

from experiments import clip


def get_config(arg=None):
    config = clip.get_config(f"loss=sigmoid,pool=map,text_pool=last,{arg or ''}")
    model = config.model
    mlp = dict(activation="gelu_tanh")
    model.image_tower.update(position="learned", projection="none", map=mlp, **mlp)
    model.text_tower.update(padding="attended", projection="affine", **mlp)
    model.update(embed_width=model.image_tower.width, stats="half")
    config.optim.b2 = 0.95
    if config.arg.scale in ("low", "high"):
        config.optim.update(lr=1e-3, weight_decay=1e-4, decay_by="schedule")
    return config
