"""CLIP against transformers.CLIPModel: same weights, forward and gradients."""

import pytest

from tests.parity import two_towers
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: make test-parity")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")

TOWER = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
CONFIGS = {
    "small, quick_gelu": dict(
        text=TOWER | dict(vocab_size=50, max_position_embeddings=12),
        vision=TOWER | dict(hidden_size=48, image_size=32, patch_size=8),
        projection_dim=16,
    ),
    "small, gelu": dict(
        text=TOWER | dict(vocab_size=50, max_position_embeddings=12, hidden_act="gelu"),
        vision=TOWER | dict(image_size=32, patch_size=8, hidden_act="gelu"),
        projection_dim=16,
    ),
    "B/16, quick_gelu": dict(
        text=dict(vocab_size=49408, hidden_size=512, intermediate_size=2048, num_attention_heads=8),
        vision=dict(patch_size=16),
        projection_dim=512,
    ),
}


def make(text: dict, vision: dict, projection_dim: int):
    """A CLIPModel with random weights, and pictures and texts for it."""
    last = text["vocab_size"] - 1
    config = transformers.CLIPConfig(
        text_config=text | dict(eos_token_id=last, bos_token_id=last - 1),
        vision_config=vision,
        projection_dim=projection_dim,
        attn_implementation="eager",
    )
    model = transformers.CLIPModel(config).eval()
    two_towers.randomise(model)
    side, length = config.vision_config.image_size, config.text_config.max_position_embeddings
    return model, two_towers.batch(side, last + 1, length)


@pytest.mark.parametrize("name", CONFIGS)
def test_clip(name, tmp_path):
    model, batch = make(**CONFIGS[name])
    model.save_pretrained(tmp_path)
    pictures = two_towers.torch_pictures(batch["image"], "clip")
    out = model(pixel_values=pictures, input_ids=torch.from_numpy(batch["text"]).long(), return_loss=True)
    ours = two_towers.Ours("hf-clip", tmp_path, batch)
    assert not ours.found.report.unused and not ours.found.report.missing

    reference = f"transformers.CLIPModel, {name}"
    norm = model.vision_model.post_layernorm
    tokens = norm(out.vision_model_output.last_hidden_state).detach().numpy()
    made = ours.outputs["encode"]
    close(reference, "image tokens after the final norm", made["image"].x, tokens[:, 1:])
    close(reference, "class token", made["image"].cls, tokens[:, 0])
    words = ~made["text"].pad
    close(reference, "text tokens", made["text"].x[words], out.text_model_output[0].detach().numpy()[words])
    for stream in ("image", "text"):
        close(reference, f"{stream} embedding", ours.outputs["embed"][stream], out[f"{stream}_embeds"].detach().numpy())
    close(reference, "loss", ours.outputs["loss"], out.loss.detach().numpy())
    theirs = ours.theirs_as_ours(two_towers.gradients(model, out.loss))
    close(reference, "loss, all parameters", ours.gradient, theirs, kind="gradient")
