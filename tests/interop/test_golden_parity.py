"""Parity without torch: what tests/parity/make_golden.py wrote of transformers' models, forward and gradients."""

import jax
import numpy as np
import pytest

from maeclip_jax import interop
from maeclip_jax.interop import convert, export
from tests.parity import make_golden, two_towers
from tests.parity.compare import close
from tests.parity.masked import ours_on

KINDS = sorted(p.stem for p in make_golden.FOLDER.glob("*.npz"))


def part(held, name: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{name}/"): held[k] for k in held if k.startswith(f"{name}/")}


@pytest.fixture
def golden(request, tmp_path):
    """(folder as the Hub has it, inputs, outputs, gradient) of a kind."""
    held = np.load(make_golden.FOLDER / f"{request.param}.npz")
    name = "open_clip_config.json" if request.param == "open_clip" else "config.json"
    (tmp_path / name).write_text(str(held["config"]))
    (tmp_path / "model.safetensors").write_bytes(b"".join(export.safetensors(part(held, "weights"))))
    return tmp_path, part(held, "in"), part(held, "out"), part(held, "gradient")


def theirs_as_ours(kind: str, found, gradient) -> dict[str, np.ndarray]:
    source = interop.source_of(kind)
    return convert.into_ours(source, convert.renamed(gradient, source), found.config.to_dict(), "gradient")[0]


def test_every_kind_has_its_file_and_none_is_large():
    assert set(KINDS) == set(make_golden.MAKERS)
    sizes = [p.stat().st_size for p in make_golden.FOLDER.glob("*")]
    assert max(sizes) < 300_000 and sum(sizes) < 3_000_000


@pytest.mark.parametrize("golden", ["hf-vit-mae"], indirect=True)
def test_mae(golden):
    folder, inputs, want, gradient = golden
    found = interop.load("hf-vit-mae", folder)
    kept, made, ours = ours_on(found, inputs["image"], inputs["noise"])
    np.testing.assert_array_equal(kept.mask_BxN, want["mask"].astype(bool))
    for name in ("predicted", "loss"):
        close("golden hf-vit-mae", name, made[name], want[name])
    close("golden hf-vit-mae", "gradient", ours, theirs_as_ours("hf-vit-mae", found, gradient), kind="gradient")


@pytest.mark.parametrize("golden", [k for k in KINDS if k != "hf-vit-mae"], indirect=True)
def test_two_towers(golden, request):
    folder, inputs, want, gradient = golden
    kind = request.node.callspec.params["golden"]
    ours = two_towers.Ours(kind, folder, jax.tree.map(np.asarray, inputs))
    for stream in ("image", "text"):
        close(f"golden {kind}", stream, ours.outputs["embed"][stream], want[stream])
    close(f"golden {kind}", "loss", ours.outputs["loss"], want["loss"])
    close(f"golden {kind}", "gradient", ours.gradient, ours.theirs_as_ours(gradient), kind="gradient")
