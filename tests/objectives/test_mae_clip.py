"""MAE-CLIP: CLIP's loss plus two more, through the same towers."""

import jax
import numpy as np
import pytest

from maeclip_jax.params import flatten
from tests.objectives import models

BATCH = models.BATCH


def test_the_loss_is_the_weighted_sum_and_without_reconstruction_clip_s():
    weights = dict(contrast=0.7, image=0.2, text=0.3)
    module = models.build("mae_clip", weights=weights)
    params = models.parameters(module)
    out = models.outputs(module, params)
    metrics = out["metrics"]
    parts = {"contrast": metrics["contrast"], "image": metrics["image"], "text": metrics["text"]}
    assert all(0.01 < float(v) < 100 for v in parts.values())
    assert float(out["loss"]) == pytest.approx(sum(weights[k] * float(v) for k, v in parts.items()), rel=1e-5)

    clip = models.outputs(models.build("clip"), params)  # the same parameters, the decoder's unused
    assert float(clip["loss"]) == pytest.approx(float(metrics["contrast"]), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, clip["embed"], out["embed"])
    assert set(metrics) - set(clip["metrics"]) == {"image", "text", "text_accuracy"}


@pytest.mark.parametrize("name", ["mae_clip", "slip"])
def test_labels_are_smoothed_in_training_alone(name):
    smooth, plain = models.build(name, label_smoothing=0.3), models.build(name)
    params = models.parameters(smooth)
    (trained, evaluated), (was, measured) = (
        [models.outputs(module, params, train=train)["metrics"]["contrast"] for train in (True, False)]
        for module in (smooth, plain)
    )
    assert abs(float(trained) - float(was)) > 1e-3 and float(evaluated) == float(measured)


def test_zero_weights_give_clip_s_loss_and_gradients():
    zero = models.build("mae_clip", weights=dict(contrast=1.0, image=0.0, text=0.0))
    params = models.parameters(zero)

    def function(module):
        def loss(p):
            return models.apply(module, p, BATCH, train=True, seed=0)[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    (loss, grads), (want, wanted) = function(zero), function(models.build("clip"))
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), atol=1e-6), grads, wanted)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads["decoder"]))


def test_reconstruction_trains_both_towers_and_no_head():
    module = models.build("mae_clip", weights=dict(contrast=0.0, image=1.0, text=0.0))
    params = models.parameters(module)
    grads = jax.jit(jax.grad(lambda p: models.apply(module, p, BATCH, train=True, seed=0)[0]))(params)
    moved = {path for path, g in flatten(grads).items() if np.abs(g).max() > 1e-7}
    tops = {path.split("/")[0] for path in moved}
    assert tops == {"image", "text", "decoder"}  # words help to fill in pixels: the decoder crosses modalities
    assert "decoder/predict_text/kernel" not in moved
    table = np.abs(grads["text"]["embed_text"]["token"]["embedding"]).max(-1)
    assert table[0] == 0 and (table > 0).sum() > 3  # pads that are kept help nobody


def test_decode_image_covers_pictures_alone():
    module = models.build("mae_clip", decode=("image",), mask=dict(image=0.75))
    params = models.parameters(module)
    found = flatten(params)
    assert not any(p.startswith("decoder/") and "text" in p for p in found)
    assert not any(p.startswith("decoder/modality") for p in found)
    out = models.outputs(module, params)
    assert set(out["predicted"]) == {"image"} and set(out["reconstruct"]) == {"image", "image_mask"}
    metrics = out["metrics"]
    assert "text" not in metrics
    assert float(out["loss"]) == pytest.approx(float(metrics["contrast"]) + 0.1 * float(metrics["image"]), rel=1e-5)
    other = models.outputs(module, params, dict(BATCH, text=BATCH["text"][::-1].copy()))
    np.testing.assert_array_equal(other["predicted"]["image"], out["predicted"]["image"])


def test_sigmoid_and_dropped_patches_reach_mae_clip_too():
    module = models.build("mae_clip", loss="sigmoid", keep=0.5)
    params = models.parameters(module)
    assert "logit_bias" in params
    out = models.outputs(module, params)
    assert "logit_bias" in out["metrics"]
    weights = models.MODELS["mae_clip"]["weights"]
    assert float(out["loss"]) == pytest.approx(sum(w * float(out["metrics"][k]) for k, w in weights.items()), rel=1e-5)


def test_an_unknown_decode_is_refused():
    with pytest.raises(ValueError) as error:
        models.parameters(models.build("mae_clip", decode=("text",)))
    assert str(error.value) == "unknown decode ('text',); valid: ('image', 'text'), ('image',)"
