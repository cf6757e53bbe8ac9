"""What an evaluator found, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from maeclip_jax.evals.protocol import Metric, Picture


def notes(results: Iterable) -> dict[str, str]:
    """{name: note} of the metrics that have one."""
    return {found.name: found.note for found in results if isinstance(found, Metric) and found.note}


def values(results: Iterable) -> dict[str, Any]:
    """{name: value, pixels or detail}; `chance_<name>` and `baseline_<name>` of metrics that have them.

    `chance` is that of the first metric that has one.
    """
    out: dict[str, Any] = {}
    for found in results:
        if not isinstance(found, Metric):
            out[found.name] = found.pixels_HxWx3 if isinstance(found, Picture) else found.value
            continue
        out[found.name] = found.value
        if found.chance is not None:
            out.setdefault("chance", found.chance)
            parts = found.name.split("_")
            for n in range(len(parts)):  # maps share the chance of their score: chance_pointing
                out.setdefault(f"chance_{'_'.join(parts[n:])}", found.chance)
        if found.reference is not None:
            out[f"baseline_{found.name}"] = found.reference
    return out
