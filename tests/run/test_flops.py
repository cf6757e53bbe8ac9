"""FLOPs counted from the program equal those of the textbook."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from maeclip_jax.errors import UserError
from maeclip_jax.nn.tower import Encoder
from maeclip_jax.objectives import views
from maeclip_jax.parallel import chips, machine, sharding
from maeclip_jax.parallel.chips import peak_per_device
from maeclip_jax.run import flops, step, summary, train
from tests import runs
from tests.objectives import models

WIDTH, DEPTH, BATCH = 32, 3, 2


def trunk(tokens, width=WIDTH, depth=DEPTH):
    """Forward FLOPs per sample: qkv and out 4 D^2, mlp 8 D^2, scores and values 2 N D a token, each 2 FLOPs."""
    return depth * 2 * (12 * tokens * width**2 + 2 * tokens**2 * width)


def encoder(**compute):
    return Encoder(width=WIDTH, depth=DEPTH, heads=4, image=dict(size=32, patch=4), cls=True, compute=compute)


@pytest.mark.parametrize(
    "compute",
    [
        dict(layers="scan"),
        dict(layers="unroll"),
        dict(remat="full"),
        dict(layers="unroll", remat="dots"),
        dict(attention="fused"),
        dict(attention="fused_interpret"),
        dict(attention="fused_layer_interpret"),
    ],
)
def test_a_vit_costs_what_its_formula_says(compute):
    module = encoder(**compute)
    patches = jax.ShapeDtypeStruct((BATCH, 64, 48), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), {"image": patches})
    counted = flops.forward_matmul_flops(module.apply, params, {"image": patches})
    assert counted == BATCH * (2 * 64 * 48 * WIDTH + trunk(65))
    mesh = jax.make_mesh((2, 1, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):  # what a kernel does on each device counts for all of them
        assert flops.forward_matmul_flops(module.apply, params, {"image": patches}) == counted


def test_attention_of_cudnn_costs_what_that_of_xla_does(monkeypatch):
    """It is traced as on a GPU that has it, and not run."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000, raising=False)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_, **__: True, raising=False)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda *_, **__: False, raising=False)
    patches = jax.ShapeDtypeStruct((BATCH, 64, 48), jnp.float32)
    counted = []
    for attention in ("xla", "cudnn"):
        module = encoder(attention=attention, dtype="bfloat16")
        params = jax.eval_shape(encoder().init, jax.random.key(0), {"image": patches})
        counted.append(flops.forward_matmul_flops(module.apply, params, {"image": patches}))
    assert counted[0] == counted[1] == BATCH * (2 * 64 * 48 * WIDTH + trunk(65))
    q, k = jnp.ones((2, 5, 3, 64), jnp.bfloat16), jnp.ones((2, 9, 3, 64), jnp.bfloat16)
    for layout, turn in (("BTNH", (0, 1, 2, 3)), ("BNTH", (0, 2, 1, 3))):
        attend = functools.partial(cudnn.dot_product_attention, qkv_layout=layout, mask_type=cudnn.MaskType.NO_MASK)
        assert flops.forward_matmul_flops(attend, *(x.transpose(turn) for x in (q, k, k))) == 4 * 2 * 3 * 5 * 9 * 64


def test_vit_b_16_is_17_6_gmac():
    module = Encoder(width=768, depth=12, heads=12, image=dict(size=224, patch=16), cls=True)
    patches = jax.ShapeDtypeStruct((1, 196, 768), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), {"image": patches})
    assert flops.forward_matmul_flops(module.apply, params, {"image": patches}) / 2e9 == pytest.approx(17.6, abs=0.05)


def test_masked_passes_count_at_their_kept_tokens():
    module = models.build("mae")  # 16 patches of 48, 4 kept, width 8, depth 2 and 1
    params = models.parameters(module)
    counted = flops.forward_matmul_flops(lambda p: models.apply(module, p, models.BATCH, train=True, seed=0)[0], params)
    encode = 2 * 4 * 48 * 8 + trunk(5, 8, 2)
    decode = 2 * 5 * 8 * 8 + trunk(17, 8, 1) + 2 * 16 * 8 * 48
    assert counted == 4 * (encode + decode)


def test_products_of_every_kind_are_counted():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert flops.forward_matmul_flops(jnp.dot, a, b) == 2 * 3 * 4 * 5
    assert flops.forward_matmul_flops(lambda a, b: jnp.einsum("ij,jk->ki", a, b), a, b) == 2 * 3 * 4 * 5
    batched = jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))
    assert flops.forward_matmul_flops(jnp.matmul, *batched) == 7 * 2 * 3 * 4 * 5
    assert flops.forward_matmul_flops(jnp.add, a, a) == 0
    square = jnp.ones((4, 4))

    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda _, c: c @ x, x)

    assert flops.forward_matmul_flops(loop, square) == 5 * 2 * 4**3

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.forward_matmul_flops(either, square) == 2 * 2 * 4**3  # the dearer branch

    picture, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 8))

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops.forward_matmul_flops(convolve, picture, kernel) == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 3)


