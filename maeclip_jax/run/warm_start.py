"""Parameters that a run begins with: those of another run's checkpoint, or of other code bases' weights, by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.parallel.sharding import put
from maeclip_jax.params import flatten, rename_path, with_layers_like
from maeclip_jax.run.checkpoint import EMA, RAW, read_parameters


def init_params(
    source: str, rules: Sequence[tuple[str, str]], params: Any, have: Mapping[str, np.ndarray] | None = None
) -> tuple[Any, str]:
    """`params` with values taken from another run's checkpoint, or from `have` ({path: array}), by path.

    `rules`: ((regex of the source path, replacement), ...), first match wins; an empty replacement drops the path. What
    has no counterpart keeps its fresh value. Of a run that keeps an average of its parameters, that is taken. Returns
    (params, one-line report). UserError if a shape differs or nothing fits.
    """
    want = flatten(params)
    have, which = read_parameters(source) if have is None else (have, RAW)
    theirs: dict[str, np.ndarray] = {}
    for path, value in with_layers_like(have, want).items():
        new = rename_path(path, rules)
        if new:
            theirs[new] = value
    loaded = {}
    for path, value in theirs.items():
        if path in want:
            if value.shape != tuple(want[path].shape):
                words = path.endswith("embed_text/token/embedding")
                table = f"set --config.model.text_tower.vocab={len(value)}, or " if words else ""
                raise UserError(
                    f"init_from {source!r}: {path!r} has shape {value.shape} there and {tuple(want[path].shape)} here; "
                    f"{table}drop it with an init_rules entry ((its path, ''), ...)"
                )
            loaded[path] = put(value, want[path])
    if not loaded:
        raise UserError(
            f"init_from {source!r}: none of its {len(have)} parameters has a place here; "
            f"theirs look like {next(iter(have), 'nothing')!r}, ours like {next(iter(want))!r}; see config.init_rules"
        )
    fresh = sorted(set(want) - set(loaded))
    unused = sorted(set(theirs) - set(loaded))
    report = (
        f"init_from {source}: {len(loaded)} of {len(want)} parameters loaded"
        f"{', from their running average (optim.ema)' if which == EMA else ''}; "
        f"fresh: {_some(fresh)}; unused: {_some(unused)}"
    )
    structure = jax.tree_util.tree_structure(params)
    return jax.tree_util.tree_unflatten(structure, [loaded.get(p, leaf) for p, leaf in want.items()]), report


def _some(names: list[str]) -> str:
    tops = sorted({n.split("/")[0] for n in names})
    return f"{len(names)} ({', '.join(tops[:6])})" if names else "none"
