"""Layer-wise decay of the learning rate, by what comes before and after the blocks of each tower."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from maeclip_jax import errors
from maeclip_jax.params import TRUNK, flatten, map_with_path, match_rules, unflatten

# What a tower has behind its blocks: the final norm, and a decoder's heads.
AFTER = r"(norm|predict_[^/]+)/"
# Parameters beside the towers that are inputs of one: path -> where they would be in it. Rules see the latter.
INPUTS = {"mask_token": "image/mask_token"}  # what TIPS shows instead of a hidden patch


def factors(rules: tuple, params: Any) -> Any:
    """Layer-wise decay of the learning rate: what each parameter's rate is multiplied by, a tree of arrays.

    `rules`: ((path regex, decay), ...); first match wins, what none matches has 1. Of a tower of L blocks, block i
    (from 0) has decay ** (L - i), what comes before them (embeddings, class token, positions) decay ** (L + 1), and
    what comes after them (final norm and heads) 1, as in BEiT's and MAE's finetuning. Stacked layers have a factor for
    each, [L, 1, ...].
    UserError for a rule that no parameter of a tower matches, or for a decay outside (0, 1].
    """
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 2:
            raise errors.UserError(
                f"optim.layer_decay has {rule!r}; valid: pairs of a path regex and a number in (0, 1], such as "
                "(('image/.*', 0.65),)"
            )
        pattern, decay = rule
        if not (isinstance(decay, int | float) and 0 < decay <= 1):
            raise errors.UserError(f"optim.layer_decay rule {pattern!r} has {decay!r}; valid: a number in (0, 1]")
    flat = flatten(params)
    places = {path: INPUTS.get(path, path) for path in flat}
    placed = unflatten({place: flat[path] for path, place in places.items()})
    decays = flatten(match_rules(rules, placed, "optim.layer_decay", default=1.0))
    depths: dict[str, int] = {}  # of the trunk in each tower, by the tower's path
    blocks = {path: found for path in flat if (found := TRUNK.fullmatch(path))}
    for path, found in blocks.items():
        layers = flat[path].shape[0] if found["index"] is None else int(found["index"]) + 1
        depths[found["tower"]] = max(depths.get(found["tower"], 0), layers)
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in blocks):
            towers = tuple(depths) or ("none",)
            raise errors.UserError(
                f"optim.layer_decay rule {pattern!r} matches no layer of a tower; valid: path regexes such as "
                f"'{towers[0]}/.*' (towers here: {', '.join(towers)})"
            )

    def factor(path: str, leaf) -> np.ndarray:
        place = places[path]
        tower, decay = next((t for t in depths if place.startswith(f"{t}/")), None), decays[place]
        if tower is None or re.match(AFTER, place.removeprefix(f"{tower}/")):
            return np.float32(1)
        if path not in blocks:
            return np.float32(decay ** (depths[tower] + 1))
        if blocks[path]["index"] is not None:
            return np.float32(decay ** (depths[tower] - int(blocks[path]["index"])))
        powers = np.asarray([decay ** (depths[tower] - i) for i in range(leaf.shape[0])], np.float32)
        return powers.reshape(-1, *(1,) * (leaf.ndim - 1))

    return map_with_path(factor, params)
