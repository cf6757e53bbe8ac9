"""Every evaluation on data sets of your own, as built by image_folder and image_mask_folder of
maeclip_jax.prepare.builders.

    python -m maeclip_jax.main --mode=eval --config=runs/a/config.json --workdir=runs/a
        --config.evals=experiments/eval/folders.py:classify=pets+cars,segment=rooms,retrieval=photos

Argument: names of prepared data sets, several joined by "+". classify: sets with the splits train and test (zero-shot,
linear probe, k-NN, few-shot); segment: masks, split test (segmentation, grounding maps); retrieval: captions, split
test.
"""

from __future__ import annotations

from experiments import suites
from experiments.argument import parse_arg
from maeclip_jax import errors


def get_evals(config, arg=None):
    arg = parse_arg(arg, classify="", segment="", retrieval="")
    evals = {}
    for name in filter(None, arg.classify.split("+")):
        evals |= suites.classification(config, name, (name, "train"), (name, "test"))
    for name in filter(None, arg.segment.split("+")):
        evals |= suites.dense(config, name, name, "test", sliding=True)
    for name in filter(None, arg.retrieval.split("+")):
        evals[f"{name}_retrieval"] = suites.retrieval(config, name, "test")
    if not evals:
        raise errors.UserError("no data sets named; valid: folders.py:classify=NAME+NAME,segment=NAME,retrieval=NAME")
    return evals
