"""openai/CLIP, open_clip and SigLIP: what their files tell, and what is refused. Their numbers: test_golden_parity."""

import json

import numpy as np
import pytest

import maeclip_jax as mc
from maeclip_jax import interop
from maeclip_jax.errors import UserError
from maeclip_jax.interop import convert, export, files, openai_clip
from tests.interop import foreign
from tests.parameters import leaf


def openai_arrays(heads: int = 1, vocab: int = 30) -> dict[str, np.ndarray]:
    """A CLIP of openai's with towers 64 * heads wide, by their names."""
    wide = foreign.TOWER | dict(width=64 * heads, heads=heads)
    config = foreign.clip_config()
    config.model.image_tower.update(wide)
    config.model.text_tower.update(wide | dict(vocab=vocab))
    plain = {"objective": "clip", "model": config.model.to_dict()}
    flat = {p: leaf(p, shape) for p, shape in convert.shapes(plain).items()}
    return convert.out_of_ours(openai_clip.ROWS, flat, plain)


def write(folder, arrays):
    path = folder / "clip.safetensors"
    path.write_bytes(b"".join(export.safetensors(arrays)))
    return path


def raised(kind, path):
    with pytest.raises(UserError) as e:
        interop.load(kind, path)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    "kind,activation", [("openai-clip", "quick_gelu"), ("open_clip", "gelu"), ("open_clip-quickgelu", "quick_gelu")]
)
def test_what_a_file_alone_tells(kind, activation, tmp_path):
    sizes = {} if kind == "open_clip" else {"input_resolution": np.zeros(()), "context_length": np.zeros(())}
    path, heads = write(tmp_path, openai_arrays(2, openai_clip.VOCAB) | sizes), dict(image=2, text=2)
    found = interop.load(kind, path, heads=None if kind == "openai-clip" else heads)
    image, text = found.config.model.image_tower, found.config.model.text_tower
    assert (image.size, image.patch, image.width, image.depth, image.heads) == (32, 8, 128, 2, 2)
    assert (text.length, text.vocab, text.heads, found.config.model.embed_width) == (20, 49408, 2, 8)
    assert image.activation == text.activation == activation
    assert found.report.unused == dict.fromkeys(sizes, "a size")
    assert found.config.model.loss == "softmax" and found.config.tokenizer.type == ""
    said = [note for note in found.report.notes if note.startswith("no open_clip_config.json: ")]
    assumed = f"no open_clip_config.json: pool cls, causal texts, {activation} and CLIP's preprocessing are assumed"
    assert said == ([] if kind == "openai-clip" else [assumed])


def test_what_a_file_alone_does_not_tell_is_not_guessed(tmp_path):
    """Pooling and the causal mask: models of open_clip that differ there show it in their words or have no ln_pre."""
    bare = {k: v for k, v in openai_arrays(2).items() if not k.startswith("visual.ln_pre.")}
    needs = f"does not show how its towers pool and whether texts are causal; {tmp_path / 'open_clip_config.json'} that"
    assert f"the file has no visual.ln_pre and {needs}" in raised("open_clip", write(tmp_path, bare))
    other = write(tmp_path, openai_arrays(2))
    assert f"the file has a vocabulary of 30, not CLIP's 49408, and {needs}" in raised("open_clip-quickgelu", other)
    assert interop.load("openai-clip", other).config.model.text_tower.vocab == 30
    assert "no visual.ln_pre, which all of OpenAI's models have: read" in raised("openai-clip", write(tmp_path, bare))
    cfg = dict(vision_cfg=dict(head_width=32, pool_type="avg", no_ln_pre=True),
               text_cfg=dict(heads=2, no_causal_mask=True, pool_type="last"))  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg)), encoding="utf-8-sig")
    found = interop.load("open_clip", write(tmp_path, bare))
    image, text = found.config.model.image_tower, found.config.model.text_tower
    assert (image.pool, image.norm_pre, text.causal, text.pool) == ("gap", False, False, "last")
    assert found.report.notes == []


