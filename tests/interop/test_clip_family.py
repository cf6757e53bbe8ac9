"""openai/CLIP, open_clip and SigLIP: what their files tell, and what is refused. Their numbers: test_golden_parity."""

import json

import numpy as np
import pytest

from maeclip_jax import interop
from maeclip_jax.errors import UserError
from maeclip_jax.interop import convert, export, files, openai_clip
from tests.interop import foreign
from tests.parameters import leaf


def openai_arrays(heads: int = 1) -> dict[str, np.ndarray]:
    """A CLIP of openai's with towers 64 * heads wide, by their names."""
    wide = foreign.TOWER | dict(width=64 * heads, heads=heads)
    config = foreign.clip_config()
    config.model.image_tower.update(wide)
    config.model.text_tower.update(wide | dict(vocab=30))
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
    sizes = {"input_resolution": np.zeros(()), "context_length": np.zeros(())}
    found = interop.load(kind, write(tmp_path, openai_arrays(2) | sizes))
    image, text = found.config.model.image_tower, found.config.model.text_tower
    assert (image.size, image.patch, image.width, image.depth, image.heads) == (32, 8, 128, 2, 2)
    assert (text.length, text.vocab, text.heads, found.config.model.embed_width) == (20, 30, 2, 8)
    assert image.activation == text.activation == activation
    assert found.report.unused == dict.fromkeys(sizes, "a size")
    assert found.config.model.loss == "softmax" and found.config.tokenizer.type == ""


def test_a_config_beside_an_open_clip_wins(tmp_path):
    path = write(tmp_path, openai_arrays(2) | {"logit_bias": np.zeros(())})
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_text(foreign.MERGES)
    cfg = dict(quick_gelu=True, vision_cfg=dict(head_width=32), text_cfg=dict(heads=8))
    half = dict(mean=[0.5] * 3, std=[0.5] * 3)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=half)))
    config = interop.load("open_clip", path).config
    assert (config.model.image_tower.heads, config.model.text_tower.heads) == (4, 8)
    assert config.model.image_tower.activation == "quick_gelu" and config.model.stats == "half"
    assert config.model.loss == "sigmoid"
    assert config.tokenizer.to_dict() == dict(type="clip", path=str(tmp_path / "bpe_simple_vocab_16e6.txt.gz"))
    for section, changes, message in (
        ("vision_cfg", dict(pool_type="none"), "pool_type is 'none'; valid here: 'tok', 'avg'"),
        ("vision_cfg", dict(timm_model_name="convnext"), "timm_model_name is 'convnext'; valid here: None"),
        ("vision_cfg", dict(attentional_pool=True), "attentional_pool is True; valid here: False"),
        ("text_cfg", dict(no_causal_mask=True), "pool_type is 'argmax'; valid here: 'first', 'last'"),
        ("text_cfg", dict(embed_cls=True), "embed_cls is True; valid here: False"),
    ):
        bad = cfg | {section: changes}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=bad)))
        assert f"open_clip_config.json: {message}" in raised("open_clip", path)


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
    plain = hf_siglip.describe({}, folder)
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
