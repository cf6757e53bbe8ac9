"""From the results of a study to its effects: what was declared, what was looked at besides, and what is missing.

Everything is computed from study.json and runs/*.json alone, without random numbers but those of fixed seeds, so that
it is the same to the last digit wherever it is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.evals.statistics import holm
from maeclip_jax.study import curves, design, effects, levels
from maeclip_jax.study.crossing import crossing
from maeclip_jax.study.effects import Difference
from maeclip_jax.study.results import Result

GRID = 41  # points of a line in the figure
# What is compared beside the outcome, where runs measure it; of all of these, higher is better.
SECOND = ("top1", "image_to_text_R@1", "text_to_image_R@1")
PLACES = ("gradcam_pointing", "gradcam_matched_iou", "miou")  # where in the picture, which is what pooling changes


@dataclasses.dataclass(frozen=True)
class Study:
    """A plan with its results."""

    plan: Mapping[str, Any]
    results: Sequence[Result]
    missing: Mapping[str, str]

    @property
    def better(self) -> str:
        """Which outcomes are better: "higher", "lower" or "none"."""
        return self.results[0].better if self.results else "higher"

    @property
    def sign(self) -> int:
        """-1 where a lower outcome is better, so that a gain is always good; where neither is, a gain is more."""
        return -1 if self.better == "lower" else 1

    @property
    def axes(self) -> Mapping[str, Any]:
        return self.plan["axes"]

    @property
    def main_weight(self) -> float | None:
        return self.axes["weights"][0] if self.axes["weights"] else None

    def centres(self) -> dict[str, float]:
        """Of the design, whatever is missing."""
        return {
            "slope": float(np.mean(np.log10(self.axes["sizes"]))),
            "diversity": float(np.mean(self.axes["diversities"])),
        }

    def runs(self, arm: str, match: str, pool: str, weight: float | None = None) -> dict[tuple, Result]:
        """{(size, diversity, seed): result} of one arm; `weight` None: that of the main runs."""
        phase = design.MAIN if weight is None else design.WEIGHT
        return {
            (r.run.size, r.run.diversity, r.run.seed): r for r in self.results
            if r.run.phase == phase and (r.run.arm, r.run.pool) == (arm, pool) and match in r.run.matched
            and (weight is None or r.run.weight == weight)
        }  # fmt: skip

    def pairs(
        self, first: Mapping[tuple, Result], second: Mapping[tuple, Result], metric: str = ""
    ) -> list[Difference]:
        """first minus second, by cell and seed, of the outcome or of another metric (of which more is better)."""
        found = []
        for key in sorted(first.keys() & second.keys()):
            one, other = first[key], second[key]
            if metric:
                if metric in one.metrics and metric in other.metrics:
                    found.append(Difference(*key, one.metrics[metric] - other.metrics[metric]))
                continue
            both = one.items_I is not None and other.items_I is not None and one.items == other.items
            each = self.sign * (one.items_I - other.items_I) if both else None
            found.append(Difference(*key, self.sign * (one.value - other.value), each, one.items if both else ""))
        return found

    def gains(self, arm: str, match: str, pool: str, metric: str = "") -> list[Difference]:
        """Of an arm over the baseline, under one pool and one matching."""
        return self.pairs(self.runs(arm, match, pool), self.runs(self.axes["arms"][0], match, pool), metric)


def analyse(study: Study) -> dict[str, Any]:
    """All of it, as plain JSON."""
    axes = study.axes
    return {
        "outcome": study.plan["outcome"], "baseline": axes["arms"][0],
        "runs": {"planned": len(study.plan["runs"]), "there": len(study.results), "missing": dict(study.missing)},
        "declared": declared(study), "others": others(study), "lines": lines(study),
        "levels": levels.outcome(study), "measures": levels.measures(study, (*SECOND, *PLACES)),
        "laws": laws(study), "weights": weights(study), "without_a_seed": without_a_seed(study),
        "spread": spread(study), "item_sets": item_sets(study), "data": data(study),
        "hours": sum(r.seconds for r in study.results) / 3600,
        "note": "" if axes["seeds"] > 1 else "One seed: nothing here has an interval.",
    }  # fmt: skip


def _said(effect: effects.Effect | None) -> dict[str, Any]:
    """An effect as JSON; nothing measured: value None."""
    if effect is None:
        return dict(value=None, interval=None, p=None, error=None, df=None, n=0)
    found = dataclasses.asdict(effect)
    return found | {"interval": list(effect.interval) if effect.interval else None}


def _term(study: Study, found: Sequence[Difference], name: str) -> effects.Effect | None:
    made = effects.fit(found, study.centres())
    return made.term(name) if made else None


def _with_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `adjusted`: p after Holm over those rows that have one."""
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested])):
        row["adjusted"] = float(p)
    return [{"adjusted": None} | row for row in rows]


