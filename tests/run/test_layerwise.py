"""Updates of whole arrays: the same however layers are stored, with what the optimizer holds."""

import jax
import numpy as np
import optax
import pytest

from maeclip_jax.params import flatten, stack_layers, unflatten
from maeclip_jax.run import optim
from tests.run.test_optim import STACK, config, noise, step


def blocks(layers):
    """Blocks of 32 x 48 whose norms and gradients differ, each under its own path."""
    rng, found = np.random.default_rng(0), {"image/norm/scale": np.ones(32, np.float32)}
    parts = {"attention/qkv/kernel": (32, 48), "attention/qkv/bias": (48,), "norm_1/scale": (32,)}
    for i in range(layers):
        for part, shape in parts.items():
            array = rng.normal(0, 0.02 * (1 + i), shape).astype(np.float32)
            found[f"image/trunk/block_{i:02}/{part}"] = array
    return found, {
        p: rng.normal(0, 0.1 / (1 + n % 7), x.shape).astype(np.float32) for n, (p, x) in enumerate(found.items())
    }


@pytest.mark.parametrize("layers", [3, 33])  # more than the 32 from which on Adafactor factors an axis
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_an_update_and_what_it_holds_do_not_depend_on_how_layers_are_stored(name, layers):
    """So a run may go on with layers stored the other way."""
    flat, grads = blocks(layers)

    def after(flat, grads):
        params, grads = unflatten(flat), unflatten(grads)
        transform = optim.make(config(name=name), params, optim.Rate(0.1, lambda _: 1.0))
        state = transform.init(params)
        for _ in range(2):
            updates, state = jax.jit(transform.update)(grads, state, params)
            params = optax.apply_updates(params, updates)
        return flatten(params), flatten(state)

    for own, stacked in zip(after(flat, grads), after(stack_layers(flat), stack_layers(grads))):
        own_stacked = stack_layers({p: np.asarray(x) for p, x in own.items()})
        assert {p: x.shape for p, x in own_stacked.items()} == {p: x.shape for p, x in stacked.items()}
        for path, x in stacked.items():
            np.testing.assert_allclose(x, own_stacked[path], rtol=1e-3, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_layers_are_updated_one_by_one_also_beside_frozen_ones(name):
    grads, changes = noise(STACK), dict(name=name, weight_decay=0.0, rate=0.1)
    grads["image"]["trunk"]["blocks"]["attention"]["qkv"]["kernel"][1] *= 5
    whole = step(STACK, grads, **changes)
    some = step(STACK, grads, freeze=("text.*", ".*/embed_image/.*"), **changes)
    for path, x in flatten(STACK).items():
        frozen = path.startswith("text") or "embed_image" in path
        np.testing.assert_array_equal(some[path], x if frozen else whole[path])


def test_lamb_gives_each_layer_the_norm_of_its_own():
    """By hand: the first step of Adam is the sign of the gradient."""
    scale = np.array([1.0, 3.0], np.float32)[:, None, None]
    params = {"image": {"trunk": {"blocks": {"mlp": {"up": {"kernel": scale * np.ones((2, 4, 8), np.float32)}}}}}}
    after = step(params, noise(params), name="lamb", weight_decay=0.0, eps=0.0, rate=0.5)
    moved = np.abs(after["image/trunk/blocks/mlp/up/kernel"] - np.asarray(jax.tree.leaves(params)[0]))
    np.testing.assert_allclose(moved, 0.5 * np.broadcast_to(scale, moved.shape), rtol=1e-5)
