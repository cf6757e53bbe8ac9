"""Parameter paths: the one way to address parameters. '/'-joined, matched by ordered regex rules, first match wins.

Rules decide sharding, weight decay, learning-rate multipliers, freezing and loading. A regex must match the whole path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from maeclip_jax.errors import UserError


def path_name(key_path: tuple) -> str:
    """A jax key path as '/'-joined names: `image/trunk/blocks/mlp/up/kernel`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path)


def flatten(tree: Any) -> dict[str, Any]:
    """{path: leaf}, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(flat: dict[str, Any]) -> dict:
    """The nested dict of {path: leaf}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """`function(path, leaf)` on every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree)


def match_rules(
    rules: Sequence[tuple[str, Any]], tree: Any, what: str, default: Any = None, strict: bool = True
) -> Any:
    """A tree of the values that `rules` ((regex, value), ...) give to the paths of `tree`; first match wins.

    With `strict`, a path that nothing matches (and no `default`), or a rule that matches nothing, is a UserError.
    """
    compiled = [(_compile(pattern, what), value) for pattern, value in rules]
    used: set[int] = set()

    def value_of(path: str, _):
        for i, (regex, value) in enumerate(compiled):
            if regex.fullmatch(path):
                used.add(i)
                return value
        if default is None and strict:
            raise UserError(f"no {what} rule matches parameter {path!r}; rules: {', '.join(p for p, _ in rules)}")
        return default

    out = map_with_path(value_of, tree)
    idle = [i for i in range(len(rules)) if i not in used]
    if strict and idle:
        pattern, (regex, _) = rules[idle[0]][0], compiled[idle[0]]
        if any(regex.fullmatch(path) for path in flatten(tree)):
            raise UserError(f"{what} rule {pattern!r} is never reached: earlier rules match all it would match")
        near = ", ".join(list(flatten(tree))[:6])
        raise UserError(f"{what} rule {pattern!r} matches no parameter; paths look like: {near}, ...")
    return out


def match_any(patterns: Sequence[str], tree: Any, what: str, strict: bool = True) -> Any:
    """A tree of bools: does any of `patterns` match the path?"""
    return match_rules(tuple((p, True) for p in patterns), tree, what, default=False, strict=strict)


def _compile(pattern: str, what: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as e:
        raise UserError(f"{what} rule {pattern!r} is not a regular expression: {e}") from None


_LAYER = re.compile(r"(?P<trunk>.*trunk)/block_(?P<index>\d+)/(?P<rest>.*)")
_STACK = re.compile(r"(?P<trunk>.*trunk)/blocks/(?P<rest>.*)")


# A parameter of a block: `tower` is the path of the module that its trunk is in, `index` None where layers are stacked.
TRUNK = re.compile(r"(?P<tower>.+)/trunk/(?:block_(?P<index>\d+)|blocks)/.*")


def is_stacked(path: str) -> bool:
    """Whether a parameter, or what an optimizer holds of it, has the layers of a trunk as its first axis."""
    return _STACK.fullmatch(path) is not None


def stack_layers(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Unrolled layers `trunk/block_00/...` as one array `trunk/blocks/...` with a leading layer axis. Lossless."""
    out, layers = {}, {}
    for path, leaf in flat.items():
        m = _LAYER.fullmatch(path)
        if m:
            layers.setdefault(f"{m['trunk']}/blocks/{m['rest']}", {})[int(m["index"])] = leaf
        else:
            out[path] = leaf
    for path, by_index in layers.items():
        out[path] = np.stack([np.asarray(by_index[i]) for i in range(len(by_index))])
    return out


def unstack_layers(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `stack_layers`."""
    out = {}
    for path, leaf in flat.items():
        m = _STACK.fullmatch(path)
        if m:
            for i in range(leaf.shape[0]):
                out[f"{m['trunk']}/block_{i:02}/{m['rest']}"] = np.asarray(leaf[i])
        else:
            out[path] = leaf
    return out


def with_layers_like(flat: dict[str, np.ndarray], target: dict[str, Any]) -> dict[str, np.ndarray]:
    """`flat` with its layers stacked or unstacked the way `target`'s paths have them."""
    scanned = any(_STACK.fullmatch(path) for path in target)
    return stack_layers(flat) if scanned else unstack_layers(flat)


def rename_path(path: str, rules: Sequence[tuple[str, str]]) -> str:
    """Where `rules` ((regex of the whole path, replacement), ...; first match wins) put a path; '' if they drop it."""
    for pattern, replacement in rules:
        try:
            m = re.fullmatch(pattern, path)
            if m:
                return m.expand(replacement)
        except re.error as e:
            raise UserError(f"init_rules rule {(pattern, replacement)!r} is not a regular expression: {e}") from None
    return ""
