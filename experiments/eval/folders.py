"""Every evaluation on data sets of your own, as built by maeclip_jax.data.builders.image_folder and image_mask_folder.

    python -m maeclip_jax.main --mode=eval --config=runs/a/config.json --workdir=runs/a
        --config.evals=experiments/eval/folders.py:classify=pets+cars,segment=rooms,retrieval=photos

Argument: names of prepared data sets, several joined by "+". classify: sets with the splits train and test (zero-shot,
linear probe, k-NN, few-shot); segment: masks, split test (segmentation, grounding maps); retrieval: captions, split
test.
"""

from __future__ import annotations

from experiments import common, common_evals


def get_evals(config, arg=None):
    arg = common.parse_arg(arg, classify="", segment="", retrieval="")
    evals = {}
    for name in filter(None, arg.classify.split("+")):
        evals |= common_evals.classification(config, name, (name, "train"), (name, "test"))
    for name in filter(None, arg.segment.split("+")):
        evals |= common_evals.dense(config, name, name, "test")
    for name in filter(None, arg.retrieval.split("+")):
        evals[f"{name}_retrieval"] = common_evals.retrieval(config, name, "test")
    if not evals:
        raise common.UserError("no data sets named; valid: folders.py:classify=NAME+NAME,segment=NAME,retrieval=NAME")
    return evals
