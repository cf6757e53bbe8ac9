"""VTAB: linear probes on the 19 tasks of Zhai et al. 2020, from data sets of the TFDS catalogue.

    python -m maeclip_jax.main --mode=eval --config=runs/a/config.json --workdir=runs/a
        --config.evals=experiments/eval/vtab.py:which=natural

Argument: which = all | natural | specialized | structured | tasks joined by "+"; size = 1k (800 pictures to learn from,
200 to validate on) | full; pool = own | gap | max | ... Other ways than 1k and own have names of their own
(vtab_dtd_full_max), so their results stand beside the plain ones. A task whose data set is not prepared is named, and
the others still run. The paper reports VTAB, but its numbers are not known to us.
"""

from __future__ import annotations

from experiments import common, common_evals
from maeclip_jax.data import vtab


def get_evals(config, arg=None):
    arg = common.parse_arg(arg, which="all", size="1k", pool="own")
    found = vtab.evaluators(config.model.image_tower.size, "", arg.which.split("+"), arg.size, pool=arg.pool)
    return {common_evals.variant(n, arg.size, arg.pool): e for n, e in found.items()}
