"""How much reconstruction helps CLIP: the weight of the pixel and word losses from none to equal, on scenes.

The paper's weights are not known to us; a sweep of them against data scale is missing from the literature.
"""

RUNS = tuple(
    ("mae_clip", "scale=demo,pool=max", {"model.weights.image": image, "model.weights.text": image / 2})
    for image in (0.0, 0.01, 0.1, 1.0)
)
