"""SILC: CLIP, plus self-distillation from parts of the picture to the whole (Naeem et al. 2023).

    python -m maeclip_jax.main --config=experiments/silc.py:scale=demo,pool=max --workdir=runs/silc
    python -m maeclip_jax.main --config=experiments/silc.py:scale=low,pool=cls --workdir=gs://bucket/silc_low

Argument: as experiments/clip.py, without keep. From SILC: two global and eight local views, their areas, captions
contrasted with every global view, a teacher whose decay is fixed. From DINO, whose loss it is: temperatures, head,
65,536 prototypes, centring by a running mean, the decay 0.996, local views of 96 in 224 pixels. With recipe=matched
the first global view is the picture that CLIP sees, cut as CLIP's arm has it; with recipe=source both are crops.
Defaults of ours: the weight of distillation 1, crops without mirroring or changed colours, a small head and four local
views at scale=demo and photos. The paper has no such row.
"""

from __future__ import annotations

from experiments import clip, recipes
from experiments.distilled import distilled
from experiments.scales import LARGE


def get_config(arg=None):
    config = clip.get_config(arg, method="")
    config.objective = "silc"
    distilled(config, globals=2, locals=8 if config.arg.scale in LARGE and not config.arg.runlocal else 4)
    config.model.weights = dict(contrast=1.0, distil=1.0)
    recipes.follow(config, "silc")
    return config
