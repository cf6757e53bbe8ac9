"""Micro-batches: the same loss and gradients as all rows at once, no collective among the parts, what is refused."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from maeclip_jax import objectives
from maeclip_jax.errors import UserError
from maeclip_jax.objectives.clip import Clip
from maeclip_jax.parallel import sharding
from maeclip_jax.params import flatten
from maeclip_jax.preflight import hlo, program_text
from maeclip_jax.run import microbatch
from tests import long, runs
from tests.objectives import models

ROWS, RNG = 32, np.random.default_rng(0)
FSDP, TENSOR = {"replica": 2, "fsdp": 2}, {"replica": 1, "fsdp": 2, "tensor": 2}
DROPPING = models.IMAGE | dict(drop_path=0.5)  # paths of the second layer
# What is trained -> (objective, changes of its model, mesh, parts, whether parameters are gathered once).
CASES = {
    "softmax, FLIP's keep, equal captions": (
        "mae_clip",
        dict(keep=0.5, duplicates="positive", mask_words="one", image_tower=DROPPING,
             text_tower=models.TEXT | dict(drop_path=0.3)),
        FSDP, (4, 8), True,
    ),
    "sigmoid, heads over devices, kernel": (
        "clip", dict(loss="sigmoid", compute=dict(attention="fused_interpret")), TENSOR, (4,), True
    ),
    "one mask for all, gathered by the compiler": (
        "m3ae", dict(mask_share="batch", image_tower=DROPPING | dict(cls=True, pool="cls")), {"fsdp": 2}, (16,), False
    ),
    "views": ("slip", {}, {"replica": 2}, (4,), True),
    "a teacher, parameters split": ("tips", dict(image_tower=DROPPING), FSDP, (4,), True),
    "questions without an answer": ("vqa", dict(image_tower=DROPPING), {"replica": 2}, (4,), True),
}  # fmt: skip


@functools.cache
def batch():
    """Captions of which some are equal, questions of which some have no answer."""
    text = np.where(np.arange(8) < RNG.integers(1, 9, (ROWS, 1)), RNG.integers(1, 13, (ROWS, 8)), 0).astype(np.int32)
    text[[3, 20]] = text[7]
    return {
        "image": RNG.integers(0, 256, (ROWS, 16, 16, 3), dtype=np.uint8),
        "text": text,
        "answer": RNG.integers(-1, 5, (ROWS, 2)).astype(np.int32),
        "score": RNG.uniform(0, 1, (ROWS, 2)).astype(np.float32),
    }


@functools.cache
def programs(case: str, parts: int):
    """(compiled loss and gradient of `case` in so many parts, its arguments, the mesh)."""
    name, changes, shape, _, whole = CASES[case]
    module = models.build(name, **changes)
    params = models.parameters(module)
    mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod([*shape.values(), 1]))])
    specs = sharding.specs(params, mesh)
    # A teacher that has moved away from the parameters.
    taught = (module.teacher(jax.tree.map(lambda x: 0.7 * x + 0.05, params)),) if hasattr(module, "teacher") else ()
    with jax.set_mesh(mesh):
        rngs = {"mask": jax.random.key(3), "dropout": jax.random.key(4)}

        def loss(params, batch, *taught):
            made = microbatch.loss(
                module, params, batch, rngs, *taught, parts=parts, mesh=mesh, specs=specs, whole=whole
            )
            return made[0], {k: x for k, x in made[1].items() if k != "_teacher"} | {
                f"moved {path}": x.sum() for path, x in flatten(made[1].get("_teacher", {}).get("centre", {})).items()
            }

        split = sharding.named(specs, mesh)
        args = (
            jax.device_put(params, split),
            sharding.place({k: v for k, v in batch().items() if k in module.inputs()}, mesh),
            *taught,
        )
        both = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=(None, split))
        with runs.compilable():
            return both.lower(*args).compile(), args


def result(case: str, parts: int):
    program, args = programs(case, parts)
    (loss, metrics), gradient = program(*args)
    return float(loss), jax.tree.map(float, metrics), {p: np.asarray(g, float) for p, g in flatten(gradient).items()}


@functools.cache
def rounding_of_views() -> tuple[float, dict[str, float]]:
    """How far SimCLR's gradient, all rows at once, is from itself with its rows in other orders: (its norm, the largest
    entry of each parameter's).

    Its head normalises features of 32 views that differ little, so that one unit in the last place of a pooled view is
    2e-6 to 4e-6 of the gradient by it. Nothing but rounding differs between orders.
    """
    name, changes, *_ = CASES["views"]
    module = models.build(name, **changes)
    params = models.parameters(module)
    given = {k: v for k, v in batch().items() if k in module.inputs()}
    drawn = module.apply({"params": params}, given, train=True, method="draw", rngs={"mask": jax.random.key(3)})

    @jax.jit
    def gradient(given, drawn):
        def loss(params):
            made = module.apply({"params": params}, given, drawn, train=True, method="local")
            return module.apply({"params": params}, made, train=True, method="combine")[0]

        return jax.grad(loss)(params)

    def turned(seed):
        order = np.random.default_rng(seed).permutation(ROWS)
        found = gradient(*jax.tree.map(lambda x: x[order], (given, drawn)))
        return {path: np.asarray(x, float) for path, x in flatten(found).items()}

    first = turned(0)
    away = [{path: x - first[path] for path, x in turned(seed).items()} for seed in range(1, 5)]
    norms = [np.sqrt(sum(np.square(x).sum() for x in one.values())) for one in away]
    return max(norms), {path: max(np.abs(one[path]).max() for one in away) for path in first}


@pytest.mark.parametrize("case", long.marked(CASES, ("views",)))
def test_parts_give_the_loss_and_the_gradients_of_all_rows_at_once(case):
    loss, metrics, gradient = result(case, 1)
    norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
    rounding, of_each = rounding_of_views() if case == "views" else (0.0, dict.fromkeys(gradient, 0.0))
    for parts in CASES[case][3]:
        in_parts, same, found = result(case, parts)
        assert in_parts == pytest.approx(loss, rel=1e-6)
        assert same == pytest.approx(metrics, rel=1e-6, abs=1e-6)
        away = np.sqrt(sum(np.square(found[p] - g).sum() for p, g in gradient.items()))
        assert away < max(1e-6 * norm, 2 * rounding)
        for path, want in gradient.items():  # each on its own, down to those that are nearly nothing
            # What shifts all views alike is taken off by the batch's normalisation: large sums of the parts cancel.
            size = norm if case == "views" and path == "image/norm/bias" else max(np.abs(want).max(), 1e-3 * norm)
            limit = max((1e-6 if size == norm else 1e-5) * size, 2 * of_each[path])
            assert np.abs(found[path] - want).max() < limit, path


def test_nothing_is_sent_between_parts_and_no_pictures_at_all():
    """Of the program with its parameters split over devices: gathered before the parts, summed after them."""
    case = "softmax, FLIP's keep, equal captions"
    traffic = {}
    for parts in (4, 8):
        module, entry = program_text.computations(programs(case, parts)[0].as_text())
        sent = [
            (times, op)
            for op, _, times, _ in hlo.walk(module, entry, 1, False, set())
            if any(op.kind in (k, f"{k}-start") for k in hlo.COLLECTIVES)
        ]
        assert sent and not any("u8[" in op.shape for _, op in sent)
        assert {times for times, _ in sent} == {1}
        traffic[parts] = hlo.costs(programs(case, parts)[0].as_text()).collectives
    assert traffic[4] == traffic[8]


@dataclasses.dataclass
class Config(dict):
    """As much of a config as is looked at."""

    microbatches: str
    batch_size: int = 32
    objective: str = "clip"

    def get(self, name, default):
        return getattr(self, name, default)


class Changed(Clip):
    """A user's own: a loss of its own that is not said in parts."""

    def __call__(self, batch, *, train):
        loss, metrics = super().__call__(batch, train=train)
        return 2 * loss, metrics