def test_a_config_beside_an_open_clip_wins(tmp_path):
    path = write(tmp_path, openai_arrays(2) | {"logit_bias": np.zeros(())})
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_text(foreign.MERGES)
    cfg = dict(quick_gelu=True, vision_cfg=dict(head_width=32), text_cfg=dict(heads=8))
    half = dict(mean=[0.5] * 3, std=[0.5] * 3, resize_mode="squash", interpolation="bilinear", size=32)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=half)))
    config = interop.load("open_clip", path).config
    assert (config.model.image_tower.heads, config.model.text_tower.heads) == (4, 8)
    assert config.model.image_tower.activation == "quick_gelu" and config.model.stats == "half"
    assert config.model.loss == "sigmoid" and config.preprocess.image == 'decode|resize(32,method="bilinear")'
    assert config.tokenizer.to_dict() == dict(type="clip", path=str(tmp_path / "bpe_simple_vocab_16e6.txt.gz"))
    for section, changes, message in (
        ("vision_cfg", dict(pool_type="none"), "pool_type is 'none'; valid here: 'tok', 'avg'"),
        ("vision_cfg", dict(attentional_pool=True), "attentional_pool is True; valid here: False"),
        ("text_cfg", dict(no_causal_mask=True), "pool_type is 'argmax'; valid here: 'first', 'last'"),
        ("text_cfg", dict(hf_model_name="roberta"), "hf_model_name is 'roberta'; valid here: None"),
        ("text_cfg", dict(embed_cls=True), "embed_cls is True; valid here: False"),
    ):
        bad = cfg | {section: changes}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=bad)))
        assert f"open_clip_config.json: {message}" in raised("open_clip", path)
    for pictures, message in (
        (dict(resize_mode="longest"), "resize_mode is 'longest'; valid here: 'shortest', 'squash'"),
        (dict(size=64), "open_clip_config.json makes pictures of 64, the model takes 32"),
    ):
        (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=pictures)))
        assert message in raised("open_clip", path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg | dict(vision_cfg=dict(width=768)))))
    assert "width is 768, the arrays of visual.transformer are 128 wide" in raised("open_clip", path)


