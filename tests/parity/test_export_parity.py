"""Ours written as folders, loaded by transformers and open_clip: the same weights, features and scores."""

import gzip
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import mae_clip
from maeclip_jax import interop, objectives
from maeclip_jax.config import load
from maeclip_jax.data import tokenizer
from maeclip_jax.data.tokenizer import files as tokenizer_files
from maeclip_jax.interop import files
from maeclip_jax.run.model import Model
from maeclip_jax.run.setup import setup
from tests.data.photos import photos
from tests.data.test_tokenizer import FUZZ, TEXT
from tests.data.test_tokenizer_files import KINDS, MEANT, spec_of
from tests.golden import ROOT
from tests.parameters import random_parameters
from tests.parity import test_hf_clip_parity, two_towers
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: make test-parity")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")

LABELS = ("a red circle", "a blue square left of a green triangle", "two yellow stars")
TEXTS = tuple(f"This is a photo of {label}." for label in LABELS)


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
    report = interop.save("hf-clip", found.config, found.params, tmp_path / "ours", tokenizer=False)
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
    config.tokenizer.eos = True
    objective, params = random_model(config)
    report = interop.save("hf-clip", config, params, tmp_path)
    assert {p.split("/")[0] for p in report.unused} == {"decoder"}
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    batch = two_towers.batch(64, config.model.text_tower.vocab, config.model.text_tower.length)
    batch["text"] = np.stack([tokenizer.of(config)(t, config.model.text_tower.length) for t in TEXTS])
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


# format -> an experiment that it writes, with the settings that this takes.
WRITTEN = {
    "hf-clip": ("clip", {
        "model.image_tower.cls": True, "model.image_tower.pool": "cls", "model.image_tower.norm_pre": True,
        "model.text_tower.causal": True, "model.text_tower.pool": "last", "tokenizer.eos": True,
    }),
    "hf-siglip": ("siglip", {"model.text_tower.length": 64}),
    "open_clip": ("mae_clip", {
        "model.image_tower.cls": True, "model.text_tower.pool": "cls", "model.text_tower.padding": "attended",
        "tokenizer.cls": True,
    }),
    "open_clip, ends": ("slip", {
        "model.image_tower.cls": True, "model.text_tower.pool": "last", "model.text_tower.causal": True,
        "tokenizer.eos": True, "model.loss": "sigmoid",
    }),
    "open_clip, sigmoid": ("siglip", {"model.image_tower.cls": True, "model.image_tower.pool": "gap"}),
}  # fmt: skip


def written(name, folder, **preprocess):
    """(a Model with random parameters, whose embeddings differ between texts and between pictures) and its folder."""
    kind = name.partition(",")[0]
    experiment, settings = WRITTEN[name]
    config = load(f"{ROOT}/experiments/{experiment}.py:scale=demo", settings)
    config.preprocess.update(preprocess)
    made = setup(config, devices=jax.devices()[:1])
    _, params = random_model(config)
    params |= {"log_logit_scale": np.float32(np.log(20))}
    interop.save(kind, config, params, folder)
    return Model(config, made.objective, made.mesh, params)


def scores(model, pictures):
    """Softmax over the texts, or each pair's sigmoid where that was the loss, from our own preprocessing."""
    z = model.embed(images=pictures, texts=list(TEXTS))
    logits = np.exp(model.params["log_logit_scale"]) * z["image"] @ z["text"].T
    if model.config.model.loss == "sigmoid":
        return 1 / (1 + np.exp(-logits - model.params["logit_bias"]))
    logits = np.exp(logits - logits.max(1, keepdims=True))
    return logits / logits.sum(1, keepdims=True)


