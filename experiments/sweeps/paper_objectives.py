"""The paper's T1: the four objectives at 11.3M and 1.4B pairs (MAE only at 11.3M), MAX where there is a choice."""

RUNS = (
    ("mae", "scale=low"),
    ("m3ae", "scale=low"),
    ("clip", "scale=low,pool=max"),
    ("mae_clip", "scale=low,pool=max"),
    ("m3ae", "scale=high"),
    ("clip", "scale=high,pool=max"),
    ("mae_clip", "scale=high,pool=max"),
)
