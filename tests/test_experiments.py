"""Experiment files: commands in docstrings work, the argument is strict, and what it derives fits together."""

import ast
import importlib
import math
import shlex
from types import SimpleNamespace

import jax
import pytest

from experiments import recipes
from experiments.argument import parse_arg
from experiments.scales import SCALES
from experiments.sizes import SIZES
from maeclip_jax import errors, main, objectives, sweep
from maeclip_jax.config import leaves, to_steps
from maeclip_jax.data import ops
from maeclip_jax.errors import UserError
from maeclip_jax.nn import pool
from maeclip_jax.run import optim
from maeclip_jax.run.step import build
from tests.golden import ARGS, EXPERIMENTS, ROOT

CONTRASTIVE = ("clip", "mae_clip", "slip", "silc", "tips", "flip", "siglip")
PRESETS = {"flip": "clip", "siglip": "clip"}  # experiments that are a setting of another's objective


def module(name):
    return importlib.import_module(f"experiments.{name}")


def config(name, arg=None):
    return module(name).get_config(arg)


def commands(name):
    """The command lines of an experiment's docstring."""
    lines = module(name).__doc__.splitlines()
    return [line.strip() for line in lines if line.strip().startswith("python ")]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_commands_of_a_docstring_parse(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands(name)
    assert len(found) >= 2
    for command in found:
        python, m, program_name, *flags = shlex.split(command)
        assert (python, m, program_name) == ("python", "-m", "maeclip_jax.main")
        values = main.parse([*flags])
        assert f"--config=experiments/{name}.py:" in command
        assert values.config.objective == PRESETS.get(name, name) and values.workdir


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_docstring_says_what_is_the_paper_s_and_what_to_expect(name):
    doc = " ".join(module(name).__doc__.split())
    assert "The paper has" in doc and "efaults of ours" in doc


def test_overrides_reach_the_config(monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = [
        "--config=experiments/mae_clip.py:runlocal,pool=topk(2)",
        "--workdir=x",
        "--config.model.weights.image=0.5",
    ]
    values = main.parse([*flags])
    assert values.config.model.weights.image == 0.5
    assert values.config.model.image_tower.pool == "topk(2)"


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("arg", [*ARGS.values(), "runlocal"])
def test_what_an_argument_derives_fits_together(name, arg):
    c = config(name, arg)
    model, inputs = c.model, set(objectives.make(c.objective, c.model).inputs())
    context = SimpleNamespace(tokenizer=object())
    strings = [("data", c.data.ops), *((k, e.data.ops) for k, e in c.evals.items())]
    for where, string in strings:
        parsed = ops.parse(string, context)
        steps = {s.function.__name__: s.kwargs for s in parsed.steps}
        if where != "zero_shot":  # labels instead of texts
            assert set(parsed.names) >= inputs - ({"views"} if where != "data" else set())
        if "tokenize" in steps:
            assert steps["tokenize"]["length"] == model.text_tower.length
        for crop in ("random_resized_crop", "center_crop", "views"):
            if crop in steps:
                assert steps[crop]["size"] == (model.image_tower.size,) * 2
    total = to_steps(c.total, "total", batch_size=c.batch_size, epoch=10**7)
    for every in (c.checkpoint.every, c.log.every, c.optim.warmup, *(e.every for e in c.evals.values())):
        assert 0 < to_steps(every, "x", batch_size=c.batch_size, epoch=10**7, total=total) <= total
    assert c.optim.name in optim.OPTIMIZERS and c.optim.schedule in optim.SCHEDULES
    assert set(c.evals) >= ({"val", "retrieval"} if name in CONTRASTIVE else {"val"})
    assert ("reconstruction" in c.evals) == bool(model.get("decoder_tower"))
    assert c.to_json(), "lists and tuples, numbers and words only"


def test_the_axes_of_the_paper_reach_the_model():
    for name in ("clip", "mae_clip", "slip"):
        c = config(name, "pool=logsumexp(0.5),text_pool=cls,loss=sigmoid,keep=0.5,size=S/16,scale=low")
        assert c.model.image_tower.pool == "logsumexp(0.5)" and not c.model.image_tower.cls
        assert c.model.text_tower.pool == "cls" and c.tokenizer.cls
        assert c.model.loss == "sigmoid" and c.model.keep == 0.5 and c.optim.caps == ()
        assert c.model.image_tower.width == SIZES["S/16"]["image"][0]
        assert config(name, "pool=cls").model.image_tower.cls
        (pattern, limit), *_ = config(name).optim.caps
        assert pattern == "log_logit_scale" and limit == pytest.approx(math.log(100))
    assert config("mae_clip", "decode=image").model.decode == ("image",)
    assert config("mae_clip").model.decode == ("image", "text")
    large, local = config("clip", "scale=low"), config("clip", "scale=low,runlocal")
    assert large.model.compute.dtype == "bfloat16" and large.batch_size > 1000
    assert local.model.compute.dtype == "float32" and local.batch_size <= 16 and local.data.source.kind == "scenes"


def settings(name, arg):
    return dict(leaves(config(name, arg)))


def differing(a, b):
    return {k for k in {*a, *b} if a.get(k) != b.get(k) and not k.startswith("arg.")}


@pytest.mark.parametrize("scale", ["demo", "photos", "low", "high"])
def test_arms_of_a_comparison_differ_in_their_objective_alone(scale):
    """Batch, steps, optimizer, schedule, decay, crops and tokenizer are one for all; what is below is the objective."""
    of_objective = ("objective", "model.", "evals.")
    pictures = {"optim.caps"}  # the limit of a temperature, which there is none of
    own = {"siglip": {"optim.caps"}, "mae": pictures | {"data.ops"}, "m3ae": pictures}
    for name in ("slip", "silc", "tips"):  # which see more of each picture
        own[name] = {"data.ops"} if scale != "demo" else set()
    clip = settings("clip", f"scale={scale}")
    for name in (*CONTRASTIVE, "mae", "m3ae"):
        arm = settings(name, f"scale={scale}")
        assert {k for k in differing(arm, clip) if not k.startswith(of_objective)} == own.get(name, set()), name
    without = clip["data.ops"].replace("pick_caption|", "").replace(f"tokenize({clip['model.text_tower.length']})|", "")
    assert settings("mae", f"scale={scale}")["data.ops"] == without.replace('"image","text"', '"image"')
    assert settings("mae_clip", f"scale={scale}")["model.mask_words"] == "one"  # each caption shows a word


def test_neighbours_are_clip_but_for_their_own_settings():
    clip = settings("clip", "scale=low")
    towers = {
        f"model.{t}_tower.{k}" for t, k in zip(("image", "text") * 2, ("pool", "pool", "projection", "projection"))
    }
    towers |= {"model.image_tower.position", "model.image_tower.map.activation", "model.text_tower.padding"}
    own = {"model.embed_width", "model.loss", "model.stats", "optim.caps"}
    assert differing(settings("siglip", "scale=low"), clip) == towers | own
    assert differing(settings("flip", "scale=low"), clip) == {"model.keep"}
    head = {f"model.simclr.{k}" for k in ("hidden", "width", "temperature", "weight", "views")}
    assert differing(settings("slip", "scale=low"), clip) == {"objective", "data.ops"} | head
    for name, more in (("silc", {"model.weights"}), ("tips", {"model.weights", "model.mask"})):
        found = {k for k in differing(settings(name, "scale=low"), clip) if not k.startswith("model.distil.")}
        assert {k.rpartition(".")[0] or k for k in found} == {"objective", "data"} | more
    assert config("flip", "keep=0.25").model.keep == 0.25  # what is said wins


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("scale", recipes.LARGE)
def test_the_recipe_of_the_source_changes_what_it_names(name, scale):
    """And nothing else; its rate at its batch is the peak that it states, and its steps can be counted."""
    matched, c = settings(name, f"scale={scale}"), config(name, f"scale={scale},recipe=source")
    source, recipe = dict(leaves(c)), recipes.RECIPES[name]
    named = {"data.ops" if s.name == "crop" else s.name for s in recipe.settings}
    assert differing(source, matched) <= named
    assert {s.mark for s in recipe.settings} <= set(recipes.MARKS)
    for s in recipe.settings:
        ours = s.ours.get(scale) if isinstance(s.ours, dict) else s.ours
        if ours is not None:
            assert source[s.name] == ours if s.name != "crop" else ours.format(side=224) + "|" in source["data.ops"]
    assert optim.schedule(c.optim, batch_size=c.batch_size, total=10**6, epoch=10**7).peak == pytest.approx(recipe.peak)
    small = config(name, "scale=demo,recipe=source")  # the optimizer at its peak rate, on the scale's data
    assert optim.schedule(small.optim, batch_size=small.batch_size, total=100, epoch=None).peak == pytest.approx(
        recipe.peak
    )
    for k in ("batch_size", "total", "optim.warmup", "data.ops"):
        assert dict(leaves(small))[k] == settings(name, "scale=demo")[k]


def test_recipes_are_those_of_their_sources():
    mae, m3ae, slip, siglip = (settings(n, "scale=low,recipe=source") for n in ("mae", "m3ae", "slip", "siglip"))
    for one in (mae, m3ae):
        assert one["batch_size"] == 4096 and one["optim.clip_norm"] == 0 and one["optim.weight_decay"] == 0.05
        crop, flip = ops.parse(one["data.ops"], SimpleNamespace(tokenizer=object())).steps[1:3]
        assert crop.function.__name__ == "random_resized_crop" and flip.function.__name__ == "flip_lr"
        assert crop.kwargs == dict(size=(224, 224), area=(0.2, 1), antialias="exact") and flip.kwargs == {}
    steps = {name: to_steps(one["total"], "total", batch_size=4096, epoch=11_300_000)
             for name, one in dict(mae=mae, m3ae=m3ae, slip=slip).items()}  # fmt: skip
    assert steps == dict(mae=250_244, m3ae=275_879, slip=96_558)
    assert m3ae["model.mask_words"] == "any" and settings("m3ae", "scale=low")["model.mask_words"] == "one"
    assert siglip["optim.decay_by"] == "schedule" and siglip["optim.weight_decay"] == 1e-4
    local = config("m3ae", "scale=low,recipe=source,runlocal")
    assert local.batch_size == 16 and "flip_lr" not in local.data.ops and local.total == "4 steps"


@pytest.mark.parametrize("scale, whole", [("demo", False), ("photos", True), ("low", True), ("low,runlocal", False)])
def test_views_of_slip_are_of_the_whole_picture(scale, whole):
    """CLIP's crop is not what views are cut out of: they are made before it, or there is none."""
    slip, clip = config("slip", f"scale={scale}"), config("clip", f"scale={scale}")
    steps = [step.function.__name__ for step in ops.parse(slip.data.ops, SimpleNamespace(tokenizer=object())).steps]
    assert slip.model.simclr.views == ("batch" if whole else "image")
    assert (steps[:3] == ["decode", "views", "random_resized_crop"]) == whole == ("views" in steps)
    assert ("random_resized_crop" in clip.data.ops) == whole


def test_a_text_pooled_at_its_class_token_has_one():
    """Without [CLS] in front, the first word would be pooled in silence."""
    for scale in ("demo", "low"):
        assert config("clip", f"text_pool=cls,scale={scale}").tokenizer.cls is True


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_sound(size):
    row = SIZES[size]
    assert row["side"] % row["patch"] == 0
    for tower in ("image", "text", "decoder"):
        width, depth, heads = row[tower]
        assert depth >= 1 and width % heads == 0 and width % 4 == 0


def test_the_typed_argument():
    parsed = parse_arg("pool=topk(3, x),a=7,b=2.5,switch", pool="gap", a=1, b=1.0, switch=False, other=False)
    assert dict(parsed) == dict(pool="topk(3, x)", a=7, b=2.5, switch=True, other=False)
    assert type(parsed.a) is int and type(parsed.b) is float
    for text, value in (("true", True), ("false", False), ("1", True), ("0", False)):
        assert parse_arg(f"switch={text}", switch=not value).switch is value
    assert parse_arg(None, a=1).a == parse_arg("", a=1).a == 1


def refusal(name, arg):
    """The message of the UserError that an argument ends in, at the latest when the program is built."""
    with pytest.raises(UserError) as error:
        build(config(name, arg), epoch=1000, devices=jax.devices()[:1])
    return str(error.value)


POOLS = ", ".join(pool.NAMES)


@pytest.mark.parametrize(
    "name, arg, text",
    [
        ("clip", "pol=max", "unknown experiment argument 'pol' (did you mean 'pool'?); valid: data, "),
        ("mae", "loss=softmax", "unknown experiment argument 'loss'; valid: data, diversity, pairs, "),
        ("mae", "scale=low,recipe=paper", "unknown recipe 'paper'; valid: matched, source"),
        ("mae_clip", "recipe=source", "how mae_clip was trained is not known; valid: recipe=matched"),
        ("clip", "scale=huge", f"unknown scale 'huge'; valid: {', '.join(sorted(SCALES))}"),
        ("clip", "size=B/32", f"unknown size 'B/32'; valid: {', '.join(sorted(SIZES))}"),
        ("clip", "pool=mean", f"unknown pool 'mean'; valid: {POOLS}"),
        ("mae_clip", "text_pool=median", f"unknown pool 'median'; valid: {POOLS}"),
        ("mae", "pool=mean", f"unknown pool 'mean'; valid: {POOLS}"),
        ("m3ae", "pool=topk()", f"unknown pool 'topk()'; valid: {POOLS}"),
        ("mae_clip", "decode=text", "unknown decode 'text'; valid: both, image"),
        ("mae_clip", "loss=hinge", "unknown loss 'hinge'; valid: softmax, sigmoid"),
        ("clip", "keep=0", "keep must lie in (0, 1], got 0.0"),
        ("silc", "keep=0.5", "keep=0.5: views that are distilled keep all of their patches; valid: 1"),
        ("clip", "keep=half", "experiment argument keep='half' is not of type float"),
        ("clip", "pool", "experiment argument 'pool' needs a value: pool=... ('gap' by default)"),
        ("mae", "runlocal=maybe", "experiment argument runlocal='maybe' is a switch; valid: runlocal, runlocal=true, "),
    ],
)
def test_a_mistake_in_an_argument_is_said_with_the_valid_choices(name, arg, text):
    assert refusal(name, arg).startswith(text)


def test_a_word_that_a_module_refuses_is_one_line_for_the_user():
    c = config("mae", "runlocal")
    c.model.compute.dtype = "bf16"
    with pytest.raises(UserError, match=r"^unknown dtype 'bf16'; valid: float32, bfloat16$"):
        build(c, epoch=1000, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"^not ours$") as error, errors.from_modules():
        raise ValueError("not ours")
    assert type(error.value) is ValueError


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "experiments" / "sweeps").glob("*.py")))
def test_the_runs_of_a_sweep_are_experiments(name):
    runs = sweep.runs_of(str(ROOT / "experiments" / "sweeps" / f"{name}.py"))
    labels = [sweep.label(*run) for run in runs]
    assert len(set(labels)) == len(runs) >= 2
    for experiment, arg, settings in runs:
        c = config(experiment, arg)
        for key, value in settings.items():
            node = c
            for part in key.split("."):
                node = node[part]
            assert type(node) is type(value), key


def test_an_experiment_is_a_short_file_of_facts():
    for name in EXPERIMENTS:
        tree = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
        assert [n.name for n in tree.body if isinstance(n, ast.FunctionDef)] == ["get_config"]
