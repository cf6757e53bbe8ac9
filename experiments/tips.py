"""TIPS: CLIP, self-distillation, and the teacher's tokens of patches that are masked (Maninis et al. 2025).

    python -m maeclip_jax.main --config=experiments/tips.py:scale=demo,pool=max --workdir=runs/tips
    python -m maeclip_jax.main --config=experiments/tips.py:scale=low,pool=cls --workdir=gs://bucket/tips_low

Argument: as experiments/clip.py, without keep. Of TIPS, as remembered and not checked: one global view and six local
ones, weights 1 of distillation and 2 of patches, 75 % of patches hidden, the decay 0.994. From DINO and iBOT, whose
losses they are: temperatures, heads, 65,536 prototypes, centring by running means. The global view is the picture that
CLIP sees. Defaults of ours: patches are hidden one by one and have a head of their own, crops without mirroring or
changed colours, a decay that stays the same, small heads and four local views at scale=demo and photos, where as much
is hidden as in MAE-CLIP. Theirs has a second, synthetic caption, which ours has not. The paper has no such row.
"""

from __future__ import annotations

from experiments import clip, recipes
from experiments.distilled import distilled
from experiments.scales import LARGE, scale_of


def get_config(arg=None):
    config = clip.get_config(arg, method="")
    config.objective = "tips"
    distilled(config, globals=1, locals=6 if config.arg.scale in LARGE and not config.arg.runlocal else 4)
    config.model.distil.momentum = 0.994
    config.model.weights = dict(contrast=1.0, distil=1.0, patches=2.0)
    config.model.mask = dict(image=scale_of(config.arg)["hidden"])
    recipes.follow(config, "tips")
    return config
