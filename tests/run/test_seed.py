"""The seed is an argument of the compiled programs: one serves all seeds, with the numbers that a constant gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maeclip_jax.run import step
from maeclip_jax.run.setup import setup
from tests import runs


def built(seed: int) -> step.TrainStep:
    return step.build(runs.config("objective=mae_clip", seed=seed).copy_and_resolve_references(), epoch=40)


def test_programs_of_two_seeds_are_the_same():
    texts = []
    for seed in (1, 2):
        made = built(seed)
        with jax.set_mesh(made.mesh):
            lowered = made.step.lower(made.abstract, made.inputs | made.seeded())
            first = made.init.func.lower(*made.init.args)
        texts.append((lowered.as_text(), first.as_text()))
    assert texts[0] == texts[1]


def test_the_first_parameters_are_those_of_the_seed():
    config = runs.config("objective=clip", seed=3).copy_and_resolve_references()
    made = step.build(config, epoch=40)
    with jax.set_mesh(made.mesh):
        ours, theirs = made.init().params, jax.jit(setup(config).fresh)()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**31 + 5, -3])
def test_draws_of_a_step_are_those_of_a_constant(seed):
    """Also for seeds that an int32 does not hold, which jax takes modulo 2^32."""
    config = runs.config("objective=clip", seed=seed).copy_and_resolve_references()
    made = step.build(config, epoch=40)

    def loss(params, batch, rngs):
        drawn = {name: jax.random.uniform(key) for name, key in rngs.items()}
        return jnp.sum(params) + drawn["mask"], drawn

    transform = optax.sgd(0.1)
    params = jnp.ones(2)
    state = step.State(jnp.int32(5), params, transform.init(params), dict.fromkeys(
        ("skipped", "skipped_in_row", "bad_records"), jnp.int32(0)))  # fmt: skip

    def metrics(batch):
        return jax.jit(lambda s, b: step.update(loss, transform, lambda n: 0.1, None, seed, (), s, b))(state, batch)[1]

    constant, argument = metrics({}), metrics({"_seed": made.seeded()["_seed"].addressable_shards[0].data})
    assert constant.keys() >= {"mask", "dropout"}
    for name, value in constant.items():
        np.testing.assert_array_equal(value, argument[name])
