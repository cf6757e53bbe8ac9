"""Conversion tables: everything is accounted for, exactly undone, and what does not fit is one line."""

import json

import jax
import ml_collections
import numpy as np
import pytest

import maeclip_jax as mc
from maeclip_jax import interop, objectives
from maeclip_jax.errors import UserError
from maeclip_jax.interop import convert, files, positions
from maeclip_jax.interop.transforms import TRANSFORMS
from maeclip_jax.params import flatten
from tests.interop import foreign


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return foreign.hf_clip(tmp_path_factory.mktemp("clip") / "m")


def copy(clip, tmp_path):
    for file in clip[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


# Shapes of ours that each word can be tried on.
SHAPES = {
    "same": [(3,)], "transpose": [(4, 6)], "patch": [(12, 5)], "drop_1": [(3,)], "drop_2": [(3,)], "qkv": [(5, 18)],
    "qkv_in_one": [(5, 18)], "thirds": [(4, 4)] * 3, "cls_first": [(5,), (4, 5)],
}  # fmt: skip


@pytest.mark.parametrize("word", SHAPES)
def test_every_word_is_exactly_undone(word):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape) for shape in SHAPES[word]]
    there = TRANSFORMS[word].out(values, 3)
    back = TRANSFORMS[word].into(there, 3)
    assert all(np.array_equal(a, b) for a, b in zip(values, back))
    assert word == "same" or any(a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(values, there))


def test_columns_of_q_k_and_v_go_head_by_head():
    q, k, v = (np.arange(6.0)[:, None] + 10 * i for i in range(3))  # torch's [out, in] of 3 heads, 2 wide
    kernel = TRANSFORMS["qkv"].into([q, k, v], 3)[0]
    assert kernel[0].tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23, 4, 5, 14, 15, 24, 25]


def test_a_folder_is_read_to_the_last_array(clip):
    folder, params = clip
    found = interop.load("hf-clip", folder)
    flat = flatten(found.params)
    assert set(flat) == set(params) and all(np.array_equal(flat[p], params[p]) for p in params)
    assert set(found.report.used) == set(files.read(folder)) and not found.report.unused and not found.report.missing
    assert "used     logit_scale -> log_logit_scale" in found.report.table()
    config = found.config
    assert config.model.to_dict() == foreign.clip_config().model.to_dict()
    assert config.tokenizer.to_dict() == dict(type="clip", path=str(folder / "merges.txt"))
    assert config.preprocess.image == "decode|resize_small(32)|center_crop(32)"


def test_it_computes_what_the_weights_say(clip):
    found = interop.load("hf-clip", clip[0])
    objective = objectives.make("clip", found.config.model)
    batch = dict(image=np.zeros((1, 32, 32, 3), np.uint8), text=np.array([[1, 2, *[0] * 18]], np.int32))
    z = jax.jit(lambda p: objective.apply({"params": p}, batch, method="embed"))(found.params)
    assert z["image"].shape == z["text"].shape == (1, 8)


def test_files_are_bit_equal_there_and_back(clip, tmp_path):
    found = interop.load("hf-clip", clip[0])
    interop.save("hf-clip", found.config, found.params, tmp_path)
    a, b = files.read(clip[0]), files.read(tmp_path)
    assert set(a) == set(b) and all(a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a)


def test_another_size_interpolates_positions(clip):
    found = interop.load("hf-clip", clip[0], size=48, length=9)
    assert found.params["image"]["embed_image"]["position"].shape == (36, 12)
    assert np.array_equal(found.params["text"]["embed_text"]["position"], clip[1]["text/embed_text/position"][:9])
    assert "interpolated from 4x4 to 6x6" in str(found.report) and "the first 9 of 20" in str(found.report)
    assert found.config.model.image_tower.size == 48 and "center_crop(48)" in found.config.preprocess.image
    with pytest.raises(UserError, match=r"positions for 20 tokens of text, the config wants 21; valid: .* up to 20$"):
        interop.load("hf-clip", clip[0], length=21)


def test_interpolation_keeps_what_is_linear():
    y, x = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    table = np.stack([y, x, np.ones((8, 8))], -1).reshape(64, 3)
    for side in (12, 5):
        grid = positions.grid(table, side).reshape(side, side, 3)
        inner = (np.arange(side) + 0.5) * 8 / side - 0.5
        keep = (inner > 2) & (inner < 5)
        np.testing.assert_allclose(grid[keep][:, keep][..., 0], inner[keep][:, None] + 0 * inner[keep], atol=0.02)
        np.testing.assert_allclose(grid[..., 2], 1, atol=1e-6)


def raised(folder, kind="hf-clip"):
    with pytest.raises(UserError) as e:
        interop.load(kind, folder)
    text = str(e.value)
    assert "\n" not in text
    return text


