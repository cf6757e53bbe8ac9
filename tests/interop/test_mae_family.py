"""MAE, M3AE and big_vision in: against float64 on parameters by their own names; and what does not fit is one line."""

import json
import pickle

import jax
import numpy as np
import pytest

from maeclip_jax import interop, objectives
from maeclip_jax.errors import UserError
from maeclip_jax.interop import convert, files, mae, positions
from maeclip_jax.nn import embed, pixels
from maeclip_jax.nn.mask import hidden_ids, keep_lowest, take
from maeclip_jax.objectives.reconstruction import reconstruction_errors, reconstruction_losses
from maeclip_jax.objectives.streams import stream_inputs
from maeclip_jax.params import flatten, unflatten
from tests.interop import oracles
from tests.parity.compare import close

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
KEEP = dict(image=4, text=3)


def normal(*shape, scale=None):
    """Random values, none of which is 0 or 1 by accident."""
    return (RNG.standard_normal(shape) * (scale or max(1, shape[0]) ** -0.5)).astype(np.float32)


def dense(name, into, out):
    return {f"{name}/kernel": normal(into, out), f"{name}/bias": normal(out, scale=0.1)}


def norm(name, width):
    return {f"{name}/scale": 1 + normal(width, scale=0.2), f"{name}/bias": normal(width, scale=0.1)}


def m3ae_weights(width=128, small=64, patch=8, vocab=20, depth=2) -> dict:
    def trunk(name, w, layers):
        out = norm(f"{name}/LayerNorm_0", w)
        for b in (f"{name}/Block_{i}" for i in range(layers)):
            out |= norm(f"{b}/LayerNorm_0", w) | norm(f"{b}/LayerNorm_1", w)
            out |= dense(f"{b}/Attention_0/Dense_0", w, 3 * w) | dense(f"{b}/Attention_0/Dense_1", w, w)
            out |= dense(f"{b}/TransformerMLP_0/fc1", w, 4 * w) | dense(f"{b}/TransformerMLP_0/fc2", 4 * w, w)
        return out

    tokens = dict(cls_token=width, image_mask_embedding=small, text_mask_embedding=small)
    tokens |= {f"{a}_{s}_type_embedding": w for a, w in (("encoder", width), ("decoder", small)) for s in KEEP}
    return (
        {name: normal(1, 1, w, scale=0.3) for name, w in tokens.items()}
        | dense("image_embedding", 3 * patch**2, width)
        | {"text_embedding/embedding": normal(vocab, width, scale=0.5)}
        | trunk("encoder", width, depth)
        | trunk("decoder", small, depth - 1)
        | dense("decoder_input_projection", width, small)
        | dense("decoder_image_output/Dense_0", small, 3 * patch**2)
        | dense("decoder_text_output/Dense_0", small, vocab)
    )


def train_state(weights, **variant) -> bytes:
    tree = unflatten(weights)
    state = {"params": {"params": tree}, "opt_state": [{"count": np.array(3)}, {"mu": tree}], "step": np.array(3)}
    return pickle.dumps({"step": 3, "epoch": 0, "variant": variant, "state": state})


