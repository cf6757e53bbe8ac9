"""A suite of evaluations for the tests: every evaluator, on a few drawn scenes whose numbers fill no batch.

--config.evals=tests/suite.py:broken also has evaluators that cannot work.
"""

from __future__ import annotations

SPEC = dict(kind="scenes", resolution=32, shapes=3, colours=3, textures=1, truth="all")
LABELLED = 'decode|label|keep("image","label")'
MASKED = 'decode|mask|object_classes|keep("image","mask")'


def get_evals(config, arg=None):
    def data(ops, count, seed, split="classify", **changes):
        return dict(source=SPEC | dict(count=count, seed=seed, split=split) | changes, ops=ops)

    test, train = data(LABELLED, 21, 1), data(LABELLED, 45, 2)
    masked = data(MASKED, 11, 3, split="train", objects=(2, 3))
    shared = dict(length=8, templates="scenes")
    evals = dict(
        zero_shot=dict(type="zero_shot", data=test, batch_size=8, **shared),
        knn=dict(type="knn", data=test, train=train, k=(3, 1), batch_size=8),
        # One l2: of 27 tried on nine pictures, rounding chooses.
        linear_probe=dict(
            type="linear_probe", data=test, train=train, batch_size=8, solver=dict(type="lbfgs", l2=(1.0,))
        ),
        few_shot=dict(type="few_shot", data=test, train=train, shots=(1, 2), seeds=2, batch_size=8),
        segmentation=dict(type="segmentation", data=masked, batch_size=8, **shared),
        grounding=dict(type="grounding", data=masked, batch_size=8, pools=("own", "max"), **shared),
    )
    if arg == "broken":
        missing = dict(source=dict(kind="tfds", name="nowhere", split="test"), ops=LABELLED)
        evals["missing"] = dict(type="knn", data=missing, train=train, batch_size=8)
        evals["misnamed"] = dict(type="zero_shot", data=test, classes=("a", "b"), **shared)
        evals["unmasked"] = dict(type="segmentation", data=test, **shared)
        evals["unread"] = dict(type="vqa", data=test)
    return evals
