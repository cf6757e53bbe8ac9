"""The pixels a model sees: ours beside open_clip's and transformers' preprocessing, on real photographs."""

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import ops
from maeclip_jax.nn import pixels
from tests.data.photos import photos
from tests.parity.compare import ROWS

STEP = 1 / 255  # one of 255 levels of grey


def ours(words: str, path, stats: str) -> np.ndarray:
    record = {"image": path.read_bytes()}
    made = ops.parse(f'{words}|keep("image")')(record, np.random.default_rng(0))["image"]
    return np.asarray(pixels.normalise(made[None], stats))[0]


def same_pixels(reference: str, words: str, stats: str, theirs, some=lambda image: True) -> None:
    """Fails if a pixel of a photograph, in 0..1, differs by more than STEP. `theirs`: RGB picture -> [3, H, W]."""
    std, worst = np.array(pixels.STATS[stats][1]), 0.0
    chosen = {path: image for path in photos() if some(image := Image.open(path).convert("RGB"))}
    assert len(chosen) >= 10
    for path, image in chosen.items():
        want = np.asarray(theirs(image)).transpose(1, 2, 0)
        worst = max(worst, np.abs((ours(words, path, stats) - want) * std).max())
    ROWS.append(
        dict(reference=reference, what="pixels in 0..1", kind="forward", absolute=worst, relative=worst, rtol=STEP)
    )
    assert worst <= STEP + 1e-6, f"{worst * 255:.2f} levels"


@pytest.mark.parametrize("side", [224, 96])
def test_clip_of_open_clip(side):
    open_clip = pytest.importorskip("open_clip", reason="parity needs open_clip: make test-parity")
    theirs = open_clip.transform.image_transform(side, is_train=False)
    words = f"decode|resize_small({side})|center_crop({side})"
    same_pixels(f"open_clip.image_transform({side})", words, "clip", theirs)


def test_siglip_of_open_clip():
    open_clip = pytest.importorskip("open_clip", reason="parity needs open_clip: make test-parity")
    theirs = open_clip.transform.image_transform(
        224, is_train=False, resize_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    same_pixels("open_clip.image_transform(squash)", "decode|resize(224)", "half", theirs)


def test_clip_of_transformers():
    """Its middle of an odd number of spare pixels is rounded down, torchvision's and ours to the even one."""
    transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")
    kinds = [k for k in ("CLIPImageProcessorPil", "CLIPImageProcessor") if hasattr(transformers, k)]
    process = getattr(transformers, kinds[0])(size=dict(shortest_edge=224), crop_size=224)

    def middle_is_the_same(image) -> bool:
        spare = int(224 * max(image.size) / min(image.size)) - 224
        return spare // 2 == round(spare / 2)

    words = "decode|resize_small(224)|center_crop(224)"
    theirs = lambda image: process(image)["pixel_values"][0]  # noqa: E731
    same_pixels(f"transformers.{kinds[0]}", words, "clip", theirs, middle_is_the_same)
