"""evals/<step>.json as runs write it, from the metrics that evaluators give."""

from __future__ import annotations

from maeclip_jax.evals.protocol import Metric
from maeclip_jax.workdir import RESULTS_FORMAT


def written(one: dict) -> dict:
    """`one`, whose "metrics" are {evaluator: [Metric, ...]}, with values and what is known about them apart."""
    named: dict[str, Metric] = {f"{e}/{m.name}": m for e, several in one["metrics"].items() for m in several}
    return one | {
        "format": RESULTS_FORMAT,
        "metrics": {name: m.value for name, m in named.items()},
        "about": {name: m.about() for name, m in named.items()},
    }
