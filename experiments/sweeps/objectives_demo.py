"""Objectives on scenes: rows of the paper's T1 in small, and the two that learn from a teacher of themselves.

make sweep SWEEP=objectives_demo
"""

RUNS = (
    ("mae", "scale=demo"),
    ("m3ae", "scale=demo"),
    ("clip", "scale=demo,pool=max"),
    ("mae_clip", "scale=demo,pool=max"),
    ("silc", "scale=demo,pool=max"),
    ("tips", "scale=demo,pool=max"),
)
