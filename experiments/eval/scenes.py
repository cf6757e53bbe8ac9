"""Everything that can be measured on the drawn scenes (the embedded data set), except VQA: see experiments/vqa.py.

    python -m maeclip_jax.main --mode=eval --config=runs/demo/config.json --workdir=runs/demo
        --config.evals=experiments/eval/scenes.py

Zero-shot, linear probe, k-NN and few-shot over the classes of single objects (half of the split `classify` to learn
from, half to be tested on), retrieval, zero-shot segmentation, and grounding maps with the pointing game, where the
phrase is colour and shape of an object and the truth is its mask. Masks are exact and pictures small, so that the
pointing game has no tolerance here. Argument: none.
"""

from __future__ import annotations

from experiments import suites
from experiments.argument import parse_arg

NAME = "scenes/demo"


def get_evals(config, arg=None):
    parse_arg(arg)
    evals = suites.classification(
        config, "scenes", (NAME, "classify[:50%]"), (NAME, "classify[50%:]"), templates="scenes"
    )
    evals["scenes_retrieval"] = suites.retrieval(config, NAME, "test", captions=3, duplicates="merge")
    return evals | suites.dense(
        config, "scenes", NAME, "test[:500]", mask="mask|object_classes", templates="scenes", tolerance=0
    )