def test_m3ae_in_float64(tmp_path):
    """Predictions, both losses and the gradient, with one mask for the batch, pads in the text, one text all pads."""
    weights = m3ae_weights()
    variant = {"m3ae.num_heads": 2, "m3ae.dec_num_heads": 2, "text_loss_weight": 0.1, "m3ae.text_mask_ratio": 0.5}
    variant |= {"data.image_size": 32, "data.tokenizer_max_length": 12}
    (tmp_path / "model.pkl").write_bytes(train_state(weights))
    refused("m3ae", tmp_path / "model.pkl", "nothing says how many heads the image tower has, which is 128 wide; say ")
    (tmp_path / "model.pkl").write_bytes(train_state(weights, seed=42, **variant))
    found = interop.load("m3ae", tmp_path / "model.pkl")
    assert len(found.report.used) == len(weights) and not found.report.missing
    assert set(found.report.unused.values()) == {"state of the optimizer", "number of the step"}
    assert found.config.model.mask_share == "batch" and not found.config.model.norm_pix
    assert found.config.model.mask.to_dict() == dict(image=0.75, text=0.5)
    assert found.config.model.weights.to_dict() == dict(image=1.0, text=0.1)

    text = RNG.integers(1, 20, (3, 12)).astype(np.int32)
    text[0, 7:], text[1] = 0, 0
    noise = dict(image=RNG.random(16).astype(np.float32), text=RNG.random(12).astype(np.float32))
    order = {s: np.argsort(n) for s, n in noise.items()}
    objective = objectives.make("m3ae", found.config.model)
    kept = {s: keep_lowest(np.broadcast_to(n, (3, len(n))), KEEP[s]) for s, n in noise.items()}

    def run(module):
        inputs = stream_inputs(dict(image=PICTURES, text=text), module.image_tower, module.stats)
        predicted = module.decoder(module.image_text(inputs, kept), kept, inputs["text"] == 0)
        hidden = predicted | {"text": take(predicted["text"], hidden_ids(kept["text"]))}
        parts = reconstruction_losses(reconstruction_errors(hidden, inputs, kept, module.norm_pix))
        return parts["image"] + parts["text"], (predicted, parts)

    ours = jax.jit(jax.value_and_grad(lambda p: objective.apply({"params": p}, method=run), has_aux=True))
    (_, (predicted, parts)), gradient = ours(found.params)

    patches = np.asarray(pixels.patchify(pixels.normalise(PICTURES, "cc12m"), 8), np.float64)
    with oracles.float64():
        wide = {k: v.astype(np.float64) for k, v in weights.items()}

        def oracle(p):
            made = oracles.m3ae(p, patches, text, text == 0, order, KEEP, heads=(2, 2))
            image, words = oracles.m3ae_losses(*made, patches, text, text == 0, order, KEEP)
            return image + words, (made, image, words)

        (_, (made, image, words)), theirs = jax.jit(jax.value_and_grad(oracle, has_aux=True))(wide)
    close("M3AE in float64", "predicted patches", predicted["image"], made[0])
    close("M3AE in float64", "logits of words", predicted["text"], made[1])
    close("M3AE in float64", "loss of pixels", parts["image"], image)
    close("M3AE in float64", "loss of words", parts["text"], words)
    source = interop.source_of("m3ae")
    as_ours = convert.into_ours(source, jax.tree.map(np.asarray, theirs), found.config.to_dict(), "gradient")[0]
    close("M3AE in float64", "gradient", flatten(gradient), as_ours, kind="gradient")


def big_vision_weights(width=128, heads=2, patch=8, vocab=20, depth=2, length=6) -> dict:
    wide, each = 4 * width, width // heads

    def attention(name):
        out = {f"{name}/{x}/kernel": normal(width, heads, each) for x in ("query", "key", "value")}
        out |= {f"{name}/{x}/bias": normal(heads, each, scale=0.1) for x in ("query", "key", "value")}
        return out | {f"{name}/out/kernel": normal(heads, each, width, scale=0.1), f"{name}/out/bias": normal(width)}

    def mlp(name):
        return dense(f"{name}/Dense_0", width, wide) | dense(f"{name}/Dense_1", wide, width)

    def trunk(name):
        out = norm(f"{name}/encoder_norm", width)
        for b in (f"{name}/encoderblock_{i}" for i in range(depth)):
            out |= norm(f"{b}/LayerNorm_0", width) | norm(f"{b}/LayerNorm_1", width)
            out |= attention(f"{b}/MultiHeadDotProductAttention_0") | mlp(f"{b}/MlpBlock_0")
        return out

    head = "img/MAPHead_0"
    return (
        {"t": np.array([1.5], np.float32), "b": np.array([-2.0], np.float32)}
        | {"img/embedding/kernel": normal(patch, patch, 3, width, scale=0.1), "img/embedding/bias": normal(width)}
        | {"img/pos_embedding": normal(1, 16, width, scale=0.3), "txt/pos_embedding": normal(1, length, width)}
        | {"txt/Embed_0/embedding": normal(vocab, width), f"{head}/probe": normal(1, 1, width)}
        | attention(f"{head}/MultiHeadDotProductAttention_0")
        | norm(f"{head}/LayerNorm_0", width)
        | mlp(f"{head}/MlpBlock_0")
        | trunk("img/Transformer")
        | trunk("txt/Encoder_0")
        | dense("txt/head", width, width)
    )


