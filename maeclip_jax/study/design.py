"""The axes of a study as words, and the runs that they are: arms x sizes x diversities x pools x seeds x matchings."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from maeclip_jax import config as configs
from maeclip_jax.data.order import stable_hash
from maeclip_jax.errors import UserError, unknown

EXAMPLES, FLOPS = "examples", "flops"
MATCHES = (EXAMPLES, FLOPS)
MAIN, TUNE, WEIGHT = "main", "tune", "weight"  # what a run is for
TUNING_SEED = 900  # a draw that no main run has


@dataclasses.dataclass(frozen=True)
class Axes:
    """What a person asks for. The first arm is what the others are compared with; the last pool is the primary one.

    data: "scenes", or a prepared set whose subsets are drawn. examples: seen by every run that is matched by examples.
    weights: of the picture's reconstruction, the words' in proportion; the first is that of the main runs (none: as in
    the experiment), the others are tried at the ends. tune:
    {setting: values}, a grid for every arm at the smallest size. settings: leaves of the config of every run. evals:
    the evaluations that are made (empty: all of the experiment), after the last step alone.
    """

    data: str = "scenes"
    sizes: tuple[int, ...] = (1000, 4000, 20000)
    diversities: tuple[float, ...] = (1.0,)
    arms: tuple[str, ...] = ("clip", "mae_clip")
    pools: tuple[str, ...] = ("gap", "max")
    seeds: int = 3
    match: tuple[str, ...] = MATCHES
    weights: tuple[float, ...] = ()
    examples: int = 80_000
    scale: str = "demo"
    runlocal: bool = False
    clusters: str = ""
    outcome: str = ""
    evals: tuple[str, ...] = ()
    tune: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("sizes", "diversities", "arms", "pools", "match", "weights", "evals"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if (name not in ("evals", "weights") and not values) or len(set(values)) < len(values):
                raise UserError(f"{name}={','.join(map(str, values))}: one value or more, each once")
        object.__setattr__(self, "sizes", tuple(sorted(self.sizes)))
        object.__setattr__(self, "diversities", tuple(sorted(self.diversities)))
        if min(self.sizes) < 1 or self.examples < 1 or self.seeds < 1:
            raise UserError(f"sizes={self.sizes}, examples={self.examples}, seeds={self.seeds}; valid: 1 or more")
        if not all(0 < d <= 1 for d in self.diversities):
            raise UserError(f"diversity={','.join(map(str, self.diversities))}; valid: shares above 0, at most 1")
        for word in self.match:
            if word not in MATCHES:
                raise unknown("match", word, MATCHES)
        if not all(0 < w < math.inf for w in self.weights):
            raise UserError(f"weights={','.join(map(str, self.weights))}; valid: above 0; --arms has arms without it")
        if len(self.weights) > 1 and EXAMPLES not in self.match:
            raise UserError("several --weights are compared by examples; valid: --match=examples,flops, or one weight")
        if self.data != "scenes" and self.diversities != (1.0,) and not self.clusters:
            raise UserError(
                f"diversity of {self.data} goes by clusters; name --clusters=FILE, of study.subsets cluster"
            )
        if not self.outcome:
            default = "zero_shot_seen/top1" if self.data == "scenes" else "retrieval/text_to_image_R@1"
            object.__setattr__(self, "outcome", default)
        here = configs.shipped()
        for arm in self.arms:
            if arm not in here:
                raise unknown("arm", arm, here)
        if self.evals and self.outcome.partition("/")[0] not in self.evals:
            raise UserError(f"evals={','.join(self.evals)} lack that of the outcome, {self.outcome}")
        if len(self.arms) < 2:
            raise UserError(f"arms={self.arms[0]}: a study compares two or more; the first is the baseline")

    def plain(self) -> dict[str, Any]:
        """As study.json holds it."""
        made = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in made.items()} | {
            "tune": {k: list(v) for k, v in self.tune.items()}
        }


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study: a cell of the design and how it is trained. `matched`: the comparisons it takes part in."""

    id: str
    phase: str
    arm: str
    size: int
    diversity: float
    pool: str
    matched: tuple[str, ...]
    weight: float | None
    seed: int
    config: str
    settings: Mapping[str, Any]
    steps: int = 0
    flops: float = 0.0


def argument(axes: Axes, pool: str, size: int, share: float, seed: int) -> str:
    """What follows the colon of an experiment file."""
    drawn = (
        f"data=scenes,pairs={size},diversity={share:g}"
        if axes.data == "scenes"
        else f"data={subset(size, share, seed)}"
    )
    return ",".join([drawn, f"scale={axes.scale}", f"pool={pool}", *(["runlocal"] if axes.runlocal else [])])


def subset(size: int, share: float, seed: int) -> str:
    """The subset of a cell, below the folder of the study."""
    return f"{{study}}/subsets/n{size}-d{share:g}-s{seed}.json"


def has_weights(config) -> bool:
    """Whether the arm has a reconstruction beside the contrast, whose weight can be swept."""
    return {"contrast", "image"} <= set(config.model.get("weights", ()))


@functools.lru_cache(maxsize=256)
def _loaded(source: str, settings: tuple):
    return configs.load(source, dict(settings))


def load(run: Run, axes: Axes):
    """The config of a run."""
    return _loaded(run.config, tuple(run.settings.items())).copy_and_resolve_references()


