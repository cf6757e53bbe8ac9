"""Small files of what reference implementations compute, so that `make test` guards parity without torch.

    python -m tests.parity.make_golden [kinds]  needs extra [parity]; rewrites tests/parity/golden/<kind>.npz

A file holds one model with random weights: `config` (its config.json), `weights/<their name>`, `in/...`, `out/...` and
`gradient/<their name>` of the loss. tests/interop/test_golden_parity.py loads it as it would load a folder of
`transformers` and compares. Everything is seeded; run it again only if a configuration below changes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
TOWER = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3)
CLIP = dict(
    text=TOWER | dict(vocab_size=40, max_position_embeddings=10),
    vision=TOWER | dict(image_size=16, patch_size=4),
    projection_dim=12,
)
SIGLIP = dict(
    text_config=TOWER
    | dict(hidden_size=20, num_attention_heads=2, vocab_size=40, max_position_embeddings=10, projection_size=16),
    vision_config=TOWER | dict(hidden_size=16, num_attention_heads=2, image_size=16, patch_size=4),
)
OPEN_CLIP = dict(
    embed_dim=12,
    vision_cfg=dict(image_size=16, layers=2, width=20, head_width=10, mlp_ratio=2.0, patch_size=4),
    text_cfg=dict(context_length=10, vocab_size=40, width=16, heads=2, layers=2, mlp_ratio=3.0),
)
MAE = TOWER | dict(
    image_size=16, patch_size=4, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    decoder_intermediate_size=32, norm_pix_loss=True,
)  # fmt: skip


def arrays(**parts) -> dict[str, np.ndarray]:
    """{part/name: array} of dicts of tensors or arrays."""
    return {
        f"{part}/{name}": x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)
        for part, names in parts.items()
        for name, x in names.items()
    }


def described(model) -> dict[str, np.ndarray]:
    """`config` and `weights/...`, as `transformers` saves them."""
    from maeclip_jax.interop import files

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        weights = {name: np.array(x) for name, x in files.read(folder).items()}
    return {"config": np.array(json.dumps(config))} | arrays(weights=weights)


def vit_mae() -> dict[str, np.ndarray]:
    import torch

    from tests.parity import test_vit_mae_parity as parity
    from tests.parity import two_towers

    model, pictures, theirs, noise = parity.make(MAE)
    out = model(theirs, noise=torch.from_numpy(noise))
    made = dict(mask=out.mask, predicted=out.logits, loss=out.loss)
    return described(model) | arrays(
        **{"in": dict(image=pictures, noise=noise)}, out=made, gradient=two_towers.gradients(model, out.loss)
    )


def clip() -> dict[str, np.ndarray]:
    import torch

    from tests.parity import test_hf_clip_parity as parity
    from tests.parity import two_towers

    model, batch = parity.make(**CLIP)
    pictures = two_towers.torch_pictures(batch["image"], "clip")
    out = model(pixel_values=pictures, input_ids=torch.from_numpy(batch["text"]).long(), return_loss=True)
    made = dict(image=out.image_embeds, text=out.text_embeds, loss=out.loss)
    gradient = two_towers.gradients(model, out.loss)
    return described(model) | arrays(**{"in": batch}, out=made, gradient=gradient)


def siglip() -> dict[str, np.ndarray]:
    import torch

    from tests.parity import test_siglip_parity as parity
    from tests.parity import two_towers

    model, batch = parity.make(**SIGLIP)
    pictures = two_towers.torch_pictures(batch["image"], "half")
    out = model(pixel_values=pictures, input_ids=torch.from_numpy(batch["text"]).long(), return_loss=True)
    made = dict(image=out.image_embeds, text=out.text_embeds, loss=out.loss)
    return described(model) | arrays(**{"in": batch}, out=made, gradient=two_towers.gradients(model, out.loss))


def open_clip() -> dict[str, np.ndarray]:
    import torch

    from tests.parity import test_open_clip_parity as parity
    from tests.parity import two_towers

    model, batch = parity.make(OPEN_CLIP)
    out = model(two_towers.torch_pictures(batch["image"], "clip"), torch.from_numpy(batch["text"]).long())
    loss = parity.loss_of(out)
    made = dict(image=out["image_features"], text=out["text_features"], loss=loss)
    return {"config": np.array(json.dumps(dict(model_cfg=OPEN_CLIP)))} | arrays(
        weights=model.state_dict(), **{"in": batch}, out=made, gradient=two_towers.gradients(model, loss)
    )


MAKERS = {"hf-clip": clip, "hf-siglip": siglip, "hf-vit-mae": vit_mae, "open_clip": open_clip}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for kind, make in MAKERS.items():
        if len(sys.argv) > 1 and kind not in sys.argv[1:]:
            continue
        path = FOLDER / f"{kind}.npz"
        np.savez_compressed(path, **make())
        print(f"wrote {path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