def declared(study: Study, skip: int | None = None) -> list[dict[str, Any]]:
    """The primary contrasts of the plan. skip: a seed that is left out."""
    rows = []
    for contrast in study.plan["contrasts"]["primary"]:
        found = study.gains(contrast["arm"], contrast["match"], contrast["pool"])
        found = [g for g in found if g.seed != skip]
        made, term = effects.fit(found, study.centres()), contrast["term"]
        rows.append(dict(contrast) | _said(_term(study, found, term)) | _checks(made, found, term))
    return _with_holm(rows)


def _checks(made: effects.Fit | None, found: Sequence[Difference], term: str) -> dict[str, Any]:
    """What the model takes for granted: the same effect by the spread within cells, and p of two of its assumptions."""
    pure, lack = effects.within_cells(made, found) if made else (None, None)
    within = pure.term(term) if pure else None
    return {
        "within": list(within.interval) if within and within.interval else None, "lack_of_fit": lack,
        "seeds_differ": effects.seeds_differ(found),
    }  # fmt: skip


def others(study: Study) -> list[dict[str, Any]]:
    """Everything else that was looked at, a family of its own for Holm."""
    axes, rows = study.axes, []
    base, known = axes["arms"][0], {tuple(c[k] for k in ("arm", "match", "pool", "term")) for c in
                                    study.plan["contrasts"]["primary"]}  # fmt: skip
    for arm in axes["arms"][1:]:
        for match in axes["match"]:
            for pool in axes["pools"]:
                found = study.gains(arm, match, pool)
                for term in ("mean", "slope", "diversity"):
                    effect = _term(study, found, term)
                    if effect and (arm, match, pool, term) not in known:
                        rows.append(dict(what=f"{arm} minus {base}: {term}", pool=pool, match=match) | _said(effect))
    rows += _among(study) + _pools(study)
    measured = sorted({m for r in study.results for m in r.metrics} - {study.plan["outcome"]})
    for metric in [m for m in measured if m.rpartition("/")[2] in SECOND]:
        for contrast in [c for c in study.plan["contrasts"]["primary"] if c["term"] == "mean"]:
            found = study.gains(contrast["arm"], contrast["match"], contrast["pool"], metric)
            what = f"{contrast['arm']} minus {base}, {metric}: mean"
            rows.append(_mean(study, what, contrast["pool"], contrast["match"], found))
    for metric in [m for m in measured if m.rpartition("/")[2] in PLACES]:
        match = design.FLOPS if design.FLOPS in axes["match"] else axes["match"][0]
        for arm, pool in itertools.product(axes["arms"][1:], axes["pools"]):
            found = study.gains(arm, match, pool, metric)
            rows.append(_mean(study, f"{arm} minus {base}, {metric}: mean", pool, match, found))
        rows += _pools(study, metric)
    return _with_holm(rows)


def _mean(study: Study, what: str, pool: str, match: str, found: Sequence[Difference]) -> dict[str, Any]:
    """A row of what was looked at besides: the mean of the differences."""
    return dict(what=what, pool=pool, match=match) | _said(_term(study, found, "mean"))


def _among(study: Study) -> list[dict[str, Any]]:
    """Arms other than the baseline, each minus those before it."""
    axes, rows = study.axes, []
    for (first, second), match, pool in itertools.product(
        itertools.combinations(axes["arms"][1:], 2), axes["match"], axes["pools"]
    ):
        found = study.pairs(study.runs(second, match, pool), study.runs(first, match, pool))
        rows.append(_mean(study, f"{second} minus {first}: mean", pool, match, found))
    return rows


def _pools(study: Study, metric: str = "") -> list[dict[str, Any]]:
    """The last pool minus the first, of every arm."""
    axes, of = study.axes, f", {metric}" if metric else ""
    first, last = axes["pools"][0], axes["pools"][-1]
    match = design.EXAMPLES if design.EXAMPLES in axes["match"] else axes["match"][0]
    rows = []
    for arm in axes["arms"] if first != last else ():
        found = study.pairs(study.runs(arm, match, last), study.runs(arm, match, first), metric)
        rows.append(_mean(study, f"{last} minus {first} of {arm}{of}: mean", "both", match, found))
    return rows


