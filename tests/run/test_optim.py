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

import maeclip_jax as mc
from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten
from maeclip_jax.run import optim
from maeclip_jax.run.step import State, build, update
from tests import runs
from tests.objectives import models

DEFAULTS = dict(
    name="adamw", lr=1e-3, lr_per_examples=0, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, warmup="10 steps",
    schedule="cosine", end_lr=0.0, clip_norm=0.0, mu_dtype="float32",
    no_decay=(r".*/(embedding|position|probe)",), freeze=(), lr_multipliers=(), caps=(), decay_by="lr",
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


@pytest.mark.parametrize("schedule", optim.COOLED)
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_a_cooldown_takes_the_rate_down_to_its_end_and_leaves_what_was_before(schedule, end):
    found = rates(range(111), schedule=schedule, end_lr=end, cooldown="20 steps")
    np.testing.assert_array_equal(found[:91], rates(range(91), schedule=schedule, end_lr=end))
    want = [end + (1 - end) * AFTER[schedule](step) * (110 - step) / 20 for step in range(90, 111)]
    np.testing.assert_allclose(found[90:], 1e-3 * np.array(want), rtol=1e-5, atol=1e-10)
    # A longer run with a longer cool-down has the same rate up to there.
    longer = rates(range(90), schedule=schedule, end_lr=end, total=300, cooldown="50 steps")
    np.testing.assert_array_equal(found[:90], longer)


def test_a_cooldown_that_cannot_be_is_refused():
    with pytest.raises(UserError) as error:
        rates([0], cooldown="20%")
    assert str(error.value) == (
        "optim.cooldown='20%': schedule 'cosine' falls to its end by itself; valid: '0 steps', or "
        "optim.schedule=constant or rsqrt"
    )
    with pytest.raises(UserError) as error:
        rates([0], cooldown="101 steps", schedule="constant")
    assert str(error.value) == (
        "optim.cooldown='101 steps' is 101 steps after a warm-up of 10, but the whole run has 110; "
        "valid: up to 100 steps"
    )


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


def test_what_is_exempt_from_decay_exists():
    """A typo left the table of positions decaying. What experiments name need not be in every model."""
    with pytest.raises(UserError, match=r"^optim.no_decay rule '.\*/positoin' matches no parameter; paths look like: "):
        decayed("clip", no_decay=(*optim.NO_DECAY, r".*/positoin"))
    assert decayed("mae") == decayed("mae", no_decay=(*optim.NO_DECAY, r".*/cls")) != set()
    assert decayed("clip", no_decay=(*optim.NO_DECAY, r".*/position")) == decayed("clip")
    assert mc.experiment("experiments/mae.py:runlocal").optim.no_decay == optim.NO_DECAY


def test_decay_does_not_depend_on_how_layers_are_stored():
    names = {re.sub(r"block_\d+", "blocks", p) for p in decayed("unrolled")}
    assert names == decayed("mae_clip")


def step(params=PARAMS, grads=None, steps=1, rate=1.0, **changes):
    """Parameters after `steps` updates with gradients of one (or `grads`)."""
    rate = rate if callable(rate) else optim.Rate(rate, lambda _: 1.0)
    transform = optim.make(config(**changes), params, rate)
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


STACK = {
    "image": {
        "trunk": {"blocks": {"attention": {"qkv": {"kernel": np.ones((2, 4, 12), np.float32)}},
                             "mlp": {"up": {"bias": np.ones((2, 6), np.float32)}}}},
        "embed_image": {"patch": {"kernel": np.ones((8, 4), np.float32)}},
    },
    "text": {"embed_text": {"token": {"embedding": np.ones((5, 4), np.float32)}}},
    "text_head": {"project": {"kernel": np.ones((4, 4), np.float32)}},
}  # fmt: skip
QKV = "image/trunk/blocks/attention/qkv/kernel"


def noise(tree):
    return jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32), tree)


