"""What chips send each other for a step, as the TPU compiler leaves it: kinds, dtypes and bytes of collectives."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from maeclip_jax.nn.mesh import columns_sharded
from maeclip_jax.objectives import distillation
from maeclip_jax.parallel.sharding import make_mesh
from maeclip_jax.preflight import compilation, hlo, program_text, topology
from tests import programs

# Large enough that the compiler does not make all-reduces of reduce-scatters.
BATCH, WIDTH, DEVICES, LENGTH, VOCABULARY = 2048, 256, 4, 16, 20_011
SETTINGS = {
    "batch_size": BATCH, "model.embed_width": WIDTH, "model.text_tower.vocab": VOCABULARY,
    **{f"model.{tower}_tower.{name}": value for tower in ("image", "text")
       for name, value in {"width": WIDTH, "heads": 4, "depth": 1}.items()},
}  # fmt: skip


@pytest.fixture(scope="module", params=["v5e:2x2", "v6e:2x2", "tpu7x:2x1x1"])
def moved(request) -> Counter:
    """(kind, dtype, dimensions of the whole array) -> how often a step has it; of a device with four that share."""
    if not topology.installed():
        pytest.skip(f"libtpu is not installed: {topology.INSTALL}")
    traced, mesh, _ = programs.trace_of(request.param, 1, "clip", programs.FUSED | programs.FSDP | SETTINGS)
    with jax.set_mesh(mesh):
        text = compilation.compiled_with_text(traced.lower())[1]
    module, entry = program_text.computations(text)
    found, pieces = Counter(), set()
    for op, inside, times, _ in hlo.walk(module, entry, 1, False, set()):
        kind, channel = hlo.collective(op, inside), op.attribute("channel_id")
        if kind and not (hlo.PIECE in op.rest and channel in pieces):  # one that runs under several fusions
            pieces.add(channel)
            arrays = set(re.findall(r"(\w+)\[([\d,]*)\]", op.shape))
            found += Counter({(kind, dtype, dims): times for dtype, dims in arrays if dims})
    return found


def test_each_weight_is_gathered_once_in_bfloat16(moved):
    gathered = Counter({(dtype, dims): n for (kind, dtype, dims), n in moved.items() if kind == "all-gather"})
    assert {dtype for dtype, _ in gathered} <= {"bf16", "u32", "s32"}  # and fingerprints and tokens of captions
    for dims in (f"{WIDTH},{4 * WIDTH}", f"{4 * WIDTH},{WIDTH}"):
        assert gathered["bf16", dims] == 2, dims  # a layer in each of two towers
    # Queries, keys and values, on v6e in the shape of their order.
    sizes = ((n, math.prod(map(int, dims.split(",")))) for (dtype, dims), n in gathered.items() if dtype == "bf16")
    assert sum(n for n, size in sizes if size == 3 * WIDTH * WIDTH) == 2


def test_texts_are_gathered_and_their_gradients_scattered(moved):
    assert moved["all-gather", "bf16", f"{BATCH},{WIDTH}"] == 1
    assert moved["reduce-scatter", "f32", f"{BATCH // DEVICES},{WIDTH}"] == 1
    assert not [dims for kind, _, dims in moved if kind == "all-reduce" and dims == f"{BATCH},{WIDTH}"]


def test_gradients_of_weights_are_scattered(moved):
    matrices = [dims for kind, _, dims in moved if kind == "all-reduce" and len(dims.split(",")) > 1]
    assert not [dims for dims in matrices if int(dims.split(",")[0]) * int(dims.split(",")[1]) >= 4 * WIDTH * WIDTH]


def test_gradients_of_tokens_are_sent_in_place_of_that_of_their_table(moved):
    sent = {(dtype, math.prod(map(int, dims.split(",")))): n for (kind, dtype, dims), n in moved.items()
            if kind == "all-to-all"}  # fmt: skip
    assert sent == {("bf16", BATCH // DEVICES * LENGTH * WIDTH): 1}
    summed = {dims for kind, _, dims in moved if kind in ("all-reduce", "reduce-scatter")}
    assert not [dims for dims in summed if str(VOCABULARY) in dims.split(",")]


@pytest.mark.parametrize("centring", distillation.CENTRINGS)
def test_logits_stay_where_the_prototypes_are(centring):
    """Over 32 copies of eight devices, rows are sent to the prototypes, and sums back. Left to itself, the compiler
    (libtpu 0.0.52) sends logits and prototypes there, and not over a few devices.
    """
    if not topology.installed():
        pytest.skip(f"libtpu is not installed: {topology.INSTALL}")
    batch, views, targets, width, count, parts = 16_384, 10, 2, 256, 65_536, 2
    mesh = make_mesh({"replica": 32, "fsdp": 8}, topology.parse("v5litepod-256").devices())

    def loss(student, own, teacher, their):
        centre = jnp.zeros(count)
        if centring == "sinkhorn":
            centre = distillation.sinkhorn_centre(teacher, their, 0.04, parts, columns_sharded)
        pairs = distillation.others(targets, views)
        return distillation.distilled(student, teacher, own, their, centre, pairs, (0.1, 0.04), parts, columns_sharded)

    def given(axes, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(*axes)))

    rows, columns = (("replica", "fsdp"),), (None, "fsdp")
    args = given(rows, batch, views, width), given(columns, width, count), given(rows, batch, targets, width)
    graded = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    with jax.set_mesh(mesh):
        sent = hlo.costs(compilation.compiled_with_text(graded.lower(*args, args[1]))[1]).collectives
    embedded, table = 4 * batch // 32 * (views + targets) * width, 4 * width * count
    passes = 2 + (distillation.ITERATIONS if centring == "sinkhorn" else 0)  # a part's backward makes it again
    assert not sent.get("all-to-all") and not sent.get("collective-permute")
    assert sent["all-gather"] <= passes * embedded and sent.get("reduce-scatter", 0) <= embedded
    assert sent["all-reduce"] <= 2 * table / 8  # the prototypes' gradient, over the copies, and sums
