"""The four objectives on scenes: rows of the paper's T1 in small.

make sweep SWEEP=objectives_demo
"""

RUNS = (
    ("mae", "scale=demo"),
    ("m3ae", "scale=demo"),
    ("clip", "scale=demo,pool=max"),
    ("mae_clip", "scale=demo,pool=max"),
)