def test_the_peak_is_the_data_sheet_s_or_measured(monkeypatch):
    for kind, peak in (("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v4", 275e12), ("TPU v6 lite", 918e12)):
        devices = [SimpleNamespace(device_kind=kind)]
        with monkeypatch.context() as patch:
            patch.setattr(jax, "local_devices", lambda devices=devices: devices)
            found, where = peak_per_device("bfloat16")
        assert found == peak and where == f"{kind} data sheet, bf16"
    found, where = peak_per_device("float32")
    assert 1e8 < found < 1e14 and "measured here, best of float32 matmuls" in where


@pytest.mark.parametrize("kind, platform", [("NVIDIA L4", "gpu"), ("TPU v99", "tpu")])
def test_what_processors_do_says_nothing_of_another_device(kind, platform, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(device_kind=kind, platform=platform)])
    peak, source = peak_per_device("bfloat16")
    assert peak is None and source == f"no data sheet of {kind} is known here, so the MFU is not known"
    assert chips.peak_text(peak, source) == f"unknown, {source}"


def test_a_measured_peak_counts_the_time_of_processors_and_not_of_the_clock(monkeypatch):
    """Eight devices of one CPU share what its cores reach, whatever the clock on the wall says meanwhile."""
    processors = itertools.count(step=0.5)  # seconds that all cores together took for a round
    clock = itertools.count(step=100.0)  # other programs had the machine for a round
    monkeypatch.setattr(chips, "time", SimpleNamespace(process_time=processors.__next__, perf_counter=clock.__next__))
    monkeypatch.setattr(chips, "ROUND", 2.0 * 8**3)
    monkeypatch.setattr(chips, "SIZES", (8,))
    for seconds, rounds in ((0.0, chips.ROUNDS), (250.0, 5)):
        before = next(processors)
        rate, median, cores = chips._measured.__wrapped__(jnp.dtype("float32"), seconds)
        assert rate == median == cores * (cores * 2.0 * 8**3) / 0.5
        assert next(processors) - before == 0.5 * (2 * rounds + 1)
    monkeypatch.setattr(chips, "_measured", lambda dtype, seconds: (8e9, 6e9, 2))
    found, where = peak_per_device("float32")
    assert found == 8e9 / len(jax.local_devices()) and "of 2 cores; half of the rounds reached 75% of it" in where


def test_a_total_in_flops_is_kept_when_a_run_goes_on(tmp_path, monkeypatch):
    config = runs.config("objective=clip,steps=4,save=2,evals=False")
    flops_a_step = step.build(config, epoch=40, devices=jax.devices()[:1]).flops_per_step
    config.total = f"{4.4 * flops_a_step:.6e} FLOPs"
    train.run(config, tmp_path, devices=jax.devices()[:1])
    assert max(runs.series(tmp_path)) == 4
    train.run(config, tmp_path, devices=jax.devices()[:1])  # all is done
    monkeypatch.setattr(step, "model_flops", lambda *_: flops_a_step / 2)
    with pytest.raises(UserError, match=r"was trained for 4 steps; total='.* FLOPs' is 9 steps here.*total='4 steps'"):
        train.run(config, tmp_path, devices=jax.devices()[:1])
    config.total = "4 steps"  # what it advises
    train.run(config, tmp_path, devices=jax.devices()[:1])
    assert max(runs.series(tmp_path)) == 4


def test_where_bfloat16_is_slower_than_float32_it_is_said(monkeypatch):
    mesh = sharding.make_mesh({"replica": -1}, jax.devices()[:1])
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    assert summary.slow_dtype(mesh, "bfloat16").startswith("bfloat16 is slower than float32 on a CPU: jax ")
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    for has, said in ((False, "bfloat16 is probably slower than float32 on this CPU, which has no"), (True, "")):
        monkeypatch.setattr(machine, "has_bfloat16", lambda has=has: has)
        assert summary.slow_dtype(mesh, "bfloat16").startswith(said)
        assert bool(summary.slow_dtype(mesh, "bfloat16")) != has and not summary.slow_dtype(mesh, "float32")


def test_what_changes_pictures_has_no_backward_pass():
    """Views are made of pictures, to which no gradient goes: their products count once, not three times."""
    look = views.draw(jax.random.key(0), 2)

    def loss(image):
        return views.distort(look["look"], views.crop(look["box"], image)).sum()

    image = jnp.zeros((2, 16, 16, 3), jnp.uint8)
    once = flops.forward_matmul_flops(loss, image)
    assert flops.training_matmul_flops(loss, image) == once > 0
