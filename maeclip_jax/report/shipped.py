"""Whether a number may stand beside the paper's: in what its run and its evaluation differ from the shipped ones.

The shipped experiments at scale=low and scale=high stand in for the paper's models, whose recipe is mostly unknown. A
run counts as one of them if it read as many different pairs of the same data set, saw as many examples, and has their
settings; all of that is read from its workdir, not from the word that its argument has for it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from maeclip_jax import config as configs
from maeclip_jax.errors import UserError
from maeclip_jax.report import paper
from maeclip_jax.report.figures import compact
from maeclip_jax.report.run import Run
from maeclip_jax.workdir.identity import identity

SEEN = 0.98  # share of the planned examples that must have been seen
MOST = 3  # differences that are named
PLACE = epath.resource_path("maeclip_jax").parent / "experiments"
# What says where something lies, or stands for the words of a data set, which are not known of the paper.
_ASIDE = re.compile(r"tokenizer\..*|model\.text_tower\.vocab|.*\.dir")


def differences(run: Run, step: int, scale: str) -> list[str]:
    """In what a run differs at a step from the shipped one at this scale, in a few words each."""
    pairs, wanted = run.pairs(step), paper.PAIRS[scale]
    found = []
    if pairs is None:
        found.append("pairs read not known")
    elif paper.scale_of(pairs) != scale:
        found.append(f"{compact(pairs)} pairs read, not {compact(wanted)}")
    shipped = _experiment(str(run.find("objective")), _argument(run.config.get("arg") or {}))
    if shipped is None:
        return [*found, "the shipped experiment is not here to compare with"]
    planned = run.planned(shipped.get("total", ""))
    if planned and run.examples(step) < SEEN * planned:
        found.append(f"{compact(run.examples(step))} examples seen, not {compact(planned)}")
    return [*found, *_apart(identity(run.config), shipped)]


def of_evaluation(settings: Mapping[str, Any], run: Run) -> list[str]:
    """In what an evaluator's settings differ from those in the suite of the paper's tables that are the nearest.

    `settings`: flat, as `models.measured` gives them. Nothing is said of VQA, whose evaluation is the experiment's.
    """
    suites = [_suite(probe, str(run.workdir / "config.json")) for probe in ("lbfgs", "lars")]
    same = [s for suite in suites for s in suite if s.get("type") == settings.get("type")]
    same = [s for s in same if s.get("data.source.name") == settings.get("data.source.name")]
    return min((_apart(settings, s) for s in same), key=len, default=[])


def said(differences: list[str]) -> str:
    """`batch_size 4096, not 16384; and 2 more`."""
    more = [f"and {len(differences) - MOST} more"] if len(differences) > MOST else []
    return "; ".join([*differences[:MOST], *more])


def _apart(mine: Mapping[str, Any], shipped: Mapping[str, Any]) -> list[str]:
    names = [n for n in {**shipped, **mine} if not _ASIDE.fullmatch(n)]
    apart = [n for n in names if _plain(mine.get(n)) != _plain(shipped.get(n))]
    return [f"{n.removeprefix('model.')} {_short(mine.get(n))}, not {_short(shipped.get(n))}" for n in apart]


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value) or "none"
    return text if len(text) <= 40 else "other"


def _argument(arg: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in arg.items())


@functools.lru_cache(64)
def _experiment(objective: str, argument: str) -> Mapping[str, Any] | None:
    """The identity of the shipped experiment with an argument; None if it is not here, or takes no such argument."""
    if not (PLACE / f"{objective}.py").exists():
        return None
    try:
        return identity(configs.load(f"{PLACE / objective}.py:{argument}"))
    except UserError:
        return None


@functools.lru_cache(16)
def _suite(probe: str, config: str) -> list[Mapping[str, Any]]:
    """The evaluators of the paper's suite for a run, flat; [] if the suite is not here or does not fit the run."""
    from maeclip_jax.report.models import measured

    if not (PLACE / "eval" / "paper.py").exists():
        return []
    try:
        made = configs.load(config, suite=f"{PLACE}/eval/paper.py:probe={probe}")
    except UserError:
        return []
    return [measured(configs.plain(made.evals)[name]) for name in made.evals]
