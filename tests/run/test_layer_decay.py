"""Layer-wise decay of the learning rate: factors counted by hand, however layers are stored, and what is refused."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from maeclip_jax import objectives
from maeclip_jax.errors import UserError
from maeclip_jax.nn.transformer import Trunk
from maeclip_jax.params import flatten, stack_layers
from maeclip_jax.run import layer_decay, optim
from maeclip_jax.run.setup import RNG_STREAMS
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


# More than one way to build an objective, where that gives other parameters.
MAP = dict(pool="map", cls=True, cls_position=True, norm_pre=True, position="learned")
BUILT = [(name, {}) for name in objectives.table()] + [
    ("clip", dict(image_tower=models.IMAGE | MAP, loss="sigmoid")),
    ("vqa", dict(fusion="decoder", decoder_tower=models.DECODER)),
    ("vqa", dict(fusion="joint", text_tower=models.MODELS["m3ae"]["text_tower"])),
]


def reached(module, params) -> dict[str, set[str]]:
    """{path: the towers whose blocks' output depends on it}, by derivatives."""
    teacher = {"teacher": module.teacher(params)} if hasattr(module, "teacher") else {}
    rngs = {name: jax.random.key(i) for i, name in enumerate(RNG_STREAMS)}

    def outputs(params):
        _, kept = module.apply(
            {"params": params} | teacher, models.BATCH, train=True, rngs=rngs, mutable=["intermediates", *teacher],
            capture_intermediates=lambda m, _: isinstance(m, Trunk),
        )  # fmt: skip
        weighted = lambda xs: sum(jnp.sum(x * jnp.cos(jnp.arange(x.size)).reshape(x.shape)) for x in xs)  # noqa: E731
        flat = flatten_dict(kept["intermediates"], is_leaf=lambda _, x: isinstance(x, tuple))
        return {"/".join(path[:-2]): weighted(xs) for path, xs in flat.items() if path[-2:] == ("trunk", "__call__")}

    slopes = {tower: flatten(of) for tower, of in jax.jit(jax.jacrev(outputs))(params).items()}
    return {path: {t for t, of in slopes.items() if np.any(of[path])} for path in flatten(params)}


@pytest.mark.parametrize("name, changes", BUILT)
def test_each_parameter_of_each_objective_has_the_factor_of_its_depth(name, changes):
    """Before its own tower's blocks is what their output depends on, after them what it does not. What belongs to no
    tower is before the first one that depends on it; what none depends on has the full rate."""
    module = models.build(name, **changes)
    params = models.parameters(module)
    found, feeds = flatten(layer_decay.factors(((".*", 0.5),), params)), reached(module, params)
    depths = dict(image=2, text=2, image_text=2, decoder=1, fuse=1)
    towers = [t for t in depths if t in {t for some in feeds.values() for t in some}]
    assert towers == [t for t in depths if t in params]
    for path in (p for p in flatten(params) if "/trunk/" not in p):
        own = [path.split("/")[0]] if path.split("/")[0] in towers else towers
        before = [t for t in own if t in feeds[path]]
        assert found[path] == (0.5 ** (depths[before[0]] + 1) if before else 1), path
    if name == "tips":  # what stands for a patch goes with the patches
        assert found["mask_token"] == BEFORE
        assert flatten(layer_decay.factors((("image/.*", 0.5),), params))["mask_token"] == BEFORE
        assert flatten(layer_decay.factors((("text/.*", 0.5),), params))["mask_token"] == 1


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
