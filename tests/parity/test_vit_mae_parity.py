"""MAE against transformers.ViTMAEForPreTraining: same weights and noise, forward and gradients, and back again."""

import numpy as np
import pytest

from maeclip_jax import interop, objectives
from maeclip_jax.interop import convert
from maeclip_jax.params import unflatten
from tests.parity import two_towers
from tests.parity.compare import close
from tests.parity.masked import ours_on

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: make test-parity")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")

SMALL = dict(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8,
    decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=64,
)  # fmt: skip
CONFIGS = {
    "small": SMALL,
    "small, normalised patches": SMALL | dict(norm_pix_loss=True, mask_ratio=0.6, hidden_act="gelu_new"),
    "B/16, normalised patches": dict(norm_pix_loss=True),
}


def their_positions(like):
    """The positions of a pretrained model. A fresh ViTMAE has zeros in some versions of transformers: what its own
    initialisation writes is erased by a later step of it."""
    from transformers.models.vit_mae import modeling_vit_mae as theirs

    side = int((like.shape[1] - 1) ** 0.5)
    if hasattr(theirs, "get_2d_sincos_pos_embed"):  # version 4
        return torch.from_numpy(theirs.get_2d_sincos_pos_embed(like.shape[2], side, add_cls_token=True))[None]
    table = theirs.build_2d_sinusoidal_position_embedding(
        height=side, width=side, embed_dim=like.shape[2], cls_token=True
    )
    return torch.cat(table.chunk(2, dim=-1)[::-1], dim=-1)[None]


def make(settings):
    """A model with random weights but for its fixed positions, pictures as uint8 and as torch has them, noise."""
    config = transformers.ViTMAEConfig(**settings, attn_implementation="eager")
    model = transformers.ViTMAEForPreTraining(config).eval()
    two_towers.randomise(model, keep=("position_embeddings", "decoder_pos_embed"))
    for p in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        p.data.copy_(their_positions(p))
    pictures = two_towers.batch(config.image_size, 9, 8)["image"]
    patches = (config.image_size // config.patch_size) ** 2
    noise = np.random.default_rng(1).random((len(pictures), patches)).astype(np.float32)
    return model, pictures, two_towers.torch_pictures(pictures, "imagenet"), noise


@pytest.mark.parametrize("name", CONFIGS)
def test_mae(name, tmp_path):
    model, pictures, torch_pictures, noise = make(CONFIGS[name])
    model.save_pretrained(tmp_path)
    encoded = model.vit(torch_pictures, noise=torch.from_numpy(noise))
    out = model(torch_pictures, noise=torch.from_numpy(noise))
    found = interop.load("hf-vit-mae", tmp_path)
    assert set(found.report.unused) == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    assert not found.report.missing
    kept, made, gradient = ours_on(found, pictures, noise)

    reference = f"transformers.ViTMAEForPreTraining, {name}"
    np.testing.assert_array_equal(kept.mask_BxN, out.mask.numpy().astype(bool))
    # Theirs keeps patches in order of noise, ours in order of place: the same set.
    order = np.argsort(noise, axis=1, kind="stable")[:, : kept.keep_BxK.shape[1]]
    np.testing.assert_array_equal(np.sort(order, axis=1), kept.keep_BxK)
    theirs = encoded.last_hidden_state.detach().numpy()
    by_place = np.take_along_axis(theirs[:, 1:], np.argsort(order, axis=1)[..., None], axis=1)
    close(reference, "tokens of kept patches", made["tokens"], by_place)
    close(reference, "class token", made["cls"], theirs[:, 0])
    close(reference, "reconstruction of all patches", made["predicted"], out.logits.detach().numpy())
    close(reference, "loss", made["loss"], out.loss.detach().numpy())
    theirs = two_towers.gradients(model, out.loss)
    source = interop.source_of("hf-vit-mae")
    as_ours = convert.into_ours(source, convert.renamed(theirs, source), found.config.to_dict(), "gradient")[0]
    close(reference, "loss, all parameters", gradient, as_ours, kind="gradient")


def test_there_and_back(tmp_path):
    """Theirs -> ours -> theirs is bit-equal, and their class loads what is written."""
    model, _, torch_pictures, noise = make(CONFIGS["small, normalised patches"])
    model.save_pretrained(tmp_path / "theirs")
    found = interop.load("hf-vit-mae", tmp_path / "theirs")
    interop.save("hf-vit-mae", found.config, found.params, tmp_path / "back")
    again, said = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(said.values())
    for name, value in again.state_dict().items():
        limit = 1e-6 if "pos" in name.rpartition(".")[2] else 0  # fixed: computed again, in float64
        assert (value - model.state_dict()[name]).abs().max() <= limit, name
    want, got = (m.eval()(torch_pictures, noise=torch.from_numpy(noise)) for m in (model, again))
    np.testing.assert_allclose(got.loss.item(), want.loss.item(), rtol=1e-6)


@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_ours_as_theirs(tmp_path, position):
    """A model of ours with random weights, written and loaded by transformers, gives the same features and loss."""
    from experiments import mae

    config = mae.get_config("runlocal")
    config.model.image_tower.update(width=64, heads=4, position=position, eps=1e-5)
    config.model.decoder_tower.update(eps=1e-5)
    rng = np.random.default_rng(0)
    flat = {p: 0.3 * rng.standard_normal(s).astype(np.float32) for p, s in convert.shapes(config).items()}
    interop.save("hf-vit-mae", config, unflatten(flat), tmp_path)
    model = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path, attn_implementation="eager").eval()
    pictures = two_towers.batch(32, 9, 8)["image"]
    noise = np.random.default_rng(1).random((len(pictures), 16)).astype(np.float32)
    out = model(two_towers.torch_pictures(pictures, "imagenet"), noise=torch.from_numpy(noise))
    found = interop.Loaded(config, unflatten(flat), None)
    made = ours_on(found, pictures, noise)[1]
    reference = f"ours -> transformers.ViTMAE, {position} positions"
    close(reference, "reconstruction", made["predicted"], out.logits.detach().numpy())
    close(reference, "loss", made["loss"], out.loss.detach().numpy())


def test_encoder_of_facebook_s_mae_is_timm_s_transformer(tmp_path):
    """A .pth with the encoder alone, named as facebookresearch/mae does, which is timm's VisionTransformer."""
    timm = pytest.importorskip("timm", reason="parity needs timm: make test-parity")
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=128, depth=3, num_heads=2, num_classes=0, global_pool="token"
    ).eval()
    two_towers.randomise(model)
    pictures = two_towers.batch(32, 9, 8)["image"]
    tokens = model.forward_features(two_towers.torch_pictures(pictures, "imagenet"))
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "mae_pretrain.pth")
    found = interop.load("mae", tmp_path / "mae_pretrain.pth", heads=dict(image=2))
    assert all(p.startswith("decoder/") for p in found.report.missing)
    objective = objectives.make("mae", found.config.model)
    ours = objective.apply({"params": found.params}, {"image": pictures}, method="encode")["image"]
    close("timm.VisionTransformer (mae)", "image tokens", ours.x, tokens[:, 1:].detach().numpy())
    close("timm.VisionTransformer (mae)", "class token", ours.cls, tokens[:, 0].detach().numpy())
