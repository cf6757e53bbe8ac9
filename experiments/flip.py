"""FLIP: CLIP whose image tower sees half of the patches in training (Li et al. 2022); it has no decoder.

    python -m maeclip_jax.main --config=experiments/flip.py:scale=demo,pool=max --workdir=runs/flip
    python -m maeclip_jax.main --config=experiments/flip.py:scale=high,pool=gap --workdir=gs://bucket/flip_high

Argument: as experiments/clip.py, with keep=0.5 (their other setting: 0.25). From facebookresearch/flip, at scale=low
and high: AdamW (0.9, 0.95), decay 0.2, lr 4e-6 per 256 examples, warm-up of 51M examples, crops of 50 to 100 % of the
area. They end with a short run that sees everything: keep=1 and --config.init_from=gs://bucket/flip_high
--config.optim.lr=4e-8 --config.total="128M examples" --config.optim.warmup="25.6M examples".

Defaults of ours: everything else, such as batch (theirs 65,536), examples (theirs 12.8B), words (theirs 32, pooled at
the first), clipping, no mirroring, warm-up at scale=low. The paper has no such row; FLIP's own on LAION-400M, after
that run: zero-shot 68.0 % (B/16), 74.3 % (L/16), 75.5 % (H/14).
"""

from __future__ import annotations

from experiments import clip


def get_config(arg=None):
    config = clip.get_config(f"keep=0.5,{arg or ''}")
    if config.arg.scale in ("low", "high"):
        config.optim.update(lr=4e-6, lr_per_examples=256, b2=0.95, weight_decay=0.2)
    if config.arg.scale == "high" and not config.arg.runlocal:
        config.optim.warmup = "51.2M examples"
    return config
