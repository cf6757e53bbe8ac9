"""What all objectives promise: names, parameter paths as public API, encoding without randomness."""

import jax
import ml_collections
import numpy as np
import pytest

from maeclip_jax import objectives
from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten
from tests import long
from tests.objectives import models

BATCH = models.BATCH
LONG = ("mae", "slip", "silc")  # m3ae, clip and tips do with towers what these do
EVERY = long.marked(objectives.table(), LONG)


def shapes(name, **changes):
    return {p: x.shape for p, x in flatten(models.parameters(models.build(name, **changes))).items()}


def below(found, *parts):
    return {p: s for p, s in found.items() if p.split("/")[0] in parts}


def test_clip_loads_into_mae_clip_by_path():
    clip, mae_clip = shapes("clip"), shapes("mae_clip")
    assert {p.split("/")[0] for p in clip} == {"image", "text", "image_head", "text_head", "log_logit_scale"}
    assert below(mae_clip, *(p.split("/")[0] for p in clip)) == clip
    assert {p.split("/")[0] for p in mae_clip} - {p.split("/")[0] for p in clip} == {"decoder"}


def test_mae_has_the_same_image_tower_and_image_decoder():
    tower = models.MODELS["mae"]["image_tower"]
    mae, mae_clip = shapes("mae"), shapes("mae_clip", image_tower=tower, decode=("image",), mask=dict(image=0.75))
    assert below(mae, "image") == below(mae_clip, "image")
    rename = {p.replace("/project/", "/project_image/"): s for p, s in below(mae, "decoder").items()}
    assert rename == below(mae_clip, "decoder")


@pytest.mark.parametrize("name", EVERY)
def test_encoding_never_masks_and_needs_no_randomness(name):
    module = models.build(name)
    params = models.parameters(module)
    assert set(module.inputs()) - {"answer", "score"} == set(module.streams)
    batch = {k: v for k, v in BATCH.items() if k in module.inputs()}
    for method in ("encode", "embed"):  # without any rng: would fail if one were drawn
        out = jax.eval_shape(lambda p, m=method: models.apply(module, p, batch, method=m), params)
        assert set(out) == set(module.streams)
    one, two = (models.outputs(module, params, batch, seed=s) for s in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, one["encode"], two["encode"])
    jax.tree.map(np.testing.assert_array_equal, one["embed"], two["embed"])
    assert one["encode"]["image"].x.shape == (4, 16, 8)  # every patch, no class token among them
    assert (one["encode"]["image"].cls is not None) == module.image_tower["cls"]
    if "text" in module.streams:
        assert one["encode"]["text"].x.shape == (4, 8, 8)
        np.testing.assert_array_equal(one["encode"]["text"].pad, BATCH["text"] == 0)
    for embedding in one["embed"].values():
        norms = np.linalg.norm(embedding, axis=-1)
        assert np.allclose(norms, 1, atol=1e-5) == module.contrastive


@pytest.mark.parametrize("name", objectives.table())
def test_either_modality_may_be_absent(name):
    module = models.build(name)
    params = models.parameters(module)
    for stream in module.streams:
        for method in ("encode", "embed"):
            alone = {stream: BATCH[stream]}
            out = jax.eval_shape(lambda p, b=alone, m=method: models.apply(module, p, b, method=m), params)
            assert set(out) == {stream}


