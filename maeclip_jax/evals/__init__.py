"""Evaluators: one file, one class, one line in `make` each.

Start with `protocol`, which says what an evaluator is and what it may ask for. `zero_shot`, `linear_probe`, `knn`,
`few_shot`, `retrieval`, `vqa`, `segmentation`, `grounding`, `reconstruction` and `loss` are the evaluators. They share
`accuracy`, `recall`, `representation`, `standardisation`, `logistic` (a solver), `l2_search`, `lars`, `mask_classes`,
`saliency` (maps) and `pictures`; class names and prompt templates are in `prompts/`, and `prompt_lists` reads them.
What a metric is the mean of are its `items`; `statistics` has intervals, tests and corrections.
"""

from __future__ import annotations

import inspect

from maeclip_jax import errors
from maeclip_jax.evals.protocol import Context, Detail, Metric, NotApplicable, Picture

__all__ = ["Context", "Detail", "Metric", "NotApplicable", "Picture", "make", "table"]

# Settings of any entry of `config.evals`, which are not the evaluator's own, and what they are where nothing is said:
# when it runs, and on which parameters (see `run.average`).
OF_ANY = {"every": "0 steps", "params": "auto"}


def table() -> dict[str, type]:
    """Type, as a config calls it -> the class."""
    from maeclip_jax.evals.few_shot import FewShot
    from maeclip_jax.evals.grounding import Grounding
    from maeclip_jax.evals.knn import Knn
    from maeclip_jax.evals.linear_probe import LinearProbe
    from maeclip_jax.evals.loss import Loss
    from maeclip_jax.evals.reconstruction import Reconstruction
    from maeclip_jax.evals.retrieval import Retrieval
    from maeclip_jax.evals.segmentation import Segmentation
    from maeclip_jax.evals.vqa import Vqa
    from maeclip_jax.evals.zero_shot import ZeroShot

    return {
        "few_shot": FewShot,
        "grounding": Grounding,
        "knn": Knn,
        "linear_probe": LinearProbe,
        "loss": Loss,
        "reconstruction": Reconstruction,
        "retrieval": Retrieval,
        "segmentation": Segmentation,
        "vqa": Vqa,
        "zero_shot": ZeroShot,
    }


def make(type: str, context: Context, **config):
    """The evaluator `type` with the config's settings: one of `table()`, or "module:Class" of one that lives elsewhere.

    Raises `NotApplicable` if the objective cannot serve it, UserError for an unknown type, an unknown setting (with
    the valid ones) or a missing one.
    """
    evaluator = _elsewhere(type) if ":" in type else errors.choose("evaluator", type, table())
    settings = dict(list(inspect.signature(evaluator).parameters.items())[1:])  # without `context`
    for name in config:
        if name not in settings:
            raise errors.unknown(f"setting of evaluator {type!r}", name, sorted(settings))
    missing = [n for n, p in settings.items() if p.default is inspect.Parameter.empty and n not in config]
    if missing:
        raise errors.UserError(f"evaluator {type!r} needs {', '.join(missing)}; valid: {', '.join(sorted(settings))}")
    return evaluator(context, **config)


def _elsewhere(name: str) -> type:
    """The class of "module:Class"; UserError if it cannot be imported or is not an evaluator."""
    own = name.partition(":")[0]
    made = errors.class_elsewhere("evaluator", name, table(), lambda cls: cls.__module__ == own)
    if not callable(getattr(made, "run", None)):
        raise errors.UserError(f"evaluator {name!r} has no run(params); see maeclip_jax.evals.protocol")
    takes = list(inspect.signature(made).parameters.values())
    if not takes or takes[0].kind not in (takes[0].POSITIONAL_ONLY, takes[0].POSITIONAL_OR_KEYWORD):
        raise errors.UserError(f"evaluator {name!r} does not take `context` first; see maeclip_jax.evals.protocol")
    return made
