"""The library face: what `load` takes and refuses, training from a notebook, and what importing it leaves alone."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import maeclip_jax as mc
from maeclip_jax import interop
from maeclip_jax.errors import UserError
from maeclip_jax.interop import convert
from maeclip_jax.params import flatten
from maeclip_jax.run import checkpoint
from maeclip_jax.workdir import read_metrics
from tests import runs
from tests.golden import ROOT
from tests.interop import foreign

RUN = "objective=clip,steps=2,save=1,evals=false"
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


# load


def test_a_run_comes_with_the_parameters_of_its_newest_checkpoint_or_of_the_one_named(tmp_path):
    workdir = runs.copy(runs.whole(8, RUN), tmp_path / "run")
    made = mc.load(workdir)
    assert made.step == 2 and repr(made).startswith(
        f"Model('{workdir}': clip, step 2, 67,201 parameters, pictures 32x32"
    )
    saved = checkpoint.read_numpy(workdir / "checkpoints/2/state", "params/")
    assert saved.keys() == {f"params/{p}" for p in flatten(made.params)}
    same({p.removeprefix("params/"): x for p, x in saved.items()}, flatten(made.params))
    before = mc.load(workdir / "checkpoints" / "1")
    assert before.step == 1 and np.abs(before.embed(PICTURES)["image"] - made.embed(PICTURES)["image"]).max() > 1e-6


def test_a_run_of_a_pod_computes_on_what_is_here(tmp_path):
    workdir = runs.copy(runs.whole(8, RUN), tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["mesh"] = dict(replica=4, fsdp=64, tensor=1)
    (workdir / "config.json").write_text(json.dumps(config))
    found = [
        mc.load(workdir, devices=jax.devices()[:1]),
        mc.load(workdir),
        mc.load(workdir, {"mesh.replica": 1, "mesh.fsdp": -1}),
    ]
    assert [dict(m.mesh.shape)["replica"] for m in found] == [1, 8, 1]
    one, *others = [m.embed(PICTURES)["image"] for m in found]
    for other in others:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_an_experiment_comes_with_fresh_weights_and_settings():
    made = mc.load("experiments/clip.py:runlocal,pool=max", {"model.embed_width": 12, "seed": 3})
    assert made.step is None and "fresh weights" in repr(made)
    assert made.embed(PICTURES, "a red disc")["image"].shape == (3, 12)
    other = mc.load("experiments/clip.py:runlocal,pool=max", {"model.embed_width": 12, "seed": 4})
    assert np.abs(other.embed(PICTURES)["image"] - made.embed(PICTURES)["image"]).max() > 1e-3


def test_what_cannot_be_loaded_is_one_line_with_what_is_valid(tmp_path):
    text = f"nothing to load at {str(tmp_path)!r}; valid: a run's folder (runs/demo) or one checkpoint in it, an exper"
    assert refused(mc.load, tmp_path).startswith(text)
    assert refused(mc.load, "runs/no").startswith("nothing to load at 'runs/no'; valid: a run's folder")
    assert refused(mc.load, "experiments/clop.py").startswith("no experiment file 'experiments/clop.py'; here are: ")
    assert refused(mc.load, "experiments/clip.py:pol=max").startswith("unknown experiment argument 'pol' (did you mean")
    assert refused(mc.load, "experiments/clip.py:runlocal", {"totl": 1}).startswith(
        "unknown setting config: name 'totl'"
    )
    assert refused(mc.load, "experiments/clip.py:runlocal", batch_size=0) == "batch_size must be at least 1, got 0"
    workdir = runs.copy(runs.whole(8, RUN), tmp_path / "run")
    other = {"model.embed_width": 12}
    assert "has 'image_head/project/kernel' of shape (32, 32)" in refused(mc.load, workdir, other)
    (workdir / "config.json").unlink()
    assert refused(mc.load, workdir).startswith(f"cannot read --config={workdir}/config.json")


def test_weights_of_other_code_bases_come_with_what_belongs_to_them(monkeypatch):
    """What the conversions do is tested in tests/interop; here only that a model is made of what they give."""
    own = mc.load("experiments/clip.py:runlocal,pool=max")
    config = mc.experiment("experiments/clip.py:runlocal,pool=max")
    config.preprocess.image = "decode|resize(32)"
    asked = []

    def load(kind, path, heads):
        asked.append((kind, path, heads))
        params = jax.tree.map(np.asarray, own.params)
        return interop.Loaded(config.copy_and_resolve_references(), params, convert.Report(kind))

    monkeypatch.setattr(interop, "load", load)
    said = {"model.compute.dtype": "bfloat16", "model.image_tower.heads": own.config.model.image_tower.heads}
    made = mc.load("hf-clip:/some/where", said)
    assert (
        asked == [("hf-clip", "/some/where", {"image": said["model.image_tower.heads"]})]
        and made.config.model.compute.dtype == "bfloat16"
    )
    assert made.preprocess.image == "decode|resize(32)" and made.step is None
    assert ": clip, hf-clip, 6" in repr(made)
    made = mc.load("hf-clip:/some/where")
    np.testing.assert_array_equal(made.embed(PICTURES)["image"], own.embed(PICTURES)["image"])
    assert refused(mc.load, "hf-clop:/some/where").startswith("unknown kind of weights 'hf-clop' (did you mean 'hf-cl")
    text = refused(mc.load, "hf-clip:/some/where", {"model.widht": 3})
    assert text.startswith("hf-clip:/some/where: settings {'model.widht': 3} do not fit: ")


def test_settings_of_weights_fit_positions_or_are_refused(tmp_path):
    folder, _ = foreign.hf_clip(tmp_path / "m")
    source = f"hf-clip:{folder}"
    made = mc.load(source, {"model.image_tower.size": 64, "model.text_tower.length": 10})
    want = interop.load("hf-clip", folder, size=64, length=10)
    same(jax.tree.map(np.asarray, made.params), want.params)
    assert made.config.preprocess.image == "decode|resize_small(64)|center_crop(64)"
    assert made.embed(PICTURES, ["ab cd"])["text"].shape == (1, 8)
    unrolled = mc.load(source, {"model.compute.layers": "unroll"})
    np.testing.assert_allclose(unrolled.embed(PICTURES)["image"], mc.load(source).embed(PICTURES)["image"], atol=1e-5)
    for setting, value, said in (
        ("image_tower.norm_pre", False, " leave no place for its 'image/norm_pre/bias'; valid: those that leave the"),
        ("image_tower.patch", 4, " make 'image/embed_image/patch/kernel' (48, 12), which is (192, 12) in the file; "),
        ("text_tower.vocab", 600, " make 'text/embed_text/token/embedding' (600, 12), which is (516, 12) in the file"),
        ("image_tower.depth", 1, " make 'image/trunk/blocks/"),
        ("image_tower.patch_bias", True, " need 'image/embed_image/patch/bias', which is not in the file; valid: "),
    ):
        settings = {f"model.{setting}": value}
        text = refused(mc.load, source, settings)
        assert text.startswith(f"{source}: settings {settings} ") and said in text


# fit


def test_training_from_a_notebook_is_training(tmp_path, monkeypatch):
    (tmp_path / "sharper.py").write_text(
        "from maeclip_jax.objectives.clip import Clip\n\n\n"
        "class Sharper(Clip):\n"
        "    sharpness: float = 1.0\n\n"
        "    def __call__(self, batch, *, train):\n"
        "        loss, metrics = super().__call__(batch, train=train)\n"
        "        return self.sharpness * loss, metrics | {'sharp': self.sharpness * loss}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = mc.experiment("experiments/clip.py:runlocal", {"total": "2 steps", "log.every": "1 steps"})
    config.evals = {}
    config.objective = "sharper:Sharper"
    with config.unlocked():
        config.model.sharpness = 2.0
    made = mc.fit(config, tmp_path / "run", devices=jax.devices()[:1])
    rows = read_metrics(tmp_path / "run")
    assert made.step == 2 and [r["train/sharp"] for r in rows if "train/sharp" in r] == pytest.approx(
        [2 * r["train/contrast"] for r in rows if "train/contrast" in r]
    )
    np.testing.assert_array_equal(mc.load(tmp_path / "run").embed(PICTURES)["image"].shape, (3, 32))
    assert mc.fit(config, tmp_path / "run", devices=jax.devices()[:1]).step == 2  # done: nothing is trained again


def test_the_example_of_the_notebooks_page_runs(tmp_path, monkeypatch, capsys):
    section = (ROOT / "docs" / "notebooks.md").read_text()
    code = section.split("```python\n")[1].split("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(runs.whole(8, RUN.replace("clip", "mae_clip")))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "docs/notebooks.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("Model('runs/demo': mae_clip, step 2, ") and "[" in said.splitlines()[-1]
    assert {p.name for p in tmp_path.glob("*.png")} == {"where.png", "gradcam.png", "filled.png"}


# import


def test_every_public_name_is_there_and_says_what_it_is():
    for name in mc.__all__:
        said = getattr(mc, name).__doc__
        assert said and not said.startswith(f"{name}("), f"{name} has no docstring"
        assert name in dir(mc)
    for name in [n for n in dir(mc.Model) if not n.startswith("_")]:
        assert getattr(mc.Model, name).__doc__, f"Model.{name} has no docstring"
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        mc.laod  # noqa: B018


IMPORT = """
import json, logging, os, signal, sys, warnings
import jax, absl.flags
def state():
    return dict(
        jax={k: repr(v) for k, v in jax.config.values.items()}, environment=dict(os.environ), path=list(sys.path),
        flags=list(absl.flags.FLAGS), signals=[repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        handlers=repr(logging.getLogger().handlers), folder=os.getcwd(), warnings=list(map(repr, warnings.filters)))
def changed(before):
    return [k for k, v in state().items() if v != before[k]]
before = state()
import maeclip_jax as mc
first = changed(before)
import absl.logging, cv2, tensorflow_datasets  # what these change, the environment and absl's own flags, is theirs
before = state()
for name in mc.__all__:
    getattr(mc, name)
print(json.dumps([first, changed(before), jax._src.xla_bridge.backends_are_initialized()]))
"""


def test_importing_leaves_everything_as_it_was():
    """Flags, jax's options, the environment, sys.path, signals, logging."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, cwd=ROOT, check=True)
    first, changed, devices = json.loads(done.stdout.splitlines()[-1])
    assert first == []
    assert set(changed) <= {"warnings"}  # decoding silences Pillow's
    assert not devices  # no device was looked for
