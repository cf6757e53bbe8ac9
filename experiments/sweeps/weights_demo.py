"""How much reconstruction helps CLIP: the weights of the pixel and word losses times 0 to 10, on scenes.

The paper's weights are not known to us; a sweep of them against data scale is missing from the literature.
"""

RUNS = tuple(
    ("mae_clip", "scale=demo,pool=max", {"model.weights.image": 2.0 * times, "model.weights.text": 0.05 * times})
    for times in (0.0, 0.1, 1.0, 10.0)
)
