"""CLIP against open_clip, whose files are named as OpenAI's: same weights, forward and gradients."""

import json

import pytest

import maeclip_jax as mc
from maeclip_jax import interop
from maeclip_jax.errors import UserError
from maeclip_jax.interop import open_clip_timm, openai_clip, positions
from tests.parity import two_towers
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch and open_clip: make test-parity")
open_clip = pytest.importorskip("open_clip", reason="parity needs torch and open_clip: make test-parity")

SMALL = dict(
    embed_dim=24,
    vision_cfg=dict(image_size=32, layers=3, width=128, patch_size=8),
    text_cfg=dict(context_length=12, vocab_size=49408, width=64, heads=1, layers=2),
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
    heads = dict(image=2, text=1) if config is SMALL and kind != "openai-clip" else None
    ours = two_towers.Ours(kind, saved(model, kind, tmp_path), batch, weigh=config is B16, heads=heads)
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


def compared(name: str, model, batch, found, stats: str = "clip"):
    """Both embeddings of a model of open_clip and of what was loaded of it."""
    with torch.no_grad():
        image = model.encode_image(two_towers.torch_pictures(batch["image"], stats), normalize=True).numpy()
        text = model.encode_text(torch.from_numpy(batch["text"]).long(), normalize=True).numpy()
    for stream, theirs in (("image", image), ("text", text)):
        close(name, f"{stream} embedding", two_towers.embedded(found, batch)[stream], theirs)


@pytest.mark.parametrize("wide,heads", [(80, 2), (88, 2), (104, 2), (112, 2)])
def test_heads_of_other_widths(wide, heads, tmp_path):
    """As ViT-H, -g, -bigG and -e have them: by the config beside the file, or as the caller says."""
    vision = SMALL["vision_cfg"] | dict(width=wide * heads, head_width=wide)
    config = SMALL | dict(vision_cfg=vision, text_cfg=SMALL["text_cfg"] | dict(heads=2))
    model, batch = make(config)
    path = saved(model, "open_clip", tmp_path)
    name = f"open_clip, {wide} numbers a head"
    compared(f"{name}, said", model, batch, interop.load("open_clip", path, heads=dict(image=heads, text=2)))
    with pytest.raises(UserError, match=f"how many heads the image tower has, which is {wide * heads} wide; put its "):
        interop.load("open_clip", path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config)))
    compared(f"{name}, config beside", model, batch, interop.load("open_clip", path))


@pytest.mark.parametrize("wrap", ["compiled", "parallel", "both", "inner"])
def test_wrapped_modules_and_a_scale_with_an_axis(wrap, tmp_path):
    model, batch = make(SMALL, nonscalar_logit_scale=True, init_logit_bias=-3.0)
    assert model.logit_scale.shape == (1,)
    wrapped = model
    if wrap == "inner":
        wrapped.visual.transformer = torch.compile(wrapped.visual.transformer)
    if wrap in ("compiled", "both"):
        wrapped = torch.compile(wrapped)
    if wrap in ("parallel", "both"):
        wrapped = torch.nn.DataParallel(wrapped)
    names = list(wrapped.state_dict())
    assert all(wrap != "both" or n.startswith("module._orig_mod.") for n in names)
    torch.save({"epoch": 1, "state_dict": wrapped.state_dict()}, tmp_path / "epoch_1.pt")
    found = interop.load("open_clip", tmp_path / "epoch_1.pt", heads=dict(image=2, text=1))
    fresh, _ = make(SMALL, nonscalar_logit_scale=True, init_logit_bias=-3.0)
    compared(f"open_clip, names of a module that is {wrap}", fresh, batch, found)
    close("open_clip, scale of shape (1,)", "scale", found.params["log_logit_scale"], model.logit_scale.item())