def stack(weights) -> dict:
    """encoderblock_0, encoderblock_1 as one array each."""
    out = {k: v for k, v in weights.items() if "encoderblock_" not in k}
    for name in (k for k in weights if "encoderblock_0" in k):
        layers = [weights[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(2)]
        out[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    return out


def npz(path, weights):
    np.savez(path, **{f"params/{k}": v for k, v in weights.items()})
    return path


@pytest.mark.parametrize(
    "width,heads", [(128, 2), pytest.param(96, 1, marks=pytest.mark.long), pytest.param(144, 3, marks=pytest.mark.long)]
)
def test_siglip_of_big_vision_in_float64(tmp_path, width, heads):
    """Heads of any width: SigLIP 2's largest has 96 numbers a head."""
    weights = big_vision_weights(width, heads)
    found = interop.load("big_vision", npz(tmp_path / "x.npz", weights))
    assert found.config.preprocess.image == "decode|resize(32)" and "bilinear without antialiasing" in str(found.report)
    stacked = interop.load("big_vision", npz(tmp_path / "y.npz", stack(weights)))
    jax.tree.map(np.testing.assert_array_equal, found.params, stacked.params)
    assert stacked.config.to_dict() == found.config.to_dict()
    assert not found.report.unused and not found.report.missing
    assert found.config.model.loss == "sigmoid" and found.config.model.image_tower.pool == "map"
    text = RNG.integers(0, 20, (3, 6)).astype(np.int32)  # 0 is a word like any other
    batch = dict(image=PICTURES, text=text)
    objective = objectives.make("clip", found.config.model)

    def run(params):
        loss, _ = objective.apply({"params": params}, batch, train=False)
        return loss, objective.apply({"params": params}, batch, method="embed")

    (loss, z), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(found.params)
    with oracles.float64():
        wide = {k: v.astype(np.float64) for k, v in weights.items()}
        inputs = PICTURES / 127.5 - 1

        def oracle(p):
            image, words, loss = oracles.siglip(p, inputs, text, heads=heads)
            return loss, (image, words)

        (want, theirs), theirs_gradient = jax.jit(jax.value_and_grad(oracle, has_aux=True))(wide)
    close("SigLIP of big_vision in float64", "image embedding", z["image"], theirs[0])
    close("SigLIP of big_vision in float64", "text embedding", z["text"], theirs[1])
    close("SigLIP of big_vision in float64", "loss", loss, want)
    source = interop.source_of("big_vision")
    as_ours = convert.into_ours(source, jax.tree.map(np.asarray, theirs_gradient), found.config.to_dict(), "gradient")[
        0
    ]
    close("SigLIP of big_vision in float64", "gradient", flatten(gradient), as_ours, kind="gradient")


def of(config) -> dict:
    """Random parameters of a config, by path."""
    return {p: normal(*shape, scale=0.3) for p, shape in convert.shapes(config).items()}


def mae_config(**image):
    from experiments import mae as experiment

    config = experiment.get_config("runlocal")
    config.model.image_tower.update(width=64, heads=1, **image)
    return config


def equal(got, want):
    got = flatten(got)
    assert set(got) == set(want)
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_hf_vit_mae_out_and_in_again(tmp_path, position):
    config = mae_config(position=position, cls_position=position == "learned", eps=1e-6)
    flat = of(config)
    report = interop.save("hf-vit-mae", config, unflatten(flat), tmp_path)
    assert not report.unused
    found = interop.load("hf-vit-mae", tmp_path)
    equal(found.params, flat)
    for key in ("width", "depth", "heads", "size", "patch", "position"):
        assert found.config.model.image_tower[key] == config.model.image_tower.get(key, "sincos")
    assert (
        found.config.model.norm_pix == config.model.norm_pix
        and found.config.model.mask.image == config.model.mask.image
    )
    bigger = interop.load("hf-vit-mae", tmp_path, size=48)
    tower = bigger.config.model.image_tower
    assert tower.size == 48 and tower.position == "learned"
    assert tower.get("cls_position", False) == (position == "learned")
    held = files.read(tmp_path)["vit.embeddings.position_embeddings"][0, 1:]  # fixed or not: what the weights have seen
    want = positions.grid(held, 6)
    np.testing.assert_allclose(bigger.params["image"]["embed_image"]["position"], want, atol=1e-6)
    assert bigger.report.notes == [
        "image/embed_image/position interpolated from 4x4 to 6x6",
        "the decoder's positions are those of 6x6 patches, it knows 4x4",
    ]
    batch = {"image": np.zeros((2, 48, 48, 3), np.uint8)}
    made = objectives.make("mae", bigger.config.model)
    assert made.apply({"params": bigger.params}, batch, method="embed")["image"].shape == (2, 64)
    equal(interop.load("hf-vit-mae", tmp_path, size=32).params, flat)


def test_m3ae_at_another_size_keeps_the_positions_it_knows(tmp_path):
    variant = {"m3ae.num_heads": 2, "m3ae.dec_num_heads": 2, "data.image_size": 32}
    (tmp_path / "model.pkl").write_bytes(train_state(m3ae_weights(), **variant))
    found = interop.load("m3ae", tmp_path / "model.pkl", size=64, length=12)
    got = found.params["image_text"]["embed_image"]["position"]
    np.testing.assert_allclose(got, positions.grid(embed.sincos_2d(4, 4, 128), 8), atol=1e-6)
    assert "image_text/embed_image/position interpolated from 4x4 to 8x8" in found.report.notes
    batch = {"image": np.zeros((1, 64, 64, 3), np.uint8), "text": np.ones((1, 12), np.int32)}
    objectives.make("m3ae", found.config.model).apply({"params": found.params}, batch, method="embed")


def test_a_model_applied_to_numpy_arrays_leaves_them_as_they_are():
    config = mae_config(position="learned", cls_position=True)
    flat = of(config)
    before = {p: x.copy() for p, x in flat.items()}
    objective = objectives.make("mae", config.model)
    first, again = (
        objective.apply({"params": unflatten(flat)}, {"image": PICTURES}, method="embed")["image"] for _ in "ab"
    )
    np.testing.assert_array_equal(first, again)
    equal(unflatten(flat), before)


def test_three_spellings_of_vit_mae_are_one(tmp_path):
    config = mae_config()
    flat = of(config)
    interop.save("hf-vit-mae", config, unflatten(flat), tmp_path)
    hub = files.read(tmp_path)
    new = {
        "vit.encoder.layer.": "vit.layers.", "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }  # fmt: skip
    odd = {"decoder.decoder_layers.": "decoder.decoder_encoder.layer."}
    source = interop.source_of("hf-vit-mae")
    for spelling in (new, odd, new | odd):
        other = {}
        for name, value in hub.items():
            for a, b in spelling.items():
                name = name.replace(a, b)
            other[name] = value
        assert set(other) != set(hub)
        assert set(convert.renamed(other, source)) == set(hub)


def official(config, flat, prefix="") -> dict:
    """A model of ours as facebookresearch/mae calls its arrays."""
    image = config.model.image_tower
    fixed = {"pos_embed": mae.fixed(image, image.width)}
    fixed["decoder_pos_embed"] = mae.fixed(image, config.model.decoder_tower.width)
    return {f"{prefix}{k}": v for k, v in (fixed | convert.out_of_ours(mae.ROWS, flat, config.to_dict())).items()}


def test_mae_of_facebook_whole_and_the_encoder_alone(tmp_path):
    config = mae_config()
    config.model.decoder_tower.heads = 1
    flat = of(config)
    weights = official(config, flat, "model.")
    np.savez(tmp_path / "whole.npz", **weights, **{"optimizer.state.0.exp_avg": np.ones(3)})
    refused("mae", tmp_path / "whole.npz", "nothing says how many heads the decoder tower has, which is 32 wide; say ")
    found = interop.load("mae", tmp_path / "whole.npz", heads=dict(image=1, decoder=1))
    equal(found.params, flat)
    assert found.report.unused["optimizer.state.0.exp_avg"] == "state of the optimizer"
    assert found.report.unused["pos_embed"] == "fixed sine-cosine positions, which ours computes"
    assert found.config.model.image_tower.position == "sincos"

    encoder = {k: v for k, v in weights.items() if "decoder" not in k and "mask_token" not in k}
    np.savez(tmp_path / "encoder.npz", **encoder)
    half = interop.load("mae", tmp_path / "encoder.npz", heads=dict(image=1))
    equal(half.params, {p: v for p, v in flat.items() if p.startswith("image/")})
    assert set(half.report.missing.values()) == {"the file holds the encoder alone"}
    assert len(half.report.missing) == len([p for p in flat if p.startswith("decoder/")])


def refused(kind, path, text, **settings):
    with pytest.raises(UserError, match=text) as caught:
        interop.load(kind, path, **settings)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_one_line(tmp_path):
    config = mae_config()
    weights = official(config, of(config))

    def mae_file(**changes):
        np.savez(tmp_path / "x.npz", **{k: v for k, v in (weights | changes).items() if v is not None})
        return tmp_path / "x.npz"

    def off(path, text):
        refused("mae", path, text, heads=dict(image=1, decoder=1))

    off(mae_file(extra=np.ones(3)), r"it has 1 that nothing explains \(extra\)")
    off(mae_file(cls_token=None), r"it lacks 1 arrays \(cls_token\)")
    off(mae_file(cls_token=np.ones((1, 2, 64))), r"'cls_token' has shape \(1, 2, 64\), its config needs")
    off(mae_file(**{"decoder_norm.bias": None}), r"it lacks 1 arrays \(decoder_norm.bias\)")
    off(mae_file(pos_embed=None), "no 'pos_embed' in the file: it is not an MAE of facebookresearch/mae")
    off(mae_file(decoder_pos_embed=np.ones((1, 17, 32))), "the decoder's positions are not MAE's fixed ones")
    refused("mae", npz(tmp_path / "y.npz", big_vision_weights()), "there is no matrix 'blocks.0.mlp.fc2.weight'")
    refused("m3ae", mae_file(), "there is no matrix 'encoder/Block_0/TransformerMLP_0/fc2/kernel' in the file")
    refused("big_vision", mae_file(), "there is no 'img/embedding/kernel' in the file: it is not a pair of towers")

    words = m3ae_weights()
    pictures = {k: v for k, v in words.items() if "text" not in k}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"state": {"params": {"params": unflatten(pictures)}}}))
    refused(
        "m3ae", tmp_path / "x.pkl", "'text_embedding/embedding' in the file: it is not an M3AE of pictures and texts"
    )

    (folder := tmp_path / "hf").mkdir()
    interop.save("hf-vit-mae", config, unflatten(of(config)), folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | dict(model_type="vit")))
    refused("hf-vit-mae", folder, "holds a 'vit' model; hf-vit-mae reads 'vit_mae'")
    (folder / "config.json").write_text(json.dumps(described | dict(hidden_size=128)))
    refused("hf-vit-mae", folder, "has shape .*, its config needs")


