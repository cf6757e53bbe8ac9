"""Schedules against their closed forms; per-parameter choices listed for an example; every optimizer takes a step."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten
from maeclip_jax.run import optim
from tests.objectives import models

DEFAULTS = dict(
    name="adamw", lr=1e-3, lr_per_examples=0, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, warmup="10 steps",
    schedule="cosine", end_lr=0.0, clip_norm=0.0, mu_dtype="float32",
    no_decay=(r".*/(embedding|position|probe)",), freeze=(), lr_multipliers=(), caps=(),
)  # fmt: skip
PARAMS = {
    "image": {"patch": {"kernel": np.full((2, 3), 2.0, np.float32), "bias": np.full(3, 2.0, np.float32)}},
    "text": {"token": {"embedding": np.full((5, 3), 2.0, np.float32)}},
    "log_logit_scale": np.float32(4.0),
}


def config(**changes):
    return ml_collections.ConfigDict(DEFAULTS | changes)


def rates(steps, batch_size=128, total=110, epoch=None, **changes):
    rate = optim.schedule(config(**changes), batch_size=batch_size, total=total, epoch=epoch)
    return np.asarray(jax.vmap(rate)(jnp.asarray(steps)))


AFTER = {
    "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * (step - 10) / 100)),
    "linear": lambda step: 1 - (step - 10) / 100,
    "constant": lambda step: 1.0,
    "rsqrt": lambda step: math.sqrt(10 / step),
}


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_schedules_are_their_closed_forms(schedule, end):
    found = rates(range(110), schedule=schedule, end_lr=end)
    want = [(step + 1) / 10 if step < 10 else end + (1 - end) * AFTER[schedule](step) for step in range(110)]
    np.testing.assert_allclose(found, 1e-3 * np.array(want), rtol=1e-4, atol=1e-9)
    assert found[0] > 0  # the first step is not wasted
    assert found.argmax() == 9 and found[9] == pytest.approx(1e-3)


def test_schedules_end_where_they_should():
    assert rates([109, 110, 500], end_lr=0.1) == pytest.approx([1e-4, 1e-4, 1e-4], rel=3e-3)
    np.testing.assert_allclose(rates([110], schedule="linear"), [0], atol=1e-9)
    np.testing.assert_allclose(rates([0, 1], warmup="0 steps", schedule="constant"), [1e-3, 1e-3])
    np.testing.assert_allclose(rates([0], warmup="0 steps"), [1e-3])


def test_a_rate_may_be_per_256_examples():
    peak = rates([9], batch_size=4096, lr=1.5e-4, lr_per_examples=256)
    np.testing.assert_allclose(peak, 2.4e-3, rtol=1e-6)  # MAE's
    np.testing.assert_allclose(rates([9], batch_size=4096, lr=1.5e-4), 1.5e-4, rtol=1e-6)


def test_a_warmup_has_any_unit():
    for warmup in ("50 steps", "50%", "6400 examples", "2 epochs"):
        found = rates([24, 49], warmup=warmup, total=100, epoch=3200)
        np.testing.assert_allclose(found, [5e-4, 1e-3], rtol=1e-5)


def test_what_no_schedule_can_be_is_refused():
    with pytest.raises(UserError, match=r"^optim.warmup='200 steps' is 200 steps, but the whole run has 110$"):
        rates([0], warmup="200 steps")
    with pytest.raises(
        UserError, match=r"^unknown schedule 'cosin' \(did you mean 'cosine'\?\); valid: cosine, linear, "
    ):
        rates([0], schedule="cosin")


def decayed(name, **changes):
    return {p for p, d in flatten(optim.decay_mask(config(**changes), shapes(name))).items() if d}


@functools.cache
def shapes(name):
    layers = {} if name != "unrolled" else dict(compute=dict(layers="unroll"))
    return models.parameters(models.build("mae_clip" if name == "unrolled" else name, **layers))


def test_matrices_decay_and_vectors_tables_and_positions_do_not():
    blocks = {f"blocks/{part}/kernel" for part in ("attention/qkv", "attention/out", "mlp/up", "mlp/down")}
    towers = {f"{tower}/trunk/{block}" for tower in ("image", "text") for block in blocks}
    clip = towers | {"image/embed_image/patch/kernel", "image_head/project/kernel", "text_head/project/kernel"}
    decoder = {f"decoder/trunk/{block}" for block in blocks}
    decoder |= {f"decoder/{part}_{stream}/kernel" for part in ("project", "predict") for stream in ("image", "text")}
    assert decayed("clip") == clip
    assert decayed("mae_clip") == clip | decoder
    # [1, 1, D] modality embeddings, mask tokens and class tokens are vectors; so are a layer's stacked biases
    undecayed = set(flatten(shapes("m3ae"))) - decayed("m3ae")
    assert {"decoder/modality_image", "image_text/modality_text", "decoder/mask_text", "image_text/cls"} <= undecayed
    assert "image_text/trunk/blocks/mlp/up/bias" in undecayed
    assert decayed("clip", no_decay=(r"image/.*",)) == {
        p for p in clip | {"text/embed_text/token/embedding", "text/embed_text/position"} if not p.startswith("image/")
    }


def test_decay_does_not_depend_on_how_layers_are_stored():
    names = {re.sub(r"block_\d+", "blocks", p) for p in decayed("unrolled")}
    assert names == decayed("mae_clip")


def step(params=PARAMS, grads=None, steps=1, rate=1.0, **changes):
    """Parameters after `steps` updates with gradients of one (or `grads`)."""
    transform = optim.make(config(**changes), params, lambda _: rate)
    grads = jax.tree.map(np.ones_like, params) if grads is None else grads

    def run(params):
        state = transform.init(params)
        for _ in range(steps):
            updates, state = transform.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return {k: np.asarray(v) for k, v in flatten(jax.jit(run)(params)).items()}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_moves_against_the_gradient(name):
    after = step(name=name, rate=0.01, steps=2, weight_decay=0.0)
    for path, was in flatten(PARAMS).items():
        assert np.isfinite(after[path]).all() and after[path].dtype == np.float32
        assert (after[path] < was).all(), path


def test_adamw_is_adam_and_decoupled_decay():
    after = step(rate=0.5, eps=0.0)
    # The first step of Adam is the sign of the gradient; decay takes lr * wd * parameter.
    np.testing.assert_allclose(after["image/patch/kernel"], 2 - 0.5 * (1 + 0.1 * 2), rtol=1e-5)
    np.testing.assert_allclose(after["image/patch/bias"], 2 - 0.5, rtol=1e-5)
    np.testing.assert_allclose(after["text/token/embedding"], 2 - 0.5, rtol=1e-5)
    assert after["log_logit_scale"] == pytest.approx(3.5, rel=1e-5)


def test_clipping_scales_the_whole_gradient():
    numbers = sum(p.size for p in jax.tree.leaves(PARAMS))
    after = step(name="sgd", b1=0.0, weight_decay=0.0, clip_norm=1.0)
    np.testing.assert_allclose(after["image/patch/bias"], 2 - 1 / math.sqrt(numbers), rtol=1e-5)
    np.testing.assert_allclose(step(name="sgd", b1=0.0, weight_decay=0.0)["image/patch/bias"], 1, rtol=1e-5)


def test_frozen_parameters_stay_and_others_do_not_notice():
    after = step(freeze=("text/.*", ".*/bias"), name="sgd", b1=0.0, weight_decay=0.0, clip_norm=1.0)
    np.testing.assert_array_equal(after["text/token/embedding"], PARAMS["text"]["token"]["embedding"])
    np.testing.assert_array_equal(after["image/patch/bias"], PARAMS["image"]["patch"]["bias"])
    # The norm that is clipped is that of what trains: 6 numbers of the kernel and the scale.
    np.testing.assert_allclose(after["image/patch/kernel"], 2 - 1 / math.sqrt(7), rtol=1e-5)


def test_rates_are_multiplied_by_path_also_beside_frozen_ones():
    changes = dict(name="sgd", b1=0.0, weight_decay=0.0, lr_multipliers=(("image/.*", 0.1), (".*scale", 0.0)))
    for freeze in ((), ("text/.*",)):
        after = step(rate=0.5, freeze=freeze, **changes)
        np.testing.assert_allclose(after["image/patch/kernel"], 2 - 0.05, rtol=1e-6)
        assert after["log_logit_scale"] == 4.0
        np.testing.assert_allclose(after["text/token/embedding"], 2.0 if freeze else 1.5, rtol=1e-6)


def test_caps_bound_from_above_alone():
    capped = optim.cap(PARAMS, (("log_logit_scale", 3.0), ("image/.*/bias", 2.5)))
    assert float(capped["log_logit_scale"]) == 3.0
    np.testing.assert_array_equal(capped["image"]["patch"]["bias"], PARAMS["image"]["patch"]["bias"])
    assert optim.cap(PARAMS, ()) is PARAMS


def test_bfloat16_moments_are_kept_so():
    state = optim.make(config(mu_dtype="bfloat16"), PARAMS, lambda _: 1.0).init(PARAMS)
    moments = {str(x.dtype) for p, x in flatten(state).items() if "/mu/" in f"/{p}"}
    assert moments == {"bfloat16"}
    assert all(np.isfinite(x).all() for x in step(mu_dtype="bfloat16").values())


@pytest.mark.parametrize(
    "changes, text",
    [
        (
            dict(name="adam"),
            "unknown optimizer 'adam' (did you mean 'adamw'?); valid: adafactor, adamw, lamb, lion, sgd",
        ),
        (dict(mu_dtype="bf16"), "unknown optim.mu_dtype 'bf16' (did you mean 'bfloat16'?); valid: float32, bfloat16"),
        (
            dict(freeze=("txt/.*",)),
            "optim.freeze rule 'txt/.*' matches no parameter; paths look like: image/patch/bias",
        ),
        (dict(lr_multipliers=(("a(", 1),)), "optim.lr_multipliers rule 'a(' is not a regular expression: missing )"),
    ],
)
def test_what_fits_no_parameter_is_refused(changes, text):
    with pytest.raises(UserError) as error:
        optim.make(config(**changes), PARAMS, lambda _: 1.0)
    assert str(error.value).startswith(text)


def test_a_cap_that_fits_no_parameter_is_refused():
    with pytest.raises(UserError) as error:
        optim.cap(PARAMS, (("logit_scale", 3.0),))
    assert str(error.value).startswith("optim.caps rule 'logit_scale' matches no parameter; paths look like: image/")