class Said(Clip):
    """A user's own that says what it does to the loss where parts find it."""

    def combine(self, made, *, train):
        loss, metrics = super().combine(made, train=train)
        return 2 * loss, metrics


def test_a_jax_whose_compiler_crashes_is_refused(monkeypatch):
    mesh, tips = sharding.make_mesh({"replica": 4}, jax.devices()[:4]), models.build("tips")
    config = Config("2", objective="tips")
    with runs.compilable():
        monkeypatch.setattr(jax, "__version__", "0.12.0.1")
        assert microbatch.check(config, tips, mesh) == 2
        monkeypatch.setattr(jax, "__version__", "0.11.2")
        jax.config.update("jax_use_shardy_partitioner", True)
        with pytest.raises(UserError) as error:
            microbatch.check(config, tips, mesh)
        assert str(error.value) == (
            "microbatches=2: the compiler of jax 0.11.2 crashes on objective 'tips' in parts; valid: 1, another jax "
            "(0.10 or 0.12), or JAX_USE_SHARDY_PARTITIONER=false in the environment"
        )
        assert microbatch.check(Config("2"), models.build("silc"), mesh) == 2
        assert microbatch.check(config, tips, sharding.make_mesh({"replica": 1}, jax.devices()[:1])) == 2
        jax.config.update("jax_use_shardy_partitioner", False)
        assert microbatch.check(config, tips, mesh) == 2