@pytest.mark.parametrize("freeze", [(), ("text/.*", ".*/bias")])
def test_muon_turns_the_matrices_of_layers_each_on_its_own_and_adam_the_rest(freeze):
    """As optax's Muon of one layer at a time; embeddings, heads and vectors as Adam with Nesterov momentum."""
    grads, changes = noise(STACK), dict(weight_decay=0.0, rate=0.1, freeze=freeze)
    after = step(STACK, grads, steps=3, name="muon", **changes)
    for layer in range(2):
        own = dict(grads=flatten(grads)[QKV][layer], params=np.ones((4, 12), np.float32))
        alone = optax.contrib.muon(0.1, eps=1e-6, consistent_rms=0.2)
        params, state = own["params"], alone.init(own["params"])
        for _ in range(3):
            updates, state = alone.update(own["grads"], state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(after[QKV][layer], params, rtol=2e-4, atol=2e-5)
        moved = np.linalg.svd(after[QKV][layer] - own["params"], compute_uv=False)
        assert moved.max() < 2 * moved.min()  # in all directions alike, which a gradient of noise is not
    adam = optax.nadam(0.1, b1=0.9, b2=0.98, eps=1e-6)
    params, state = STACK, adam.init(STACK)
    for _ in range(3):
        updates, state = adam.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for path, x in flatten(params).items():
        if path != QKV:
            frozen = freeze and (path.startswith("text/") or path.endswith("bias"))
            np.testing.assert_allclose(after[path], flatten(STACK)[path] if frozen else x, rtol=1e-5)


def test_rules_say_what_muon_turns_and_rates_are_multiplied_by_path():
    grads, none = noise(STACK), dict(name="muon", weight_decay=0.0, rate=0.1)
    plain, by_rule = step(STACK, grads, **none), step(STACK, grads, muon=((".*/project/kernel", (-2, -1)),), **none)
    assert {p for p in plain if not np.allclose(plain[p], by_rule[p])} == {QKV, "text_head/project/kernel"}
    half = step(STACK, grads, lr_multipliers=((QKV, 0.5),), **none)
    np.testing.assert_allclose(half[QKV] - 1, 0.5 * (plain[QKV] - 1), rtol=1e-4)


def test_muon_finds_the_same_matrices_however_layers_are_stored():
    found = {}
    for name in ("mae_clip", "unrolled"):
        state = flatten(jax.eval_shape(optim.make(config(name="muon"), shapes(name), lambda _: 1.0).init, shapes(name)))
        muon = {p.partition("/mu/")[2] for p in state if "/muon/" in p and "/mu/" in p}
        found[name] = {re.sub(r"block_\d+", "blocks", p) for p in muon}
    assert found["mae_clip"] == found["unrolled"]
    parts = ("attention/qkv", "attention/out", "mlp/up", "mlp/down")
    trunks = ("image", "text", "decoder")
    assert found["mae_clip"] == {f"{t}/trunk/blocks/{part}/kernel" for t in trunks for part in parts}


@pytest.mark.parametrize("name", ["muon", "adafactor", "lion"])
def test_states_are_split_like_parameters_and_have_a_path_each(name):
    config = runs.config("objective=clip", **{"mesh.fsdp": 8, "optim.name": name, "optim.ema": 0.9})
    abstract = build(config, epoch=40, devices=jax.devices()[:8]).abstract
    flat = flatten(abstract)
    assert len(flat) == len(jax.tree.leaves(abstract))  # a checkpoint names them by path
    split = {p for p, x in flatten(abstract.params).items() if "fsdp" in x.sharding.spec}
    momenta = {p: x for p, x in flat.items() if p.startswith("opt_state/") and any(p.endswith(f"/{q}") for q in split)}
    whole = {p for p, x in momenta.items() if x.size > 100 and "fsdp" not in x.sharding.spec}
    assert len(momenta) >= len(split) and not {p for p in whole if "/v_" not in p}


def test_adafactor_is_big_vision_s():
    """Moments of a matrix of 32 x 32 as a row and a column, momentum after the scaling, no step above its size."""
    params = {"w": np.ones((32, 40), np.float32), "b": np.ones(40, np.float32)}
    state = optim.make(config(name="adafactor", mu_dtype="bfloat16"), params, lambda _: 1.0).init(params)
    shapes = {p.partition("v_")[1] + p.partition("v_")[2]: x.shape for p, x in flatten(state).items() if "/v_" in p}
    assert shapes["v_row/w"] == (32,) and shapes["v_col/w"] == (40,) and shapes["v_row/b"] == (1,)
    grads = {"w": np.full((32, 40), 3.0, np.float32), "b": np.full(40, -2.0, np.float32)}
    after = step(params, grads, name="adafactor", weight_decay=0.0, rate=0.1, steps=2)
    np.testing.assert_allclose(after["w"], 1 - 0.1 * (0.1 + 0.19), rtol=1e-4)  # of gradients that are all alike
    np.testing.assert_allclose(after["b"], 1 + 0.1 * (0.1 + 0.19), rtol=1e-4)


def test_adamw_is_adam_and_decoupled_decay():
    after = step(rate=0.5, eps=0.0)
    # The first step of Adam is the sign of the gradient; decay takes lr * wd * parameter.
    np.testing.assert_allclose(after["image/patch/kernel"], 2 - 0.5 * (1 + 0.1 * 2), rtol=1e-5)
    np.testing.assert_allclose(after["image/patch/bias"], 2 - 0.5, rtol=1e-5)
    np.testing.assert_allclose(after["text/token/embedding"], 2 - 0.5, rtol=1e-5)
    assert after["log_logit_scale"] == pytest.approx(3.5, rel=1e-5)


def by_hand(steps, rate, decay, *, multiplier=1.0):
    """The kernel of PARAMS after `steps` of Adam (0.9, 0.98) with gradients of one; less `decay(step)`."""
    w, mu, nu = np.float64(2), 0.0, 0.0
    for n in range(steps):
        mu, nu = 0.9 * mu + 0.1, 0.98 * nu + 0.02
        adam = (mu / (1 - 0.9 ** (n + 1))) / (np.sqrt(nu / (1 - 0.98 ** (n + 1))) + 1e-6)
        w = w - multiplier * rate[n] * adam - decay(n) * w
    return w


@pytest.mark.parametrize("warmup", ["0 steps", "3 steps"])
def test_decay_by_schedule_leaves_the_learning_rate_out(warmup):
    """As big_vision: 0.1 times the schedule's shape a step, a thousand times as much as AdamW at a rate of 1e-3."""
    changes = dict(lr=1e-3, weight_decay=0.1, warmup=warmup, schedule="linear")
    rate = optim.schedule(config(**changes), batch_size=8, total=10, epoch=None)
    first = 3 if warmup == "3 steps" else 0
    shape = [(n + 1) / 3 if n < first else 1 - (n - first) / (10 - first) for n in range(8)]
    rates = [1e-3 * s for s in shape]
    after = step(rate=rate, steps=8, decay_by="schedule", **changes)
    want = by_hand(8, rates, lambda n: 0.1 * shape[n])
    assert want < 1.4  # where AdamW's own is still above 1.99
    np.testing.assert_allclose(after["image/patch/kernel"], want, rtol=1e-5)
    no_decay = by_hand(8, rates, lambda n: 0)
    for path in ("image/patch/bias", "text/token/embedding"):
        np.testing.assert_allclose(after[path], no_decay, rtol=1e-6)
    after = step(rate=rate, steps=8, decay_by="lr", **changes)
    np.testing.assert_allclose(after["image/patch/kernel"], by_hand(8, rates, lambda n: 0.1 * rates[n]), rtol=1e-6)


def test_decay_by_schedule_knows_neither_multipliers_nor_what_is_frozen():
    changes = dict(decay_by="schedule", lr_multipliers=(("image/.*", 0.5),), weight_decay=0.1)
    for freeze in ((), ("text/.*",)):
        after = step(rate=0.01, steps=3, freeze=freeze, **changes)
        want = by_hand(3, [0.01] * 3, lambda _: 0.1, multiplier=0.5)
        np.testing.assert_allclose(after["image/patch/kernel"], want, rtol=1e-5)
    after = step(rate=0.01, steps=3, freeze=("image/.*",), **changes)
    np.testing.assert_array_equal(after["image/patch/kernel"], PARAMS["image"]["patch"]["kernel"])


def test_the_peak_of_a_rate_is_its_shape_of_one():
    rate = optim.schedule(config(lr=1.5e-4, lr_per_examples=256), batch_size=4096, total=110, epoch=None)
    assert rate.peak == pytest.approx(2.4e-3) and float(rate.shape(9)) == 1
    assert float(rate(9)) == pytest.approx(2.4e-3)


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
            "unknown optimizer 'adam' (did you mean 'adamw'?); valid: adafactor, adamw, lamb, lion, muon, sgd",
        ),
        (dict(decay_by="rate"), "unknown optim.decay_by 'rate'; valid: lr, schedule"),
        (dict(mu_dtype="bf16"), "unknown optim.mu_dtype 'bf16' (did you mean 'bfloat16'?); valid: float32, bfloat16"),
        (
            dict(freeze=("txt/.*",)),
            "optim.freeze rule 'txt/.*' matches no parameter; paths look like: image/patch/bias",
        ),
        (dict(name="muon", muon=(("txt/.*", (-2, -1)),)), "optim.muon rule 'txt/.*' matches no parameter; paths look"),
        (
            dict(name="muon", muon=((".*/kernel", (-2, -3)),)),
            "optim.muon gives 'image/patch/kernel' (2, 3) the axes (-2, -3); valid: two of its axes, counted from",
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


def test_the_rate_that_is_logged_is_the_one_applied():
    """A step whose gradients are not finite leaves the schedule where it is, and the log with it."""
    schedule = lambda n: 1.0 / (1 + n)  # noqa: E731
    transform, params = optax.sgd(schedule), {"w": jnp.float32(0)}
    counters = dict.fromkeys(("skipped", "skipped_in_row", "bad_records"), jnp.int32(0))
    state = State(jnp.int32(0), params, transform.init(params), counters)
    loss = lambda params, batch, rngs: (params["w"] * batch["x"], {})  # noqa: E731
    rates = []
    for x in (1.0, jnp.nan, jnp.nan, 1.0, 1.0):
        after, metrics = update(loss, transform, schedule, 0.0, 0, (), state, {"x": jnp.float32(x)})
        if jnp.isfinite(x):
            rates.append(float(metrics["learning_rate"]))
            assert float(state.params["w"] - after.params["w"]) == pytest.approx(rates[-1])
        state = after
    assert rates == pytest.approx([1, 1 / 2, 1 / 3])
