"""Folders that transformers 5 saves whole (weights, processor, tokenizer), beside what its classes make of them."""

import json

import numpy as np
import pytest

import maeclip_jax as mc
from maeclip_jax import interop
from maeclip_jax.data import ops, tokenizer
from maeclip_jax.errors import UserError
from maeclip_jax.nn import pixels
from tests.data.test_tokenizer import SPECS
from tests.parity import test_hf_clip_parity, test_siglip_parity, test_vit_mae_parity, two_towers
from tests.parity.compare import ROWS, close
from tests.parity.masked import ours_on

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: make test-parity")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")
if transformers.__version__ < "5":
    pytest.skip("these folders are those of transformers 5", allow_module_level=True)

STEP = 1 / 255
TEXTS = (
    "ab cd",
    "AB: cd, ab!",
    "cd-ab (cd) ab_cd",
    "ab cd " * 20,
    "d'oh; caf\u00e9 \u65e5",
)


def same_pixels(name: str, config, process) -> None:
    """What ours makes of pictures by `config`, within one level of 255 of what `process` makes of them."""
    words, worst = ops.parse(f'{config.preprocess.image}|keep("image")'), 0.0
    side, std = config.model.image_tower.size, np.array(pixels.STATS[config.model.stats][1])
    # An even number of spare pixels: theirs rounds the middle of an odd one down.
    pictures = [two_towers.sketch(*size) for size in ((96, 64), (60, 120), (51, 51))]
    for image in pictures:
        made = words({"image": np.asarray(image)}, np.random.default_rng(0))["image"]
        assert made.shape == (side, side, 3)
        want = np.asarray(process(image)["pixel_values"][0]).transpose(1, 2, 0)[:side, :side]
        worst = max(worst, np.abs((np.asarray(pixels.normalise(made[None], config.model.stats))[0] - want) * std).max())
    ROWS.append(dict(reference=name, what="pixels in 0..1", kind="forward", absolute=worst, relative=worst, rtol=STEP))
    assert worst <= STEP + 1e-6, f"{worst * 255:.2f} levels"


