"""SigLIP against transformers.SiglipModel: same weights, forward and gradients."""

import numpy as np
import pytest

from maeclip_jax.data import tokenizer
from maeclip_jax.errors import UserError
from tests.data.test_tokenizer import SPECS
from tests.parity import two_towers
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: make test-parity")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")

TOWER = dict(hidden_size=32, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4)
# Not with white space in front, of which transformers leaves a word of its own.
CAPTIONS = ("A dog's ball, left of the cube!", "photo: DSC_01.jpg", "two   cats ", "¿qué? a<b & 100% naïve — fine...")
CONFIGS = {
    "small": dict(
        text_config=TOWER | dict(vocab_size=50, max_position_embeddings=12, projection_size=32),
        vision_config=TOWER | dict(image_size=32, patch_size=8),
    ),
    "B/16": dict(text_config={}, vision_config={}),
}


def make(text_config: dict, vision_config: dict):
    """A SiglipModel with random weights; texts are filled with their end, but one has 0 for SigLIP 2's padding."""
    text_config = text_config | dict(bos_token_id=0, eos_token_id=1)
    config = transformers.SiglipConfig(
        text_config=text_config, vision_config=vision_config, attn_implementation="eager"
    )
    model = transformers.SiglipModel(config).eval()
    two_towers.randomise(model)
    with torch.no_grad():
        model.logit_scale.fill_(2.3), model.logit_bias.fill_(-5.0)
    text = config.text_config
    batch = two_towers.batch(config.vision_config.image_size, text.vocab_size, text.max_position_embeddings)
    fill = np.array([1, 1, 0])[:, None]
    return model, batch | dict(text=np.where(batch["text"] == 0, fill, batch["text"]).astype(np.int32))


@pytest.mark.parametrize("name", CONFIGS)
def test_siglip(name, tmp_path):
    model, batch = make(**CONFIGS[name])
    model.save_pretrained(tmp_path)
    pictures = two_towers.torch_pictures(batch["image"], "half")
    out = model(pixel_values=pictures, input_ids=torch.from_numpy(batch["text"]).long(), return_loss=True)
    ours = two_towers.Ours("hf-siglip", tmp_path, batch, weigh=name == "B/16")
    assert not ours.found.report.unused and not ours.found.report.missing
    reference = f"transformers.SiglipModel, {name}"
    for stream, part in (("image", out.vision_model_output), ("text", out.text_model_output)):
        tokens = part.last_hidden_state.detach().numpy()
        close(reference, f"{stream} tokens", ours.outputs["encode"][stream].x, tokens)
        embed = out[f"{stream}_embeds"].detach().numpy()
        close(reference, f"{stream} embedding", ours.outputs["embed"][stream], embed)
    close(reference, "loss", ours.outputs["loss"], out.loss.detach().numpy())
    what, of = (
        ("loss", out.loss) if name == "small" else ("embeddings", two_towers.weighed(out.image_embeds, out.text_embeds))
    )
    theirs = ours.theirs_as_ours(two_towers.gradients(model, of))
    close(reference, f"{what}, all parameters", ours.gradient, theirs, kind="gradient")


def test_texts_as_siglips_tokenizer_has_them():
    spec = SPECS["bpe_eos"] | dict(fill="eos", canonical=True)
    texts = [*CAPTIONS, *(c.upper() + " " + c for c in CAPTIONS)]
    try:
        ours = tokenizer.make(spec)
    except UserError as e:
        pytest.skip(str(e))
    theirs = transformers.SiglipTokenizer(vocab_file=spec["path"])
    for text in texts:
        want = theirs([text], padding="max_length", max_length=16, truncation=True)["input_ids"][0]
        assert ours(text, 16).tolist() == want, text
