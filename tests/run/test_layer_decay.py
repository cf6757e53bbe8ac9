"""Layer-wise decay of the learning rate: factors counted by hand, however layers are stored, and what is refused."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten, stack_layers
from maeclip_jax.run import optim
from tests.objectives import models
from tests.run.test_optim import DEFAULTS

HALF = (("image/.*", 0.5), ("text/.*", 0.1))
# Of two blocks under a decay of 0.5: what comes before them, each, and what comes after them.
BEFORE, FIRST, SECOND, AFTER = 0.125, 0.25, 0.5, 1.0
UNROLLED = dict(compute=dict(layers="unroll"))


def parameters(name="clip", **changes):
    return models.parameters(models.build(name, **changes))


def moved(params, **changes):
    """{path: how far a step of SGD at rate 1 with gradients of one goes}."""
    changes = dict(name="sgd", b1=0.0, weight_decay=0.0) | changes
    transform = optim.make(ml_collections.ConfigDict(DEFAULTS | changes), params, optim.Rate(1.0, lambda _: 1.0))

    def step(params):
        return transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)[0]

    return {path: -np.asarray(x) for path, x in flatten(jax.jit(step)(params)).items()}


def test_factors_are_those_counted_by_hand():
    found = moved(parameters(), layer_decay=HALF)
    want = {
        "image/embed_image/patch/kernel": BEFORE, "image/embed_image/patch/bias": BEFORE,
        "image/norm/scale": AFTER, "image/norm/bias": AFTER,
        "text/embed_text/token/embedding": 0.001, "text/embed_text/position": 0.001, "text/norm/scale": AFTER,
        "image_head/project/kernel": 1.0, "text_head/project/kernel": 1.0, "log_logit_scale": 1.0,
    }  # fmt: skip
    for path, factor in want.items():
        np.testing.assert_allclose(found[path], factor, rtol=1e-6, err_msg=path)
    blocks = {p: x for p, x in found.items() if "/blocks/" in p}
    assert len(blocks) == 24
    for path, x in blocks.items():
        first, second = (FIRST, SECOND) if path.startswith("image/") else (0.01, 0.1)
        np.testing.assert_allclose(x[0], first, rtol=1e-6, err_msg=path)
        np.testing.assert_allclose(x[1], second, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "name, rules", [("clip", HALF), ("m3ae", ((".*", 0.7),)), ("vqa", (("(image|fuse)/.*", 0.3),))]
)
def test_factors_do_not_depend_on_how_layers_are_stored(name, rules):
    stacked = moved(parameters(name), layer_decay=rules)
    unrolled = moved(parameters(name, **UNROLLED), layer_decay=rules)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unrolled), stacked)
    assert len({float(x.min()) for x in stacked.values()}) > 2


def test_every_trunk_is_counted_by_its_own_depth_and_what_no_rule_names_keeps_its_rate():
    found = moved(parameters("m3ae"), layer_decay=((".*", 0.5),))  # an encoder of two layers, a decoder of one
    assert set(np.unique(found["image_text/trunk/blocks/mlp/up/kernel"])) == {FIRST, SECOND}
    assert found["image_text/cls"].max() == found["image_text/modality_text"].max() == BEFORE
    assert set(np.unique(found["decoder/trunk/blocks/mlp/up/kernel"])) == {0.5}
    assert found["decoder/mask_text"].max() == 0.25 and found["decoder/norm/scale"].min() == 1
    only = moved(parameters("m3ae"), layer_decay=(("image_text/.*", 0.5),))
    assert {float(x.min()) for p, x in only.items() if p.startswith("decoder/")} == {1.0}


def test_it_multiplies_what_else_is_said_of_the_rate_and_reaches_the_weight_decay():
    """As AdamW with a rate of its own for every layer: a parameter that is frozen stays."""
    params = parameters()
    changes = dict(name="adamw", b1=0.9, weight_decay=0.1, lr_multipliers=(("image/.*", 2.0),), freeze=("text/.*",))
    found = moved(params, layer_decay=(("image/.*", 0.5),), **changes)
    path = "image/trunk/blocks/mlp/up/kernel"
    for layer, rate in enumerate((2 * FIRST, 2 * SECOND)):
        alone = flatten(params)[path][layer]
        adam = optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1)
        updates, _ = adam.update(np.ones_like(alone), adam.init(alone), alone)
        np.testing.assert_allclose(found[path][layer], -updates, rtol=1e-5)
    assert not found["text/trunk/blocks/mlp/up/kernel"].any()


@pytest.mark.parametrize(
    "rules, text",
    [
        ((("image/.*", 0.0),), r"optim.layer_decay rule 'image/.*' has 0.0; valid: a number in (0, 1]"),
        ((("image/.*", 1.5),), r"optim.layer_decay rule 'image/.*' has 1.5; valid: a number in (0, 1]"),
        ((("image/.*", "x"),), r"optim.layer_decay rule 'image/.*' has 'x'; valid: a number in (0, 1]"),
        ((("picture/.*", 0.5),), r"optim.layer_decay rule 'picture/.*' matches no parameter; paths look like: "),
        (
            (("image_head/.*", 0.5),),
            "optim.layer_decay rule 'image_head/.*' matches no layer of a tower; valid: path regexes such as "
            "'image/.*' (towers here: image, text)",
        ),
        ((0.65,), "optim.layer_decay has 0.65; valid: pairs of a path regex and a number in (0, 1], such as "),
    ],
)
def test_rules_that_fit_nothing_are_refused(rules, text):
    with pytest.raises(UserError) as error:
        moved(parameters(), layer_decay=rules)
    assert str(error.value).startswith(text) and "\n" not in str(error.value)