def clip_words():
    letters = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    names = [*letters, *(c + "</w>" for c in letters), "ab", "ab</w>", "cd</w>", "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer({n: i for i, n in enumerate(names)}, [("a", "b"), ("a", "b</w>"), ("c", "d</w>")])


HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.mark.parametrize("resample", [2, 3])
def test_clip(resample, tmp_path):
    words = clip_words()
    config = test_hf_clip_parity.CONFIGS["small, quick_gelu"]
    config = config | dict(text=config["text"] | dict(vocab_size=len(words), max_position_embeddings=20))
    model, batch = test_hf_clip_parity.make(**config)
    process = transformers.CLIPImageProcessorPil(size=dict(shortest_edge=36), crop_size=32, resample=resample, **HALF)
    transformers.CLIPProcessor(process, words).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists() and not (tmp_path / "merges.txt").exists()
    found = interop.load("hf-clip", tmp_path)
    assert found.config.model.stats == "half"
    same_pixels(f"CLIPProcessor of transformers 5, resample {resample}", found.config, process)
    ours = mc.load(f"hf-clip:{tmp_path}").preprocess
    for text in TEXTS:
        ids = words([text], truncation=True, max_length=20)["input_ids"][0]
        assert ours.texts(text)[0][: len(ids)].tolist() == ids, text
    out = model(
        pixel_values=two_towers.torch_pictures(batch["image"], "half"), input_ids=torch.from_numpy(batch["text"]).long()
    )
    for stream, theirs in (("image", out.image_embeds), ("text", out.text_embeds)):
        name = "CLIPModel and CLIPProcessor of transformers 5"
        close(name, f"{stream} embedding", two_towers.embedded(found, batch)[stream], theirs.detach().numpy())


def siglip2_words():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    pieces += [*"abcdefghijklmnopqrstuvwxyz:,!-_()';", "ab", "cd", "\u2581ab", "\u2581cd"]
    merges = [("a", "b"), ("c", "d"), ("\u2581", "ab"), ("\u2581", "cd")]
    return transformers.Siglip2Tokenizer({p: i for i, p in enumerate(pieces)}, merges)


@pytest.mark.parametrize("second", [False, True], ids=["SigLIP", "SigLIP 2"])
def test_siglip(second, tmp_path):
    """The two have one architecture and opposite rules of texts; a 38 pixel picture has 4 patches of 8 a side."""
    settings = test_siglip_parity.CONFIGS["small"]
    settings = settings | dict(vision_config=settings["vision_config"] | dict(image_size=38))
    process = transformers.SiglipImageProcessorPil(size=dict(height=38, width=38), resample=2 if second else 3)
    if second:
        words = siglip2_words()
    elif not (tmp_path.exists() and _there(SPECS["bpe_eos"]["path"])):
        pytest.skip(f"{SPECS['bpe_eos']['path']} is not there; set MAECLIP_SHARED_DATA")
    else:
        words = transformers.SiglipTokenizer(vocab_file=SPECS["bpe_eos"]["path"])
    settings["text_config"] = settings["text_config"] | dict(vocab_size=len(words) + 2, max_position_embeddings=16)
    model, batch = test_siglip_parity.make(**settings)
    transformers.SiglipProcessor(process, words).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    found = interop.load("hf-siglip", tmp_path)
    name = f"SiglipModel {1 + second} of transformers 5"
    same_pixels(name, found.config, process)
    pictures = two_towers.torch_pictures(batch["image"], "half")
    assert pictures.shape[-1] == 38
    out = model(pixel_values=pictures, input_ids=torch.from_numpy(batch["text"]).long())
    made = two_towers.embedded(found, batch | dict(image=batch["image"][:, :32, :32]))
    close(name, "image embedding, upper left of it", made["image"], out.image_embeds.detach().numpy())
    close(name, "text embedding", made["text"], out.text_embeds.detach().numpy())
    ours = mc.load(f"hf-siglip:{tmp_path}").preprocess
    for text in TEXTS:
        if second:  # as it was trained: padding on the right, the end of text stays where a text is cut
            ids = [*words(text, add_special_tokens=False)["input_ids"][:15], words.eos_token_id]
            ids += [words.pad_token_id] * (16 - len(ids))
        else:
            ids = words([text], padding="max_length", max_length=16, truncation=True)["input_ids"][0]
        assert ours.texts(text)[0].tolist() == ids, text
    with_punctuation = [ours.texts(t)[0].tolist() for t in ("ab, cd!", "ab cd")]
    assert (with_punctuation[0] != with_punctuation[1]) == second


def _there(path) -> bool:
    from pathlib import Path

    return Path(path).exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mae_in_half_precision(dtype, tmp_path):
    """Its positions are computed exactly: theirs is compared with them put back, all else as the file has it."""
    model, pictures, torch_pictures, noise = test_vit_mae_parity.make(test_vit_mae_parity.SMALL)
    half = model.to(getattr(torch, dtype))
    half.save_pretrained(tmp_path)
    process = transformers.ViTImageProcessorPil(
        size=dict(height=32, width=32), image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    process.save_pretrained(tmp_path)
    found = interop.load("hf-vit-mae", tmp_path)
    assert found.config.model.image_tower.position == "sincos"
    assert found.config.preprocess.image == 'decode|resize(32,method="bilinear")'
    same_pixels("ViTImageProcessor of transformers 5", found.config, process)
    wide = half.float()
    for p in (wide.vit.embeddings.position_embeddings, wide.decoder.decoder_pos_embed):
        p.data.copy_(test_vit_mae_parity.their_positions(p))
    out = wide(torch_pictures, noise=torch.from_numpy(noise))
    made = ours_on(found, pictures, noise)[1]
    name = f"transformers.ViTMAEForPreTraining, saved in {dtype}"
    close(name, "reconstruction of all patches", made["predicted"], out.logits.detach().numpy())
    close(name, "loss", made["loss"], out.loss.detach().numpy())


@pytest.mark.parametrize("norm_pix", [False, True])
def test_what_the_run_says_in_a_pth(norm_pix, tmp_path):
    """facebookresearch/mae's own file: half precision, DDP's names and the Namespace of its arguments."""
    import argparse

    timm = pytest.importorskip("timm", reason="parity needs timm: make test-parity")
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=768, depth=1, num_heads=12, num_classes=0, global_pool="token"
    ).eval()
    two_towers.randomise(model)
    model.pos_embed.data.copy_(test_vit_mae_parity.their_positions(model.pos_embed))
    args = argparse.Namespace(
        model="mae_vit_base_patch16", norm_pix_loss=norm_pix, mask_ratio=0.6, lr=None, dist_url=""
    )
    state = {f"module._orig_mod.{k}": v.half() for k, v in model.state_dict().items()}
    torch.save({"model": state, "epoch": 3, "args": args}, tmp_path / "checkpoint-3.pth")
    found = interop.load("mae", tmp_path / "checkpoint-3.pth")
    assert found.config.model.norm_pix == norm_pix and found.config.model.mask.image == 0.6
    assert found.config.model.image_tower.heads == 12 and found.config.model.image_tower.position == "sincos"
    wide = model.half().float()
    wide.pos_embed.data.copy_(test_vit_mae_parity.their_positions(wide.pos_embed))
    pictures = two_towers.batch(32, 9, 8)["image"]
    tokens = wide.forward_features(two_towers.torch_pictures(pictures, "imagenet")).detach().numpy()
    ours = mc.objectives.make("mae", found.config.model).apply(
        {"params": found.params}, {"image": pictures}, method="encode"
    )["image"]
    close("facebookresearch/mae in half precision", "image tokens", ours.x, tokens[:, 1:])


def test_files_of_other_words_and_processors_are_one_line(tmp_path):
    words = clip_words()
    words.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    there = json.loads(path.read_text())
    for change, message in (
        (dict(merges=[]), "is not the tokenizer.json of a CLIP: it has no merges of words that end in </w>"),
        (dict(vocab={"a": 0}), "is not a CLIP vocabulary: its ids are not those of its merges"),
    ):
        path.write_text(json.dumps(there | dict(model=there["model"] | change)))
        with pytest.raises(UserError, match=message):
            tokenizer.make(dict(type="clip", path=str(path)))