TIMM = dict(
    embed_dim=48,
    init_logit_bias=-10,
    vision_cfg=dict(image_size=32, timm_model_name="vit_base_patch16_siglip_224", timm_pool="map", timm_proj="none"),
    text_cfg=dict(
        context_length=12, vocab_size=50, width=32, heads=4, layers=2, no_causal_mask=True, proj_bias=True,
        pool_type="last", norm_kwargs=dict(eps=1e-6), hf_tokenizer_name="timm/x",
        tokenizer_kwargs=dict(clean="canonicalize"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("projection", ["none", "linear"])
def test_towers_of_timm(projection, tanh, tmp_path, monkeypatch):
    """SigLIP of open_clip, small: the tower that timm registers by this name, with fewer and narrower layers."""
    timm = pytest.importorskip("timm", reason="parity needs timm: make test-parity")
    registered = timm.create_model

    def small(name, **settings):
        return registered(name, embed_dim=48, depth=2, img_size=32, patch_size=8, **settings)

    monkeypatch.setattr(timm, "create_model", small)
    config = TIMM | dict(embed_dim=48 if projection == "none" else 24)
    config["vision_cfg"] = TIMM["vision_cfg"] | dict(timm_proj=projection, timm_proj_bias=True)
    if tanh:
        config["vision_cfg"] |= dict(timm_model_name="vit_base_patch32_siglip_256")
        config["text_cfg"] = TIMM["text_cfg"] | dict(act_kwargs=dict(approximate="tanh"))
    model = open_clip.model.CustomTextCLIP(**config, output_dict=True).eval()
    two_towers.randomise(model)
    batch = two_towers.batch(32, 50, 12)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="the image tower is one of timm, whose heads and activation the file does not"):
        interop.load("open_clip", tmp_path)
    half = dict(mean=[0.5] * 3, std=[0.5] * 3, resize_mode="squash", interpolation="bicubic")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=half)))
    name = f"open_clip, tower of timm, projection {projection}, {'tanh' if tanh else 'exact'} GELU"
    ours = two_towers.Ours("open_clip", tmp_path, batch)
    config = ours.found.config
    assert not ours.found.report.unused and not ours.found.report.missing
    assert config.preprocess.image == "decode|resize(32)" and config.model.stats == "half"
    out = model(two_towers.torch_pictures(batch["image"], "half"), torch.from_numpy(batch["text"]).long())
    for stream in ("image", "text"):
        close(name, f"{stream} embedding", ours.outputs["embed"][stream], out[f"{stream}_features"].detach().numpy())
    loss = loss_of(out)
    close(name, "loss", ours.outputs["loss"], loss.detach().numpy())
    theirs = ours.theirs_as_ours(two_towers.gradients(model, loss))
    close(name, "loss, all parameters", ours.gradient, theirs, kind="gradient")


def test_pictures_that_the_patch_does_not_divide(tmp_path, monkeypatch):
    """So400m/14 at 384, small: from pictures to embeddings, with a checkpoint of a wrapped module."""
    timm = pytest.importorskip("timm", reason="parity needs timm: make test-parity")
    registered = timm.create_model

    def small(name, **settings):
        return registered(name, **settings | dict(embed_dim=48, depth=2, img_size=38, patch_size=8))

    monkeypatch.setattr(timm, "create_model", small)
    config = TIMM | dict(vision_cfg=TIMM["vision_cfg"] | dict(image_size=38))
    model = open_clip.model.CustomTextCLIP(**config).eval()
    two_towers.randomise(model)
    state = {f"_orig_mod.module.{k}": v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    half = dict(mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash")
    said = dict(model_cfg=config, preprocess_cfg=half | dict(size=[38, 38], interpolation="bicubic"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    theirs = open_clip.transform.image_transform(38, is_train=False, **half)
    pictures = [two_towers.sketch(*size) for size in ((96, 64), (60, 120), (51, 51))]
    with torch.no_grad():
        want = model.encode_image(torch.stack([theirs(p) for p in pictures]), normalize=True).numpy()
    ours = mc.load(f"open_clip:{tmp_path}")
    assert ours.config.preprocess.image == "decode|resize(38)|corner_crop(32)"
    close("open_clip, 38 pixels in patches of 8", "image embedding", ours.embed(images=pictures)["image"], want)


@pytest.mark.parametrize("name", open_clip_timm.MODELS)
def test_what_timm_registers(name):
    """Heads and activation by name, which no array shows."""
    timm = pytest.importorskip("timm", reason="parity needs timm: make test-parity")
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    kinds = {"gelu": torch.nn.GELU, "gelu_tanh": timm.layers.GELUTanh}
    heads, activation = open_clip_timm.MODELS[name]
    for part, there in ((model.blocks[0].attn, model.blocks[0].mlp), (model.attn_pool, model.attn_pool.mlp)):
        assert part.num_heads == heads and type(there.act) is kinds[activation]
    assert model.norm.eps == model.attn_pool.norm.eps == 1e-6


def test_published_sizes_are_open_clip_s():
    """The table of heads is all of open_clip's ViTs, and each of its sizes belongs to one number of heads."""
    found = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        plain = "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in config
        if plain or not isinstance(vision["layers"], int):
            continue
        assert text["width"] == 64 * text["heads"]
        sizes = (vision["width"], vision["layers"], text["width"], text["layers"])
        found.setdefault(sizes, set()).add(vision["width"] // vision.get("head_width", 64))
    assert {k: {v} for k, v in openai_clip.PUBLISHED.items()} == found
