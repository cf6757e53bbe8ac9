"""Ours written as folders, loaded by transformers: the same weights, the same features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mae_clip
from maeclip_jax import interop, objectives
from maeclip_jax.interop import files
from tests.parameters import random_parameters
from tests.parity import test_hf_clip_parity, two_towers
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: make test-parity")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")


def random_model(config):
    """(objective, random parameters) of a config."""
    objective = objectives.make(config.objective, config.model)

    def init(rng):
        batch = {k: jnp.ones((2, *x.shape), x.dtype) for k, x in objective.inputs().items()}
        return objective.init({"params": rng, "mask": rng}, batch, train=True)

    return objective, random_parameters(init)


def ours(objective, params, method, *args):
    call = jax.jit(lambda p, batch: objective.apply({"params": p}, batch, *args[1:], method=method))
    return jax.tree.map(np.asarray, call(params, args[0]))


def loaded(folder, config, **kwargs):
    model = transformers.AutoModel.from_pretrained(folder, **kwargs).eval()
    return model, lambda batch: model(pixel_values=two_towers.torch_pictures(batch["image"], config.model.stats))


@pytest.mark.parametrize("name", ["small, quick_gelu", "B/16, quick_gelu"])
def test_clip_there_and_back_is_bit_equal(name, tmp_path):
    model, _ = test_hf_clip_parity.make(**test_hf_clip_parity.CONFIGS[name])
    model.save_pretrained(tmp_path / "theirs")
    found = interop.load("hf-clip", tmp_path / "theirs")
    report = interop.save("hf-clip", found.config, found.params, tmp_path / "ours")
    assert not report.unused
    theirs, back = (files.read(tmp_path / x) for x in ("theirs", "ours"))
    assert set(theirs) == set(back)
    assert all(theirs[k].shape == back[k].shape and theirs[k].tobytes() == back[k].tobytes() for k in theirs)
    again = transformers.CLIPModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    close(f"transformers.CLIPModel, {name}", "weights: theirs -> ours -> theirs", back, theirs, rtol=0)


@pytest.mark.parametrize("causes", ["as CLIP", "fixed positions, biased patches"])
def test_a_mae_clip_with_the_structure_of_clip(causes, tmp_path):
    """Its towers become a whole CLIPModel; the decoder stays behind."""
    config = mae_clip.get_config("scale=demo,pool=cls,text_pool=last")
    free = dict(cls_position=True, position="learned", patch_bias=False) if causes == "as CLIP" else {}
    config.model.image_tower.update(dict(norm_pre=True, eps=1e-5, activation="quick_gelu") | free)
    config.model.text_tower.update(causal=True)
    objective, params = random_model(config)
    report = interop.save("hf-clip", config, params, tmp_path)
    assert {p.split("/")[0] for p in report.unused} == {"decoder"}
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    batch = two_towers.batch(64, config.model.text_tower.vocab, config.model.text_tower.length)
    pixels = two_towers.torch_pictures(batch["image"], config.model.stats)
    out = model(pixel_values=pixels, input_ids=torch.from_numpy(batch["text"]).long())
    embed = ours(objective, params, "embed", batch)
    for stream in ("image", "text"):
        theirs = out[f"{stream}_embeds"].detach().numpy()
        close(f"our MAE-CLIP, {causes} -> CLIPModel", f"{stream} embedding", embed[stream], theirs)


TOWERS = {
    "SiglipVisionModel": dict(),
    "ViTModel": dict(cls=True),
    "CLIPVisionModel": dict(cls=True, norm_pre=True, patch_bias=False),
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_image_tower_of_the_demo(name, tmp_path):
    """The demo's own tower is a SiglipVisionModel; with a class token it is one of the others."""
    config = mae_clip.get_config("scale=demo,pool=max")
    config.model.image_tower.update(TOWERS[name])
    objective, params = random_model(config)
    interop.save("hf-vision", config, params, tmp_path)
    model, run = loaded(tmp_path, config, **(dict(add_pooling_layer=False) if name == "ViTModel" else {}))
    assert type(model).__name__ == name
    batch = two_towers.batch(64, 50, 12)
    out = run(batch)
    hidden = out.last_hidden_state
    if name == "CLIPVisionModel":
        hidden = model.post_layernorm(hidden)
    first = int(config.model.image_tower.cls)
    features = ours(objective, params, "features", batch, ("own", "gap"))
    reference = f"our demo's image tower -> {name}"
    close(reference, "max over patches, as trained", features["own"], hidden[:, first:].amax(1).detach().numpy())
    close(reference, "mean over patches", features["gap"], hidden[:, first:].mean(1).detach().numpy())
    if first:
        tokens = ours(objective, params, "encode", batch)["image"]
        close(reference, "class token", tokens.cls, hidden[:, 0].detach().numpy())
