"""FLIP: CLIP whose image tower sees half of the patches in training (Li et al. 2022); it has no decoder.

    python -m maeclip_jax.main --config=experiments/flip.py:scale=demo,pool=max --workdir=runs/flip
    python -m maeclip_jax.main --config=experiments/flip.py:scale=high,pool=gap --workdir=gs://bucket/flip_high

Argument: as experiments/clip.py, with keep=0.5 (their other setting: 0.25). With recipe=source their batch, steps,
optimizer and crops (docs/recipes.md). They end with a short run that sees everything: recipe=source,keep=1 and
--config.init_from=gs://bucket/flip_high --config.optim.lr=4e-8 --config.total="128M examples"
--config.optim.warmup="25.6M examples".

Defaults of ours: everything else, such as words (theirs 32, pooled at the first). The paper has no such row; FLIP's own
on LAION-400M, after that run: zero-shot 68.0 % (B/16), 74.3 % (L/16), 75.5 % (H/14).
"""

from __future__ import annotations

from experiments import clip


def get_config(arg=None):
    return clip.get_config(f"keep=0.5,{arg or ''}", "flip")
