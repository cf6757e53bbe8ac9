"""CLIP against open_clip, whose files are named as OpenAI's: same weights, forward and gradients."""

import pytest

from maeclip_jax.interop import positions
from tests.parity import two_towers
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch and open_clip: make test-parity")
open_clip = pytest.importorskip("open_clip", reason="parity needs torch and open_clip: make test-parity")

SMALL = dict(
    embed_dim=24,
    vision_cfg=dict(image_size=32, layers=3, width=128, patch_size=8),
    text_cfg=dict(context_length=12, vocab_size=50, width=64, heads=1, layers=2),
)
B16 = dict(
    embed_dim=512,
    vision_cfg=dict(image_size=224, layers=12, width=768, patch_size=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12),
)
CASES = {
    "open_clip, small, gelu": ("open_clip", SMALL, {}),
    "open_clip, small, quick_gelu": ("open_clip-quickgelu", SMALL, dict(quick_gelu=True)),
    "OpenAI's names, small, quick_gelu": ("openai-clip", SMALL, dict(quick_gelu=True)),
    "open_clip, small, apart and with a bias": ("open_clip", SMALL, dict(init_logit_bias=-10.0)),
    "open_clip, B/16, gelu": ("open_clip", B16, {}),
}


def make(config: dict, **kwargs):
    """An open_clip model with random weights, and pictures and texts for it."""
    kind = open_clip.model.CustomTextCLIP if "init_logit_bias" in kwargs else open_clip.model.CLIP
    model = kind(**config, **kwargs, output_dict=True).eval()
    two_towers.randomise(model)
    text = config["text_cfg"]
    return model, two_towers.batch(config["vision_cfg"]["image_size"], text["vocab_size"], text["context_length"])


def saved(model, kind: str, folder):
    """A file as each code base writes it."""
    state = model.state_dict()
    if kind == "openai-clip":
        state |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(12)}
    elif "logit_bias" in state:  # a checkpoint of open_clip's training
        state = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def loss_of(out):
    if "logit_bias" in out:
        return open_clip.loss.SigLipLoss()(**out)
    return open_clip.loss.ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])


@pytest.mark.parametrize("name", CASES)
def test_open_clip(name, tmp_path):
    kind, config, kwargs = CASES[name]
    model, batch = make(config, **kwargs)
    ours = two_towers.Ours(kind, saved(model, kind, tmp_path), batch, weigh=config is B16)
    assert not ours.found.report.missing
    out = model(two_towers.torch_pictures(batch["image"], "clip"), torch.from_numpy(batch["text"]).long())
    for stream in ("image", "text"):
        close(name, f"{stream} embedding", ours.outputs["embed"][stream], out[f"{stream}_features"].detach().numpy())
    scores = out["image_features"] @ out["text_features"].T
    loss = loss_of(out)
    close(name, "logits", ours.outputs["embed"]["image"] @ ours.outputs["embed"]["text"].T, scores.detach().numpy())
    close(name, "loss", ours.outputs["loss"], loss.detach().numpy())
    what, of = "loss", loss
    if config is B16:
        what, of = "embeddings", two_towers.weighed(out["image_features"], out["text_features"])
    theirs = ours.theirs_as_ours(two_towers.gradients(model, of))
    close(name, f"{what}, all parameters", ours.gradient, theirs, kind="gradient")


def test_a_scripted_archive_of_openai_is_read(tmp_path):
    """OpenAI's files are TorchScript: a program with the weights; the program is not run."""
    model, batch = make(SMALL, quick_gelu=True)
    plain = two_towers.Ours("openai-clip", saved(model, "openai-clip", tmp_path), batch)
    pictures = two_towers.torch_pictures(batch["image"], "clip")
    model.output_dict = False
    args = pictures, torch.from_numpy(batch["text"]).long()
    scripted = torch.jit.trace_module(model, {"forward": args}, check_trace=False)
    scripted.save(tmp_path / "scripted.pt")
    again = two_towers.Ours("openai-clip", tmp_path / "scripted.pt", batch)
    close(
        "openai/CLIP, TorchScript archive",
        "image embedding",
        again.outputs["embed"]["image"],
        plain.outputs["embed"]["image"],
        rtol=0,
    )


@pytest.mark.parametrize("sides", [(4, 6), (7, 4), (14, 24), (16, 14)])
def test_positions_are_interpolated_as_open_clip_does(sides):
    old, new = sides
    table = torch.randn(old * old, 8, generator=torch.Generator().manual_seed(0))
    image = table.reshape(1, old, old, 8).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(
        image, size=(new, new), mode="bicubic", antialias=True, align_corners=False
    )
    theirs = theirs.permute(0, 2, 3, 1).reshape(new * new, 8).numpy()
    close("open_clip, resize_pos_embed", f"{old}x{old} to {new}x{new}", positions.grid(table.numpy(), new), theirs)
