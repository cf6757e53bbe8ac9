"""evals/<step>.json as runs write it, from numbers in short: chance levels and baselines beside what they belong to."""

from __future__ import annotations

LOWER = ("loss", "contrast", "image", "text", "masked_mse")
PLAIN = (*LOWER, "sd")


def written(one: dict) -> dict:
    """`one` with "metrics" {evaluator/name: value} split into values and what is known about them.

    `chance_x` and `baseline_x` belong to metrics whose name ends in x, a bare `chance` to all others in percent.
    """
    if "format" in one:
        return one
    values, about = {}, {}
    for full, value in one.get("metrics", {}).items():
        evaluator, name = full.split("/", 1)
        if name.split("_")[0] in ("chance", "baseline") and _owners(one, full):
            continue
        values[full] = value
        percent = name.rsplit("_", 1)[-1] not in PLAIN and name not in PLAIN
        better = "none" if name.endswith("_sd") else "higher" if percent else "lower"
        known = {"unit": "%" if percent else "", "better": better}
        parts = name.split("_")
        for kind, field in (("chance", "chance"), ("baseline", "reference")):
            near = [f"{evaluator}/{kind}_{'_'.join(parts[n:])}" for n in range(len(parts))]
            near += [f"{evaluator}/{kind}"] * (percent or kind == "baseline")
            found = next((one["metrics"][n] for n in near if n in one["metrics"]), None)
            known[field] = None if name.endswith("_sd") or parts[0] == "baseline" else found
        about[full] = known | {"interval": None}
    return one | {"format": 2, "metrics": values, "about": about}


def _owners(one: dict, full: str) -> list[str]:
    """Metrics that a chance level or a baseline belongs to."""
    evaluator, name = full.split("/", 1)
    rest = name.partition("_")[2]
    others = [n.split("/", 1)[1] for n in one["metrics"] if n.startswith(f"{evaluator}/") and n != full]
    return [o for o in others if not o.startswith(("chance", "baseline")) and (not rest or o.endswith(rest))]