PASSES = {
    "mae": {"encoder"}, "m3ae": {"encoder"}, "clip": {"image", "text"}, "vqa": {"image", "text"},
    "mae_clip": {"image", "text", "masked_image", "masked_text"}, "slip": {"image", "text", "view_0", "view_1"},
    "silc": {"text", "global_0", "global_1", "local_0", "local_1"},
    "tips": {"text", "global_0", "masked_0", "local_0", "local_1"},
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_pass_through_a_tower_drops_paths_of_its_own_and_in_training_alone(name):
    image, text = models.MODELS[name]["image_tower"], models.MODELS[name].get("text_tower")
    changes = {"image_tower": image | dict(drop_path=0.5)}
    if text and "depth" in text:
        changes["text_tower"] = text | dict(drop_path=0.5)
    module, off = models.build(name, **changes), models.build(name)
    params = models.parameters(module)
    batch = {k: v for k, v in BATCH.items() if k in module.inputs()}
    rngs = {"mask": jax.random.key(0), "dropout": jax.random.key(1)}

    def draw(module, train):
        return module.apply({"params": params}, batch, train=train, method="draw", rngs=rngs)

    drawn = draw(module, True)
    paths = drawn.pop("paths")
    assert set(paths) == PASSES[name] and {x.shape for x in paths.values()} == {(4, 2, 2)}
    assert len({np.asarray(x).tobytes() for x in paths.values()}) == len(paths)
    for other in (draw(module, False), draw(off, True)):
        assert "paths" not in other

    @jax.jit
    def local(paths):
        made = module.apply({"params": params}, batch, drawn | {"paths": paths}, train=True, method="local")
        return jax.tree.leaves(made)

    whole = {k: np.zeros_like(x) for k, x in paths.items()}
    kept = local(whole)
    for one in paths:  # its second example alone drops the second layer: nothing else changes
        found = local(whole | {one: np.stack([whole[one][0], np.ones_like(whole[one][1]), *whole[one][2:]])})
        rows = [np.abs(a.astype(float) - b).reshape(4, -1).max(1) > 1e-6 for a, b in zip(found, kept)]
        assert np.any(rows, axis=0).tolist() == [False, True, False, False], one


def test_modules_are_built_from_config_dicts_and_can_be_compared():
    config = ml_collections.ConfigDict(models.MODELS["mae_clip"])
    made = objectives.make("mae_clip", config)
    assert made == models.build("mae_clip") and hash(made) == hash(models.build("mae_clip"))
    assert made != models.build("mae_clip", keep=0.5)


def test_unknown_objectives_and_settings_are_refused():
    with pytest.raises(UserError) as error:
        objectives.make("mae-clip", {})
    text = "unknown objective 'mae-clip' (did you mean 'mae_clip'?); valid: clip, m3ae, mae, mae_clip, silc, slip, "
    text += "tips, vqa"
    assert str(error.value) == text
    with pytest.raises(UserError) as error:
        objectives.make("clip", models.CLIP | dict(embed_with=3))
    assert str(error.value).startswith(
        "unknown setting of objective 'clip' 'embed_with' (did you mean 'embed_width'?); valid: compute, contrast_mib, "
    )


def test_an_objective_may_live_in_a_module_of_one_s_own(tmp_path, monkeypatch):
    (tmp_path / "my_objective.py").write_text(
        "from maeclip_jax.objectives.clip import Clip\nimport flax.linen as nn\n\n"
        "class Mine(Clip):\n  sharpness: float = 1.0\n\nclass Part(nn.Module):\n  pass\n\n"
        "class Short(Clip):\n  def reconstruct(self, batch):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = objectives.make("my_objective:Mine", models.CLIP | dict(sharpness=2.0))
    assert type(made).__name__ == "Mine" and made.sharpness == 2.0
    for name, text in {
        "my_objective:Nine": "unknown objective of module 'my_objective': 'Nine' (did you mean 'Mine'?); valid: Clip, ",
        "my_objective:Part": "objective 'my_objective:Part' has no inputs(); see the docstring of maeclip_jax.objectiv",
        "my_objective:Short": "objective 'my_objective:Short': reconstruct() does not take `words`; see the docstring ",
        "no_such:Mine": "objective 'no_such:Mine': cannot import 'no_such' (ModuleNotFoundError: No module named 'no_s",
    }.items():
        with pytest.raises(UserError) as error:
            objectives.make(name, models.CLIP)
        assert str(error.value).startswith(text) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="unknown setting of objective 'my_objective:Mine' 'width'"):
        objectives.make("my_objective:Mine", models.CLIP | dict(width=3))


@pytest.mark.parametrize("name", ["m3ae", "mae_clip"])
def test_only_words_of_the_tokenizer_are_filled_in(name):
    module = models.build(name)
    params = models.parameters(module)
    for words in (None, 13, 5, 2):
        made = models.apply(module, params, BATCH, words=words, method="reconstruct", seed=0)["text"]
        assert made.min() >= 0 and made.max() < (words or 13)
    table = models.apply(module, params, BATCH, method="reconstruct", seed=0)["text"]
    assert table.max() >= 5  # ids that would have been filled in otherwise