def with_one_middle(side, count=20):
    """Photographs whose middle transformers cuts out where we do: it rounds half a pixel down, torchvision to even."""
    found = []
    for path in photos(60):
        width, height = Image.open(path).size
        spare = int(side * max(width, height) / min(width, height)) - side
        found += [path] * (spare // 2 == round(spare / 2))
    assert len(found) >= count
    return found[:count]


@pytest.mark.parametrize("image", ["", "decode|resize(64)"], ids=["cut", "squashed"])
@pytest.mark.parametrize("name", ["hf-clip", "hf-siglip"])
def test_the_zero_shot_pipeline_gives_our_scores(name, image, tmp_path):
    """On photographs, with what the folder says of tokenizer and pictures, in the library's PIL backend."""
    model = written(name, tmp_path, **(dict(image=image) if image else {}))
    process = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pipe = transformers.pipeline("zero-shot-image-classification", str(tmp_path), image_processor=process)
    paths = with_one_middle(64)
    found = [pipe(Image.open(p), candidate_labels=list(LABELS)) for p in paths]
    theirs = np.array([[next(x["score"] for x in row if x["label"] == label) for label in LABELS] for row in found])
    ours = scores(model, paths)
    assert ours.std(0).max() > 1e-3 and ours.std(1).max() > 1e-2  # or equal scores would say nothing
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_a_siglip_of_short_texts_by_its_card(tmp_path):
    """The pipeline refuses it, loudly; what README.md shows works."""
    config = load(f"{ROOT}/experiments/siglip.py:scale=demo")
    made = setup(config, devices=jax.devices()[:1])
    _, params = random_model(config)
    interop.save("hf-siglip", config, params, tmp_path)
    ours = Model(config, made.objective, made.mesh, params)
    pipe = transformers.pipeline("zero-shot-image-classification", str(tmp_path))
    with pytest.raises(ValueError, match="Sequence length must be less than max_position_embeddings"):
        pipe(Image.open(photos()[0]), candidate_labels=list(LABELS))
    code = (tmp_path / "README.md").read_text().split("```python")[1].split("```")[0]
    code = code.replace('"FOLDER"', repr(str(tmp_path))).replace('["a dog", "a cat"]', repr(list(TEXTS)))
    names = dict(picture=Image.open(with_one_middle(64)[0]).convert("RGB"))
    exec(code, names)
    np.testing.assert_allclose(
        names["scores"].detach().numpy(), scores(ours, [names["picture"]]), atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("name", [n for n in WRITTEN if n.startswith("open_clip")])
def test_open_clip_gives_our_embeddings(name, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="parity needs open_clip: make test-parity")
    model = written(name, tmp_path)
    theirs, _, process = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(list(TEXTS))
    np.testing.assert_array_equal(ids.numpy(), model.preprocess.texts(list(TEXTS)))
    paths = photos()[:20]
    pixels = torch.stack([process(Image.open(p)) for p in paths])
    with torch.no_grad():
        out = dict(
            image=theirs.eval().encode_image(pixels, normalize=True), text=theirs.encode_text(ids, normalize=True)
        )
    ours = model.embed(images=paths, texts=list(TEXTS))
    for stream, z in out.items():
        close(f"our {model.config.objective} -> {name}", f"{stream} embedding", ours[stream], z.numpy())
    np.testing.assert_allclose(theirs.logit_scale.item(), np.log(20), rtol=1e-6)
    if model.config.model.loss == "sigmoid":
        assert theirs.logit_bias.item() == pytest.approx(float(model.params["logit_bias"]))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("name", KINDS)
def test_auto_tokenizer_reads_our_ids(name, kind, tmp_path):
    spec = spec_of(name, tmp_path)
    (folder := tmp_path / "out").mkdir()
    (folder / "config.json").write_text(json.dumps(dict(model_type=kind)))
    for file, content in tokenizer_files.files(spec, 40).items():
        (folder / file).write_bytes(content)
    library, ours = transformers.AutoTokenizer.from_pretrained(folder), tokenizer.make(spec)
    found = [t for t in FUZZ if isinstance(t, str) and "\ud800" not in t and t not in MEANT.get(name, ())]
    for language in ("en", "de", "fr", "cs"):
        if os.path.exists(path := TEXT / f"multi30k_train.{language}.gz"):
            found += gzip.decompress(path.read_bytes()).decode().splitlines()[:2000]
    assert len(found) > 1000
    theirs = library(found, padding="max_length", truncation=True)["input_ids"]
    for text, ids in zip(found, theirs):
        assert ids == ours(text, 40).tolist(), text
