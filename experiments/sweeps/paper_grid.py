"""Objective x pooling x scale: every cell of the paper's grid, and what it leaves open between GAP and MAX."""

RUNS = tuple(
    (objective, f"scale={scale},pool={pool}")
    for scale in ("low", "high")
    for objective in ("clip", "mae_clip")
    for pool in ("gap", "max")
) + tuple((objective, f"scale={scale}") for scale in ("low", "high") for objective in ("mae", "m3ae"))
