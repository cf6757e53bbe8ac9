"""VTAB: linear probes on the 19 tasks of Zhai et al. 2020, from data sets of the TFDS catalogue.

    python -m maeclip_jax.main --mode=eval --config=runs/a/config.json --workdir=runs/a
        --config.evals=experiments/eval/vtab.py:which=natural

Argument: which = all | natural | specialized | structured | tasks joined by "+"; size = 1k (800 pictures to learn from,
200 to validate on) | full; pool = own | gap | max | ... Other ways than 1k and own have names of their own
(vtab_dtd_full_max), so their results stand beside the plain ones. A task whose data set is not prepared is named, and
the others still run. The paper reports VTAB, but its numbers are not known to us.
"""

from __future__ import annotations

from collections.abc import Iterable

from experiments import suites
from experiments.argument import parse_arg
from maeclip_jax import errors
from maeclip_jax.data import vtab


def get_evals(config, arg=None):
    arg = parse_arg(arg, which="all", size="1k", pool="own")
    found = evaluators(config.model.image_tower.size, "", arg.which.split("+"), arg.size, pool=arg.pool)
    return {suites.variant(n, arg.size, arg.pool): e for n, e in found.items()}


def evaluators(
    side: int, data_dir: str | None = None, which: str | Iterable[str] = "all", size: str = "1k", **settings
) -> dict[str, dict]:
    """{`vtab_<task>`: config of a linear probe} on pictures of `side` pixels.

    size: "1k" (800 + 200 pictures to learn from) or "full". settings: of the probe (`pool`, `solver`, ...).
    """
    of_size = errors.choose("size of VTAB", size, {"1k": ("train1k", "val1k"), "full": ("train", "val")})
    out = {}
    for name in vtab.select(which):
        task = vtab.TASKS[name]
        splits = {"train": getattr(task, of_size[0]), "val": getattr(task, of_size[1]), "data": task.test}
        ops = f'decode|vtab("{name}")|resize({side})|keep("image","label")'
        sources = {k: dict(kind="tfds", dir=data_dir, name=task.name, split=s) for k, s in splits.items()}
        sets = {k: dict(source=source, ops=ops) for k, source in sources.items()}
        out[f"vtab_{name}"] = dict(type="linear_probe", task=name, classes=task.classes, **sets, **settings)
    return out
