"""The four objectives on your own captioned pictures, prepared as data/photos (see the README).

make sweep SWEEP=objectives_photos
"""

RUNS = (
    ("mae", "scale=photos"),
    ("m3ae", "scale=photos"),
    ("clip", "scale=photos,pool=max"),
    ("mae_clip", "scale=photos,pool=max"),
)