CHANGES = {
    "missing": (
        lambda x: x.pop("text_model.final_layer_norm.bias"),
        "does not fit its table: it lacks 1 arrays (text_model.final_layer_norm.bias)",
    ),
    "extra": (
        lambda x: x.update({"vision_model.register_tokens": np.zeros(3, np.float32)}),
        "does not fit its table: it has 1 that nothing explains (vision_model.register_tokens)",
    ),
    "a layer more": (
        lambda x: x.update({k.replace("s.1.", "s.2."): v for k, v in x.items() if "text_model.encoder.layers.1." in k}),
        "it has 16 that nothing explains (text_model.encoder.layers.2.layer_norm1.bias, ",
    ),
    "a shape": (
        lambda x: x.update({"visual_projection.weight": np.zeros((8, 13), np.float32)}),
        "'visual_projection.weight' has shape (8, 13), its config needs (8, 12)",
    ),
    "transposed": (
        lambda x: x.update({k: v.T.copy() for k, v in x.items() if k.endswith("layers.0.mlp.fc1.weight")}),
        "layers.0.mlp.fc1.weight' has shape (12, 24), its config needs (24, 12)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_weights_that_do_not_fit_are_one_line(case, clip, tmp_path):
    change, message = CHANGES[case]
    foreign.rewrite(copy(clip, tmp_path), change)
    assert message in raised(tmp_path)


def test_buffers_are_explained(clip, tmp_path):
    ids = {"text_model.embeddings.position_ids": np.arange(20, dtype=np.float32)[None]}
    foreign.rewrite(copy(clip, tmp_path), lambda x: x.update(ids))
    report = interop.load("hf-clip", tmp_path).report
    assert report.unused == {"text_model.embeddings.position_ids": "counts 0, 1, 2, ..."}
    assert "1 left out" in str(report)


CONFIGS = {
    "no heads": (("text_config", "num_attention_heads", 5), "hidden_size 12 does not divide into 5 heads"),
    "a word": (("vision_config", "hidden_act", "swish"), "config.json: 'swish'; valid: gelu, gelu_fast, gelu_new"),
    "no number": (("vision_config", "patch_size", "8"), "patch_size is '8'; it must be a whole number above 0"),
    "another model": ((None, "model_type", "blip"), "holds a 'blip' model; hf-clip reads 'clip'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_makes_no_sense_is_one_line(case, clip, tmp_path):
    (section, key, value), message = CONFIGS[case]
    path = copy(clip, tmp_path) / "config.json"
    config = json.loads(path.read_text())
    (config[section] if section else config)[key] = value
    path.write_text(json.dumps(config))
    assert message in raised(tmp_path)


def test_a_folder_without_its_config_and_other_mistakes(clip, tmp_path):
    copy(clip, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    assert "which nn.pixels.STATS does not have; valid: imagenet, clip" in raised(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "need the config.json that belongs to them: it is missing" in raised(tmp_path)
    assert "unknown kind of weights 'hf-klip' (did you mean 'hf-clip'?); valid: " in raised(tmp_path, "hf-klip")


def test_names_of_kinds():
    assert interop.split("hf-clip:/a:b") == ("hf-clip", "/a:b")
    assert interop.split("gs://bucket/run") is interop.split("runs/a:b") is interop.split("runs/demo") is None
    with pytest.raises(UserError, match="unknown kind of weights 'clip'"):
        interop.split("clip:/x")


def test_what_a_format_cannot_express_is_said(tmp_path):
    for changes, message in (
        ({"causal": False}, "it can if it is trained with --config.model.text_tower.causal=True; as it is, "),
        ({"pool": "gap"}, "it can if it is trained with --config.model.text_tower.pool=last; as it is, "),
    ):
        config = foreign.clip_config()
        config.model.text_tower.update(changes)
        with pytest.raises(UserError, match=f"hf-clip cannot express this model; {message}"):
            interop.save("hf-clip", config, {}, tmp_path / "x")
    with pytest.raises(UserError, match=r"unknown kind of weights to write 'm3ae'.*; valid: hf-clip, "):
        interop.save("m3ae", config, {}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_table_of_every_kind_names_parameters_that_are(clip):
    """A path nobody has would be a row that is never used."""
    want = set(convert.shapes({"objective": "clip", "model": foreign.clip_config().model.to_dict()}))
    rows = interop.source_of("hf-clip").rows
    assert {p for ours, _, _ in rows for p in (ours if isinstance(ours, tuple) else (ours,))} == want


def test_the_library_makes_models_of_them(clip, tmp_path):
    """A CLIP with its words; a MAE whose file holds the encoder alone has a fresh decoder."""
    model = mc.load(f"hf-clip:{clip[0]}")
    assert model.embed(texts=["a cd", "b"])["text"].shape == (2, 8)
    mae = ml_collections.ConfigDict(dict(objective="mae", model=foreign.mae_model()))
    params = foreign.random_params(mae)
    interop.save("hf-vit-mae", mae, params, tmp_path)
    foreign.rewrite(tmp_path, lambda x: [x.pop(k) for k in list(x) if k.startswith("decoder.")])
    model = mc.load(f"hf-vit-mae:{tmp_path}")
    assert np.array_equal(model.params["image"]["cls"], params["image"]["cls"])
    assert model.params["decoder"]["mask_image"].any()
