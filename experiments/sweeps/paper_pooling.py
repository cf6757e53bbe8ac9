"""The paper's T3 and T4: CLIP and MAE-CLIP with GAP and MAX, at 1.4B pairs.

make sweep SWEEP=paper_pooling ARGS=--root=gs://bucket/runs        (on a TPU pod: make tpu-sweep)
"""

RUNS = tuple((objective, f"scale=high,pool={pool}") for objective in ("clip", "mae_clip") for pool in ("gap", "max"))