def test_what_vit_mae_cannot_say_is_not_written(tmp_path):
    from experiments import mae_clip

    def refused(config, text):
        with pytest.raises(UserError, match=text):
            interop.save("hf-vit-mae", config, {}, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused(
        mae_clip.get_config("runlocal"),
        "writes objective 'mae', not 'mae_clip'; as it is, it can be written as hf-vision",
    )
    refused(
        mae_config(cls=False),
        "it can if it is trained with --config.model.image_tower.cls=True; as it is, .* hf-vision",
    )
    refused(mae_config(eps=1e-5), "it can if it is trained with --config.model.decoder_tower.eps=1e-05")


def test_a_mae_is_continued_as_mae_clip(tmp_path):
    """Its encoder and, if it is in the file, its decoder."""
    from maeclip_jax import main

    def config(path):
        argv = ["--config=experiments/mae_clip.py:runlocal", "--workdir=unused", f"--config.init_from=mae:{path}"]
        return main.parse([*argv]).config.model

    plain = main.parse(["--config=experiments/mae_clip.py:runlocal", "--workdir=unused"]).config.model
    mae = mae_config(depth=1)
    mae.model.image_tower.update(width=768, heads=12)
    mae.model.decoder_tower.update(width=512, depth=1, heads=16)
    weights = official(mae, of(mae))
    np.savez(tmp_path / "whole.npz", **weights)
    np.savez(tmp_path / "encoder.npz", **{k: v for k, v in weights.items() if "decoder" not in k and k != "mask_token"})
    whole, encoder = (config(tmp_path / f"{name}.npz") for name in ("whole", "encoder"))
    assert whole.image_tower.width == encoder.image_tower.width == 768 and whole.image_tower.pool == "gap"
    assert encoder.decoder_tower == plain.decoder_tower
    assert whole.decoder_tower.to_dict() == dict(width=512, depth=1, heads=16, mlp_ratio=4.0)