def lines(study: Study) -> list[dict[str, Any]]:
    """What the figure shows: of each arm, matching, pool and diversity the gain over the size, and where it is 0."""
    rows, axes = [], study.axes
    for arm in axes["arms"][1:]:
        for match in axes["match"]:
            for pool in axes["pools"]:
                for share in axes["diversities"]:
                    found = [g for g in study.gains(arm, match, pool) if g.diversity == share]
                    if not found:
                        continue
                    at, sizes = effects.by_size(found), sorted({g.size for g in found})
                    points = [at.term(str(size)) for size in sizes]
                    made, line = effects.fit(found), []
                    for x in np.linspace(math.log10(sizes[0]), math.log10(sizes[-1]), GRID if len(sizes) > 1 else 1):
                        effect = made.gain_at(10**x)
                        line.append([float(10**x), effect.value, *(effect.interval or (None, None))])
                    zero = crossing(found)
                    rows.append({
                        "arm": arm, "match": match, "pool": pool, "diversity": share,
                        "points": [{"size": size, "n": sum(g.size == size for g in found)} | _said(point)
                                   for size, point in zip(sizes, points)],
                        "line": line,
                        "crossing": {"size": zero.size, "interval": list(zero.interval) if zero.interval else None,
                                     "said": zero.said, "how": zero.how},
                    })  # fmt: skip
    return rows


def laws(study: Study) -> list[dict[str, Any]]:
    """Power laws over the size: of the error, 100 minus a percentage, or of an outcome of which less is better."""
    rows, axes, less = [], study.axes, study.better == "lower"
    if not less and (study.better == "none" or any(r.unit != "%" for r in study.results)):
        return rows
    for arm, match, pool in itertools.product(axes["arms"], axes["match"], axes["pools"]):
        for share in axes["diversities"]:
            kept = [r for k, r in study.runs(arm, match, pool).items() if k[1] == share]
            errors = [r.value if less else 100 - r.value for r in kept]
            law = curves.power_law([r.run.size for r in kept], errors) if kept else None
            if law:
                where = dict(arm=arm, match=match, pool=pool, diversity=share, determined=law.determined)
                rows.append(where | dataclasses.asdict(law))
    return rows


def weights(study: Study) -> list[dict[str, Any]]:
    """Gains at the ends under each weight of the reconstruction, matched by examples."""
    axes, rows, pool = study.axes, [], study.axes["pools"][-1]
    base = study.runs(axes["arms"][0], design.EXAMPLES, pool)
    for arm in axes["arms"][1:]:
        for weight in axes["weights"] if len(axes["weights"]) > 1 else ():
            mine = study.runs(arm, design.EXAMPLES, pool, None if weight == study.main_weight else weight)
            for size in (axes["sizes"][0], axes["sizes"][-1]):
                found = [
                    g for g in study.pairs(mine, base) if g.size == size and g.diversity == axes["diversities"][-1]
                ]
                made = effects.fit(found)
                rows.append(dict(arm=arm, weight=weight, size=size, pool=pool) | _said(made and made.term("mean")))
    return rows


def without_a_seed(study: Study) -> list[dict[str, Any]]:
    """The primary contrasts with each seed left out in turn."""
    seeds = range(study.axes["seeds"])
    return [row | {"without": seed} for seed in seeds if len(seeds) > 1 for row in declared(study, skip=seed)]


def spread(study: Study) -> dict[str, float | None]:
    """Standard deviation of the difference of two paired runs: assumed by the plan, and measured within cells."""
    total, df = 0.0, 0
    for arm in study.axes["arms"][1:]:
        for match in study.axes["match"]:
            for pool in study.axes["pools"]:
                cells: dict[tuple, list[float]] = {}
                for g in study.gains(arm, match, pool):
                    cells.setdefault((g.size, g.diversity), []).append(g.value)
                for values in cells.values():
                    total += float(((np.array(values) - np.mean(values)) ** 2).sum())
                    df += len(values) - 1
    return {"assumed": study.plan["power"]["sd"], "measured": math.sqrt(total / df) if df else None, "df": df}


def item_sets(study: Study) -> dict[str, int]:
    """Of how many gains the items are known, of how many all there are, and how many sets of items there are."""
    axes, found = study.axes, []
    for arm, match, pool in itertools.product(axes["arms"][1:], axes["match"], axes["pools"]):
        found += study.gains(arm, match, pool)
    known = [g.items for g in found if g.items_I is not None]
    return {"known": len(known), "gains": len(found), "sets": len(set(known))}


def data(study: Study) -> list[dict[str, Any]]:
    """What the runs of each cell really read, mean over the draws."""
    cells: dict[tuple, list[Mapping]] = {}
    for r in study.results:
        if r.data:
            cells.setdefault((r.run.size, r.run.diversity), []).append(r.data)
    rows = []
    for (size, share), of in sorted(cells.items()):
        shared = [name for name in of[0] if all(name in one for one in of)]
        rows.append({"size": size, "diversity": share} | {k: float(np.mean([one[k] for one in of])) for k in shared})
    return rows
