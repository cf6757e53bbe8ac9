"""Updates that look at a whole array, made for one layer at a time where layers are stacked in one array.

So an update does not depend on how layers are stored, and what it holds is stacked and unstacked as parameters are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from maeclip_jax.params import is_stacked, path_name


def trust_ratio() -> optax.GradientTransformation:
    """LAMB's: the update of each array, or of each layer in it, is as long as its parameters are."""
    whole = optax.scale_by_trust_ratio()

    def one(update, param):
        return whole.update(update, optax.EmptyState(), param)[0]

    def scaled(path: tuple, update, param):
        return (jax.vmap(one) if is_stacked(path_name(path)) else one)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates, params))


def factored_rms(**settings: Any) -> optax.GradientTransformation:
    """`optax.scale_by_factored_rms(**settings)`; what it holds of stacked layers has them as its first axis."""
    whole = optax.scale_by_factored_rms(**settings)
    by_layer = optax.FactoredState(None, 0, 0, 0)  # the axis of layers: the step's number is one for all

    def together(tree, count, states: list[optax.FactoredState]) -> optax.FactoredState:
        parts = ("v_row", "v_col", "v")
        return optax.FactoredState(count, *(tree.unflatten([getattr(s, part) for s in states]) for part in parts))

    def init(params):
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        begin = jax.vmap(whole.init, out_axes=by_layer)
        made = [(begin if is_stacked(path_name(path)) else whole.init)(param) for path, param in leaves]
        return together(tree, jnp.zeros((), jnp.int32), made)

    def update(updates, state, params):
        leaves, tree = jax.tree_util.tree_flatten_with_path(updates)
        held = [tree.flatten_up_to(part) for part in (state.v_row, state.v_col, state.v, params)]
        follow = jax.vmap(whole.update, in_axes=(0, by_layer, 0), out_axes=(0, by_layer))
        made = [
            (follow if is_stacked(path_name(path)) else whole.update)(
                grad, optax.FactoredState(state.count, *moments), param
            )
            for (path, grad), *moments, param in zip(leaves, *held)
        ]
        after = together(tree, optax.safe_increment(state.count), [held for _, held in made])
        return tree.unflatten([update for update, _ in made]), after

    return optax.GradientTransformation(init, update)
