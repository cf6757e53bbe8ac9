"""MAE-CLIP: CLIP plus masked reconstruction by the same towers and a decoder across both (Weers et al., CVPR 2023).

    python -m maeclip_jax.main --config=experiments/mae_clip.py:scale=demo,pool=max --workdir=runs/demo
    python -m maeclip_jax.main --config=experiments/mae_clip.py:scale=high,pool=max --workdir=gs://bucket/mae_clip_high_max

Argument: as experiments/clip.py, and decode = both | image (the masked pass covers pictures and captions, or pictures
alone). From the paper: shared encoders, separate unmasked and masked passes, weighted sum of the losses. Defaults of
ours: weights (contrast 1, pixels 0.1, words 0.05; the paper's are unknown), 75 % masked, normalised pixels, decoder 8
x 512; at scale=demo pictures 25 % masked, patches that count by their variance, pixels 2. The paper has, at 1.4B:
zero-shot 57.4 % (GAP) and 60.9 % (MAX), linear probe 75.7 % and 76.6 %; at 11.3M linear probe 58.9 %.

B/16 on v5litepod-256 takes at least 0.7 h (181 chip-hours) at scale=low and 5.9 h (1,500) at scale=high
(compiler-estimated, without input and waiting for the network; tpu/README.md).
"""

from __future__ import annotations

from experiments import recipes
from experiments.argument import parse_arg
from experiments.base import base, towers
from experiments.contrastive import contrastive
from experiments.evaluations import evals
from experiments.scales import DATA, scale_of
from maeclip_jax import errors

STREAMS = ("image", "text")


def get_config(arg=None):
    arg = parse_arg(
        arg, scale="demo", size="", pool="gap", text_pool="gap", loss="softmax", keep=1.0, decode="both",
        recipe="matched", runlocal=False, **DATA,
    )  # fmt: skip
    config = base(arg, "mae_clip", STREAMS)
    contrastive(config, arg)
    scale = scale_of(arg)
    decode = errors.choose("decode", arg.decode, {"both": STREAMS, "image": ("image",)})
    config.model.update(
        decoder_tower=towers(arg)[2],
        decode=decode,
        mask={stream: scale["hidden"] if stream == "image" else 0.75 for stream in decode},
        mask_words="one",
        weights={"contrast": 1.0, "image": 2.0 if arg.scale == "demo" else 0.1, "text": 0.05},
        norm_pix=True,
        patch_weight=scale["patch_weight"],
    )
    config.evals = evals(arg, contrastive=True, generative=True, streams=STREAMS)
    recipes.follow(config, "mae_clip")
    return config
