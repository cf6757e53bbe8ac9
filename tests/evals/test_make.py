from types import SimpleNamespace

import pytest

from maeclip_jax import evals
from maeclip_jax.errors import UserError
from maeclip_jax.evals.protocol import select


def test_unknown_evaluator_lists_the_valid_ones(fake):
    with pytest.raises(UserError, match=r"evaluator 'zeroshot' .*mean 'zero_shot'.*loss, reconstruction, retrieval"):
        evals.make("zeroshot", fake({}))


def test_unknown_setting_lists_the_valid_ones(fake):
    with pytest.raises(UserError, match=r"setting of evaluator 'retrieval' 'batchsize'.*'batch_size'.*duplicates"):
        evals.make("retrieval", fake({}), data={}, batchsize=3)


def test_missing_setting_is_named(fake):
    with pytest.raises(UserError, match=r"evaluator 'zero_shot' needs data, length; valid: among, batch_size, classes"):
        evals.make("zero_shot", fake({}))


@pytest.mark.parametrize("type,settings", [("zero_shot", {"length": 4}), ("retrieval", {})])
def test_objectives_without_a_shared_space_are_not_applicable(fake, type, settings):
    context = fake({}, objective=SimpleNamespace(contrastive=False))
    with pytest.raises(evals.NotApplicable, match="trains no space they share"):
        evals.make(type, context, data={}, **settings)


def test_objectives_without_a_decoder_reconstruct_nothing(fake):
    with pytest.raises(evals.NotApplicable, match="has no decoder"):
        evals.make("reconstruction", fake({}), data={})


def test_a_missing_array_is_named_with_what_the_batch_holds():
    with pytest.raises(UserError, match=r"zero_shot needs 'label' .*hold: image; end the ops with keep\(\"label\"\)"):
        select({"image": [1], "_valid": [True]}, "label", who="zero_shot")