def test_heads_are_never_guessed(tmp_path):
    """No shape shows them: the config beside the file, a published model of these sizes, the caller, or nothing."""
    path = write(tmp_path, openai_arrays(2, openai_clip.VOCAB))
    message = raised("open_clip", path)
    assert (
        "nothing says how many heads the image tower has, which is 128 wide; put its open_clip_config.json" in message
    )
    said = json.loads(message[message.index('{"model_cfg') :].split(", or say")[0].replace("W", "32").replace("N", "8"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    config = interop.load("open_clip", path).config
    assert (config.model.image_tower.heads, config.model.text_tower.heads) == (4, 8)
    with pytest.raises(UserError, match="the image tower has 4 heads by its own files; heads=2 contradicts them"):
        interop.load("open_clip", path, heads=dict(image=2))
    (tmp_path / "open_clip_config.json").unlink()
    for heads, text in (
        (dict(image=3, text=2), "the image tower is 128 wide, which does not divide into 3 heads"),
        (dict(image=0), r"heads\['image'\] is 0; it must be a whole number above 0"),
        (dict(vision=2), "unknown tower in heads: 'vision'"),
    ):
        with pytest.raises(UserError, match=text):
            interop.load("open_clip", path, heads=heads)
    settings = {"model.image_tower.heads": 4, "model.text_tower.heads": 2}
    model = mc.load(f"open_clip:{path}", settings)
    want = interop.load("open_clip", path, heads=dict(image=4, text=2)).params
    kernel = model.params["image"]["trunk"]["blocks"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel, want["image"]["trunk"]["blocks"]["attention"]["qkv"]["kernel"])


def test_a_file_of_openai_s_is_not_read_with_exact_gelu(tmp_path):
    """Nothing else in the file shows the activation: embeddings would be off without an error."""
    path = write(tmp_path, openai_arrays(2) | {"input_resolution": np.zeros(())})
    assert "are OpenAI's, which have input_resolution among their arrays and quick GELU: read them as openai-clip" in (
        raised("open_clip", path)
    )


@pytest.mark.parametrize("sizes,heads", openai_clip.PUBLISHED.items())
def test_published_sizes_say_their_heads(sizes, heads):
    image, words = (dict(width=w, depth=d) for w, d in (sizes[:2], sizes[2:]))
    assert openai_clip._heads(image, words, {}, {}, False, False)[:2] == (heads, sizes[2] // 64)
    other = image | dict(depth=image["depth"] + 1)
    assert openai_clip._heads(other, words, {}, {}, False, False)[:2] == (None, None)
    if heads * 64 != sizes[0]:
        with pytest.raises(UserError, match=f"a tower {sizes[0]} wide is none of OpenAI's but open_clip's"):
            openai_clip._heads(image, words, {}, {}, False, True)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "state_dict.module."]
)
def test_wrappers_and_scales_with_an_axis(tmp_path, prefix, shape):
    arrays = openai_arrays() | {"logit_bias": np.zeros(shape, np.float32), "logit_scale": np.full(shape, 2, np.float32)}
    inner = {k.replace("visual.conv1", "visual._orig_mod.conv1"): v for k, v in arrays.items()}
    found = interop.load("openai-clip", write(tmp_path, {f"{prefix}{k}": v for k, v in inner.items()}))
    assert found.params["log_logit_scale"].shape == () and found.params["log_logit_scale"] == 2
    odd = write(tmp_path, arrays | {"logit_scale": np.zeros(2, np.float32)})
    assert "'logit_scale' has shape (2,), its config needs ()" in raised("openai-clip", odd)


def test_weights_of_two_libraries_in_one_folder(tmp_path):
    """As on the Hub: each reader takes its own."""
    folder, params = foreign.hf_clip(tmp_path / "both")
    theirs = openai_arrays(2, openai_clip.VOCAB)
    (folder / "open_clip_model.safetensors").write_bytes(b"".join(export.safetensors(theirs)))
    other = interop.load("open_clip", folder, heads=dict(image=2, text=2))
    assert other.params["image"]["cls"].shape == (128,)
    found = interop.load("hf-clip", folder)
    np.testing.assert_array_equal(found.params["image"]["cls"], params["image/cls"])
    parts = {name: f"open_clip_model-{i % 2}.safetensors" for i, name in enumerate(theirs)}
    for part in set(parts.values()):
        arrays = {k: x for k, x in theirs.items() if parts[k] == part}
        (folder / part).write_bytes(b"".join(export.safetensors(arrays)))
    index = folder / "open_clip_model.safetensors.index.json"
    index.write_text(json.dumps(dict(weight_map=parts)))
    whole = (folder / "open_clip_model.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").unlink()
    again = interop.load("open_clip", folder, heads=dict(image=2, text=2))
    np.testing.assert_array_equal(again.params["image"]["cls"], other.params["image"]["cls"])
    index.unlink()
    (folder / "open_clip_model.safetensors").write_bytes(whole)
    (folder / "model.safetensors").unlink()
    assert "open_clip_model.safetensors in it is open_clip's: read it as open_clip" in raised("hf-clip", folder)


def test_other_networks_are_named(tmp_path):
    resnet = {"visual.layer1.0.conv1.weight": np.zeros((2, 2, 1, 1))}
    assert "have a ResNet image tower; valid: CLIP models with a ViT" in raised("openai-clip", write(tmp_path, resnet))
    other = {"model.layers.0.weight": np.zeros((2, 2))}
    message = raised("openai-clip", write(tmp_path, other))
    assert "are not a CLIP of openai/CLIP or open_clip: no 'visual.conv1.weight'" in message
    odd = {k: v for k, v in openai_arrays().items() if k != "visual.proj"}
    assert "does not fit its table: it lacks 1 arrays (visual.proj)" in raised("openai-clip", write(tmp_path, odd))


def siglip(folder, **changes):
    """A folder of a small SiglipModel."""
    from maeclip_jax.interop import hf_siglip

    tower = dict(hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3)
    config = dict(
        model_type="siglip",
        text_config=tower | dict(vocab_size=30, max_position_embeddings=7),
        vision_config=tower | dict(image_size=38, patch_size=8) | changes.pop("vision", {}),
    )
    (folder / "config.json").write_text(json.dumps(config | changes))
    plain = hf_siglip.describe({}, folder, convert.Given())
    flat = {p: leaf(p, shape) for p, shape in convert.shapes(plain).items()}
    (folder / "model.safetensors").write_bytes(b"".join(export.safetensors(
        convert.out_of_ours(hf_siglip.ROWS, flat, plain))))  # fmt: skip
    return folder, flat


def test_siglip_is_read_to_the_last_array(tmp_path):
    folder, flat = siglip(tmp_path)
    (folder / "spiece.model").write_text("")
    found = interop.load("hf-siglip", folder)
    assert set(found.report.used) == set(files.read(folder)) and not found.report.unused
    config = found.config
    tower = config.model.image_tower
    assert tower.pool == "map" and tower.projection == "none" and config.model.text_tower.padding == "attended"
    assert tower.size == 32  # 38 pixels are 4 patches of 8; what is over is not looked at
    assert config.preprocess.image == "decode|resize(38)|corner_crop(32)"
    assert interop.load("hf-siglip", folder, size=48).config.preprocess.image == "decode|resize(48)"
    assert config.tokenizer.to_dict() == dict(
        type="sentencepiece", path=str(folder / "spiece.model"), eos=True, fill="eos", canonical=True
    )
    assert round(tower.mlp_ratio * tower.width) == 20
    assert flat["image_head/pool/map/probe"].shape == (1, 12)


def test_what_hf_siglip_refuses(tmp_path):
    folder, _ = siglip(tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | dict(model_type="siglip2")))
    assert "holds a 'siglip2' model; hf-siglip reads 'siglip'" in raised("hf-siglip", folder)
    path.write_text(json.dumps(config | dict(vision_config=config["vision_config"] | dict(vision_use_head=False))))
    assert "vision_use_head is False; hf-siglip reads models with the attention head" in raised("hf-siglip", folder)
