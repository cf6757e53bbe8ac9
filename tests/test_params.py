"""Rules address parameters by path: the first that matches decides, and nothing is silently unmatched or unused."""

import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.params import (
    flatten,
    map_with_path,
    match_any,
    match_rules,
    stack_layers,
    unflatten,
    unstack_layers,
    with_layers_like,
)

TREE = {
    "image": {"norm": {"scale": jnp.ones(3)}, "patch": {"kernel": jnp.ones((2, 3))}},
    "text": {"token": {"embedding": jnp.ones((5, 3))}},
    "log_logit_scale": jnp.ones(()),
}


def test_flatten_and_unflatten_are_inverse():
    flat = flatten(TREE)
    assert list(flat) == ["image/norm/scale", "image/patch/kernel", "log_logit_scale", "text/token/embedding"]
    assert flatten(unflatten(flat)) == flat
    assert map_with_path(lambda path, x: (path, x.ndim), TREE)["image"]["patch"]["kernel"] == (
        "image/patch/kernel",
        2,
    )


def test_names_of_sequences_and_fields():
    from typing import NamedTuple

    class State(NamedTuple):
        mu: dict

    assert list(flatten((State({"a": 1}), [2]))) == ["0/mu/a", "1/0"]


def test_the_first_matching_rule_wins_and_matches_whole_paths():
    rules = ((".*/kernel", "matrix"), ("image/.*", "picture"), (".*", "rest"))
    values = flatten(match_rules(rules, TREE, "decay"))
    assert values == {
        "image/norm/scale": "picture",
        "image/patch/kernel": "matrix",
        "log_logit_scale": "rest",
        "text/token/embedding": "rest",
    }
    assert set(flatten(match_rules(((".*", 1), ("image/.*", 2)), TREE, "x", strict=False)).values()) == {1}
    found = flatten(match_rules((("image", 1),), TREE, "x", default=0, strict=False))
    assert set(found.values()) == {0}  # a part of a path does not match


def test_an_unmatched_parameter_is_an_error():
    with pytest.raises(UserError) as error:
        match_rules((("image/.*", 1),), TREE, "sharding")
    assert str(error.value) == "no sharding rule matches parameter 'log_logit_scale'; rules: image/.*"
    assert match_rules((("image/.*", 1),), TREE, "sharding", default=0)["log_logit_scale"] == 0


def test_an_unused_rule_is_an_error():
    with pytest.raises(UserError) as error:
        match_rules((("imge/.*", 1), (".*", 2)), TREE, "lr")
    assert str(error.value) == (
        "lr rule 'imge/.*' matches no parameter; paths look like: image/norm/scale, image/patch/kernel, "
        "log_logit_scale, text/token/embedding, ..."
    )
    with pytest.raises(UserError) as error:
        match_any(("text", "text/.*"), TREE, "optim.freeze")
    assert str(error.value).startswith("optim.freeze rule 'text' matches no parameter; ")


def test_a_rule_behind_a_wider_one_is_unused_too():
    with pytest.raises(UserError) as error:
        match_rules(((".*", 1), ("image/.*", 2)), TREE, "lr")
    assert str(error.value) == "lr rule 'image/.*' is never reached: earlier rules match all it would match"


def test_a_bad_regex_is_named():
    with pytest.raises(UserError) as error:
        match_rules((("image/(", 1),), TREE, "optim.caps")
    text = "optim.caps rule 'image/(' is not a regular expression: missing ), unterminated subpattern at position 6"
    assert str(error.value) == text


def test_matches_says_which():
    frozen = flatten(match_any(("text/.*", ".*/scale"), TREE, "freeze"))
    assert {p for p, f in frozen.items() if f} == {"image/norm/scale", "text/token/embedding"}
    assert not any(flatten(match_any((), TREE, "freeze")).values())


@pytest.mark.parametrize("depth", [1, 3, 12, 101])
def test_stacking_layers_is_lossless(depth):
    rng = np.random.default_rng(0)
    unrolled = {f"image/trunk/block_{i:02}/mlp/up/kernel": rng.standard_normal((2, 3)) for i in range(depth)}
    unrolled |= {f"decoder/trunk/block_{i:02}/norm_1/scale": rng.standard_normal(4) for i in range(2)}
    unrolled |= {"image/norm/scale": np.ones(3), "image/embed_image/patch/kernel": np.ones((3, 2))}
    shuffled = {k: unrolled[k] for k in sorted(unrolled, reverse=True)}
    stacked = stack_layers(shuffled)
    assert stacked["image/trunk/blocks/mlp/up/kernel"].shape == (depth, 2, 3)
    assert stacked["decoder/trunk/blocks/norm_1/scale"].shape == (2, 4)
    np.testing.assert_array_equal(
        stacked["image/trunk/blocks/mlp/up/kernel"][-1], unrolled[f"image/trunk/block_{depth - 1:02}/mlp/up/kernel"]
    )
    for back in (unstack_layers(stacked), with_layers_like(stacked, unrolled)):
        assert set(back) == set(unrolled)
        for path, leaf in back.items():
            np.testing.assert_array_equal(leaf, unrolled[path])
    again = with_layers_like(unrolled, stacked)
    assert {p: x.shape for p, x in again.items()} == {p: x.shape for p, x in stacked.items()}