def _made(
    axes: Axes, phase: str, arm: str, cell: tuple, seed: int, weight: float | None, match: Sequence[str], total: str,
    more: Mapping[str, Any],
) -> Run:  # fmt: skip
    size, share, pool = cell
    source = f"experiments/{arm}.py:{argument(axes, pool, size, share, seed)}"
    # The arms and the pools of a cell share their seed; cells do not, so that their errors are independent.
    settings = dict(axes.settings) | {"seed": stable_hash("study", size, share, seed) % 2**31, "total": total}
    if axes.data == "scenes":
        settings["data.source.seed"] = seed  # which draw: the sizes of one are nested
    settings |= more
    if weight is not None:
        own = _loaded(source, tuple(axes.settings.items())).model.weights
        settings |= {"model.weights.image": weight, "model.weights.text": own.text * weight / own.image}
    parts = [arm, f"n{size}", f"d{share:g}", pool, *([f"w{weight:g}"] if weight is not None else [])]
    parts += [f"{k.rpartition('.')[2]}{v:g}" for k, v in more.items()] if phase == TUNE else [match[-1]]
    name = re.sub(r"[^\w.]+", "-", "-".join([*parts, f"s{seed}"]))
    return Run(name, phase, arm, size, share, pool, tuple(match), weight, seed, source, settings)


def runs(axes: Axes, flops_of) -> list[Run]:
    """All runs: tuning first, then one seed after the other, so that an unfinished study holds whole repetitions.

    flops_of: config -> model FLOPs of a step.

    By examples, all arms see as many; by FLOPs, all arms have as many as the dearest arm that is matched by examples,
    which is the same run in both. UserError for an arm that cannot take part.
    """
    cells = list(itertools.product(axes.sizes, axes.diversities, axes.pools))
    found, kinds = [], {}
    for arm in axes.arms:
        probe = _made(axes, MAIN, arm, cells[0], 0, None, [EXAMPLES], f"{axes.examples} examples", {})
        kinds[arm] = load(probe, axes)
    check_matched(axes, kinds)
    main = {arm: axes.weights[0] if axes.weights and has_weights(kinds[arm]) else None for arm in axes.arms}
    if axes.weights and not any(main.values()):
        raise UserError(f"weights={axes.weights}: no arm has a reconstruction to weigh; leave them out")
    by_examples = f"{axes.examples} examples"
    grid = [dict(zip(axes.tune, values)) for values in itertools.product(*axes.tune.values())] if axes.tune else []
    where = (axes.sizes[0], axes.diversities[-1], axes.pools[-1])
    for arm, more in itertools.product(axes.arms, grid):
        found.append(_made(axes, TUNE, arm, where, TUNING_SEED, main[arm], [EXAMPLES], by_examples, more))
        load(found[-1], axes)  # an unknown setting is said now
    steps = max(1, round(axes.examples / kinds[axes.arms[0]].batch_size))
    costs = {}
    for pool, arm in itertools.product(axes.pools, axes.arms):
        probe = _made(axes, MAIN, arm, (*cells[0][:2], pool), 0, main[arm], [EXAMPLES], by_examples, {})
        costs.setdefault(pool, {})[arm] = flops_of(load(probe, axes))
    for cell in cells:
        cost = costs[cell[2]]
        dearest, most = max(cost.values()), steps * max(cost.values())
        for arm, seed in itertools.product(axes.arms, range(axes.seeds)):
            same = cost[arm] == dearest
            matches = [m for m in axes.match if m == EXAMPLES or same]
            if matches:
                run = _made(axes, MAIN, arm, cell, seed, main[arm], matches, by_examples, {})
                found.append(dataclasses.replace(run, steps=steps, flops=steps * cost[arm]))
            if FLOPS in axes.match and not same:
                run = _made(axes, MAIN, arm, cell, seed, main[arm], [FLOPS], f"{most:.8e} FLOPs", {})
                longer = max(1, round(most / cost[arm]))
                found.append(dataclasses.replace(run, steps=longer, flops=longer * cost[arm]))
        if cell[0] in (axes.sizes[0], axes.sizes[-1]) and cell[1:] == (axes.diversities[-1], axes.pools[-1]):
            tried = itertools.product(
                (a for a in axes.arms if main[a] is not None), axes.weights[1:], range(axes.seeds)
            )
            for arm, weight, seed in tried:
                run = _made(axes, WEIGHT, arm, cell, seed, weight, [EXAMPLES], by_examples, {})
                found.append(dataclasses.replace(run, steps=steps, flops=steps * cost[arm]))
    tuned = {arm: steps * costs[axes.pools[-1]][arm] for arm in axes.arms}
    found = [r if r.steps else dataclasses.replace(r, steps=steps, flops=tuned[r.arm]) for r in found]
    return sorted(found, key=lambda run: (run.phase != TUNE, run.seed))


def check_matched(axes: Axes, kinds: Mapping[str, Any]) -> None:
    """UserError unless the arms share batch and optimizer and have the outcome."""
    first, *others = axes.arms
    shared = {arm: {n: v for n, v in configs.leaves(configs.plain(c)) if n == "batch_size" or n.startswith("optim.")}
              for arm, c in kinds.items()}  # fmt: skip
    for arm in others:
        differ = [n for n in shared[first] if shared[arm].get(n) != shared[first][n]]
        if differ:
            said = ", ".join(f"{n} {shared[arm].get(n)!r} against {shared[first][n]!r}" for n in differ[:4])
            raise UserError(
                f"arm {arm!r} has no recipe that is matched with {first!r}: {said}; valid: an arm that shares them, or "
                f"one value for both, such as --config.{differ[0]}={shared[first][differ[0]]}"
            )
    for arm, config in kinds.items():
        for evaluation in (axes.outcome.partition("/")[0], *axes.evals):
            if evaluation not in config.evals:
                said = f"--outcome={axes.outcome} and --evals={','.join(axes.evals)}"
                raise UserError(f"arm {arm!r} has no evaluation {evaluation!r} for {said}; it has: "
                                f"{', '.join(config.evals)}")  # fmt: skip
