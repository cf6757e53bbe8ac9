"""Sizes of models: pictures, patches, towers and decoders, and how a pod runs their layers."""

from __future__ import annotations

# size -> picture side, patch, image tower (width, depth, heads), text tower, decoder. ViT sizes: Dosovitskiy et al.
# 2020; the text tower of B/16 is BERT-base (paper), the others are defaults of ours; decoder 8 x 512 (MAE, M3AE) from
# S/16 up, with 8 heads of 64 in place of their 16 of 32, which take a TPU twice as long (LOG.md). GELU by tanh, as
# M3AE's code and big_vision have it: the exact one costs a tenth of the step (LOG.md).
SIZES = {
    "mu": dict(side=32, patch=8, image=(32, 2, 2), text=(32, 2, 2), decoder=(32, 1, 2), embed=32, activation="gelu"),
    # Chosen by what two CPU cores learn in minutes (LOG.md): few tokens.
    "demo": dict(side=64, patch=16, image=(128, 4, 4), text=(64, 2, 4), decoder=(96, 1, 4), embed=128),
    "photos": dict(side=96, patch=16, image=(128, 4, 4), text=(128, 2, 4), decoder=(128, 2, 4), embed=128),
    "Ti/8": dict(side=64, patch=8, image=(192, 12, 3), text=(192, 6, 3), decoder=(128, 4, 4), embed=192),
    "S/8": dict(side=64, patch=8, image=(384, 12, 6), text=(384, 6, 6), decoder=(256, 4, 8), embed=384),
    "S/16": dict(side=224, patch=16, image=(384, 12, 6), text=(384, 12, 6), decoder=(512, 8, 8), embed=384),
    "B/16": dict(side=224, patch=16, image=(768, 12, 12), text=(768, 12, 12), decoder=(512, 8, 8), embed=512),
    "L/16": dict(side=224, patch=16, image=(1024, 24, 16), text=(768, 12, 12), decoder=(512, 8, 8), embed=768),
    "H/14": dict(side=224, patch=14, image=(1280, 32, 16), text=(1024, 24, 16), decoder=(512, 8, 8), embed=1024),
}

# How a pod runs the layers, chosen with the pre-flight (LOG.md). Unrolled layers without recomputation are fastest;
# deep towers would then compile for an hour, and a loop over layers is fast only if it stacks its inputs alone.
COMPUTE = {"L/16": dict(layers="scan", remat="full"), "H/14": dict(layers="scan", remat="full")}
