"""Does pooling or self-supervision matter more? The paper's T3 and T4 in small: CLIP and MAE-CLIP, GAP and MAX, on
scenes.

make sweep SWEEP=pooling_demo        (4 runs of about 8 minutes on 2 CPU cores)
"""

RUNS = tuple((objective, f"scale=demo,pool={pool}") for objective in ("clip", "mae_clip") for pool in ("gap", "max"))
