"""Parameters that a run begins with: those of another run's checkpoint, or of other code bases' weights, by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop.export import DEFAULTS
from maeclip_jax.parallel.sharding import put
from maeclip_jax.params import flatten, rename_path, with_layers_like
from maeclip_jax.run.checkpoint import EMA, RAW, read_parameters
from maeclip_jax.workdir.identity import all_leaves

# Settings by which the same parameters compute something else while no shape says so. Of each part of a model: the
# sections of config.model that say how it computes ("": config.model itself), and which of their settings.
_TRUNK = ("heads", "activation", "causal", "eps")
_ENDS = ("norm_pre", "cls", "cls_position", "pool")
_PICTURES, _WORDS = ("size", "position", "patch_bias"), ("position", "padding")
_HEAD = ("pool", "projection", "map")
MEANING = {
    "image": {"image_tower": (*_TRUNK, *_ENDS, *_PICTURES), "": ("stats",)},
    "text": {"text_tower": (*_TRUNK, *_ENDS, *_WORDS)},
    "image_text": {"image_tower": (*_TRUNK, *_ENDS, *_PICTURES), "text_tower": _WORDS, "": ("stats",)},
    "decoder": {"decoder_tower": ("heads", "activation", "eps"), "": ("norm_pix",)},
    "fuse": {"fusion_tower": ("heads", "activation")},
    "image_head": {"image_tower": ("heads", *_HEAD)},
    "text_head": {"text_tower": ("heads", *_HEAD)},
    "image_pool": {"image_tower": ("heads", "pool", "map")},
    "text_pool": {"image_tower": ("heads",), "text_tower": ("pool", "map")},
    "head": {"": ("pool",)},
}
# Layers whose parameters are of no use under another of these; anything else may be changed on purpose, and is said.
ATTENDING = ("/trunk/", "/map/")
REFUSED = ("heads", "activation")
ALIKE = ({"gelu", "gelu_tanh"},)  # activations that differ by less than 1e-3
OMITTED = DEFAULTS | {"position": "sincos", "text_tower.position": "learned", "stats": "imagenet", "norm_pix": True}


def init_params(
    source: str,
    rules: Sequence[tuple[str, str]],
    params: Any,
    have: Mapping[str, np.ndarray] | None = None,
    configs: tuple[Mapping, Any] | None = None,
) -> tuple[Any, str]:
    """`params` with values taken from another run's checkpoint, or from `have` ({path: array}), by path.

    `rules`: ((regex of the source path, replacement), ...), first match wins; an empty replacement drops the path. What
    has no counterpart keeps its fresh value. Of a run that keeps an average of its parameters, that is taken.
    `configs`: of the run in `source` and of this one; see `differences`. Returns (params, one-line report). UserError
    if a shape differs, if nothing fits, or if parameters would mean something else.
    """
    want = flatten(params)
    have, which = read_parameters(source) if have is None else (have, RAW)
    theirs: dict[str, np.ndarray] = {}
    came: dict[str, str] = {}
    for path, value in with_layers_like(have, want).items():
        new = rename_path(path, rules)
        if new:
            theirs[new], came[new] = value, path
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
    said = differences(source, *configs, {came[path]: path for path in loaded}) if configs else ""
    fresh = sorted(set(want) - set(loaded))
    unused = sorted(set(theirs) - set(loaded))
    report = (
        f"init_from {source}: {len(loaded)} of {len(want)} parameters loaded"
        f"{', from their running average (optim.ema)' if which == EMA else ''}; "
        f"fresh: {_some(fresh)}; unused: {_some(unused)}{said}"
    )
    structure = jax.tree_util.tree_structure(params)
    return jax.tree_util.tree_unflatten(structure, [loaded.get(p, leaf) for p, leaf in want.items()]), report


def differences(source: str, before: Mapping, config: Any, loaded: Mapping[str, str]) -> str:
    """What the settings that give `loaded` its meaning were and are, as the end of a line; "" where they are the same.

    `before`: the config of the run in `source`; `loaded`: {path there: path here}. UserError where the parameters are
    of no use under the settings here.
    """
    if not before:
        return f"; {source} has no config.json, so its settings were not compared"
    then, now = all_leaves(before), all_leaves(config)
    found: dict[str, tuple[Any, Any]] = {}
    for old, new, attends in sorted({(_top(a), _top(b), any(x in b for x in ATTENDING)) for a, b in loaded.items()}):
        there = MEANING.get(old, {})
        for section, names in MEANING.get(new, {}).items():
            like = section if section in there else next(iter(there), section)
            for name in names:
                was, is_ = _value(then, like, name), _value(now, section, name)
                if was == is_:
                    continue
                if name in REFUSED and {was, is_} not in ALIKE:
                    if attends:
                        raise UserError(_refusal(source, old, _name(like, name), was, _name(section, name), is_))
                    continue
                found[_name(section, name)] = was, is_
    told = ", ".join(f"{name} was {was!r} and is {is_!r}" for name, (was, is_) in found.items())
    return f"; set otherwise than there: {told}" if told else ""


def _refusal(source: str, top: str, theirs: str, was: Any, ours: str, is_: Any) -> str:
    there = f" ({theirs} there)" if theirs != ours else ""
    return (
        f"init_from {source!r}: {ours} is {is_!r} here and {was!r} there{there}, so its parameters {top}/... fit by "
        f"their shapes and compute something else; set --config.{ours}={was}, or leave them out: "
        f"--config.init_rules=\"((r'{top}/.*', ''), (r'(.*)', r'\\1'))\""
    )


def _top(path: str) -> str:
    return path.partition("/")[0]


def _name(section: str, name: str) -> str:
    return f"model.{section}.{name}" if section else f"model.{name}"


def _value(leaves: Mapping[str, Any], section: str, name: str) -> Any:
    """The value of a setting, or its default; a setting of several leaves (`map`) as a dict of them."""
    whole = _name(section, name)
    if whole in leaves:
        return leaves[whole]
    default = OMITTED.get(f"{section}.{name}", OMITTED.get(name))
    return {n: x for n, x in leaves.items() if n.startswith(f"{whole}.")} or default


def _some(names: list[str]) -> str:
    tops = sorted({n.split("/")[0] for n in names})
    return f"{len(names)} ({', '.join(tops[:6])})" if names else "none"