def test_what_does_not_divide_or_cannot_be_split_is_refused():
    mesh = sharding.make_mesh({"replica": 4}, jax.devices()[:4])
    clip = models.build("clip")
    assert microbatch.check(Config("8"), clip, mesh) == 8 and microbatch.check(Config("auto"), clip, mesh) == "auto"
    for wrong in ("3", "0", "-1", "16", "many", "2.0"):
        with pytest.raises(UserError) as error:
            microbatch.check(Config(wrong), clip, mesh)
        assert str(error.value) == (
            f"microbatches={wrong}: a device's 8 rows of batch_size 32 divide into 1, 2, 4, 8; valid: one of these, or "
            "auto"
        )
    changed = Changed(**models.CLIP)
    assert microbatch.check(Config("1"), changed, mesh) == 1
    for asked in ("2", "auto"):
        with pytest.raises(UserError) as error:
            microbatch.check(Config(asked, objective="mine:Changed"), changed, mesh)
        assert str(error.value) == (
            f"microbatches={asked}: objective 'mine:Changed' does not say its loss as local() and combine() (see the "
            "docstring of maeclip_jax.objectives); valid: 1"
        )
    assert microbatch.has_split(Said(**models.CLIP))
    assert all(microbatch.has_split(models.build(name)) for name in objectives.table())


def memory(temporaries: int, arguments: int = 10):
    return types.SimpleNamespace(
        argument_size_in_bytes=arguments, output_size_in_bytes=arguments, alias_size_in_bytes=arguments,
        temp_size_in_bytes=temporaries, generated_code_size_in_bytes=0,
    )  # fmt: skip


def test_auto_takes_the_fewest_parts_that_fit():
    built = types.SimpleNamespace(batch_size=48, mesh=sharding.make_mesh({"replica": 1}, jax.devices()[:1]))
    tried = []

    def compile_(parts):
        tried.append(parts)
        if parts == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
        return types.SimpleNamespace(memory_analysis=lambda: memory(480 // parts + 5))

    assert microbatch.fewest(built, compile_, room=100)[0] == 6  # 85 and the arguments' 10
    assert tried == [1, 2, 6]  # 3 and 4 would leave 163 and 122 even if temporaries shrank with the parts
    with pytest.raises(UserError, match=r"microbatches=auto: even one row at a time does not fit into 0.00 GiB a dev"):
        microbatch.fewest(built, compile_, room=15)


def test_a_run_says_its_parts(tmp_path, capsys):
    runs.run(tmp_path / "run", "objective=clip,steps=1,evals=false,examples=false", 1, microbatches="auto")
    assert "; all rows at once, which fit" in capsys.readouterr().out
