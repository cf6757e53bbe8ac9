import json
from types import SimpleNamespace

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals.pictures import pixels_of_patches, thumbnail
from maeclip_jax.evals.reconstruction import Reconstruction
from tests.evals.found import values


def filler(fake, data, image=None, text=None, norm_pix=False):
    """A fake that fills pictures with the value `image` and words with the id `text`; hides patch 0 and word 0."""
    objective = SimpleNamespace(reconstruct=lambda: None, norm_pix=norm_pix)
    context = fake(data, objective=objective)
    context.tokenizer.words += ["red", "blue", "cube"]

    def reconstruct(params, batch, seed):
        context.calls.append(seed)
        rows, out = context.rows(batch), {}
        if image is not None:
            b, h, w, _ = rows["image"].shape
            out["image"] = np.full((b, h, w, 3), image, np.float32)
            out["image_mask"] = np.arange(4)[None].repeat(b, 0) == 0
        if text is not None:
            out["text"] = np.full_like(rows["text"], text)
            out["text_mask"] = np.arange(rows["text"].shape[1])[None].repeat(len(rows["text"]), 0) != 1
        return out

    context.reconstruct = reconstruct
    return context


def checker(n):
    """[n, 4, 4, 3]: the top left patch of 2x2 is 255, the others 51."""
    out = np.full((n, 4, 4, 3), 51, np.uint8)
    out[:, :2, :2] = 255
    return out


def test_pixel_error_and_pasting(fake):
    context = filler(fake, {"image": checker(5)}, image=0.0)
    got = values(Reconstruction(context, data={}, batch_size=2, pictures=3, seed=7).run(None))
    assert got["masked_mse"] == pytest.approx(1.0) and got["visible_mean_mse"] == pytest.approx(0.8**2)
    assert got["baseline_masked_mse"] == got["patch_mean_mse"] == 0  # each patch here is of one colour
    assert context.calls == [7, 8, 9]  # the same masks every time, other ones for each batch
    # 3 rows of 4 tiles of 4 pixels with gaps of 2.
    assert got["pictures"].shape == (3 * 4 + 2 * 2, 4 * 4 + 3 * 2, 3)
    original, masked, filled, mean = (got["pictures"][0, x, 0] for x in (0, 6, 12, 18))
    assert (original, masked, filled, mean) == (255, 128, 0, 255)
    assert (got["pictures"][3, [0, 6, 12, 18]] == 51).all()  # visible patches as they are
    json.dumps(got["sheet"])


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_patch_s_own_mean_colour_is_what_pixels_are_compared_with(fake, norm_pix):
    """Per channel, whatever the targets are; what normalised ones are told is said beside the pictures."""
    image = checker(1)
    image[0, 0, 0] = 0, 255, 255
    context = filler(fake, {"image": image}, image=0.0, norm_pix=norm_pix)
    got = values(Reconstruction(context, data={}, batch_size=1).run(None))
    assert got["baseline_masked_mse"] == got["patch_mean_mse"] == pytest.approx(np.var([0, 1, 1, 1]) / 3)
    assert ("told how light" in got["sheet"]["note"]) == norm_pix


def test_words(fake):
    text = np.array([[1, 3, 1, 0], [1, 3, 2, 0], [2, 3, 0, 0]], np.int32)
    got = values(Reconstruction(filler(fake, {"text": text}, text=1), data={}, batch_size=2, captions=2).run(None))
    assert got["token_accuracy"] == pytest.approx(60)  # masked: 1, 1, 1, 2, 2; padding does not count
    assert got["baseline_token_accuracy"] == pytest.approx(60)
    assert got["captions"]["captions"] == [
        [{"true": "red", "filled": "red"}, {"true": "cube"}, {"true": "red", "filled": "red"}],
        [{"true": "red", "filled": "red"}, {"true": "cube"}, {"true": "blue", "filled": "red"}],
    ]
    assert "masked_mse" not in got and "pictures" not in got


def test_errors(fake):
    with pytest.raises(UserError, match="reconstruction needs 'image' in its batches, which hold: label"):
        values(Reconstruction(filler(fake, {"label": np.zeros(1, np.int32)}), data={}).run(None))
    with pytest.raises(UserError, match=r"one caption a picture: use tokenize\(T\)"):
        list(Reconstruction(filler(fake, {"text": np.ones((1, 2, 3), np.int32)}, text=1), data={}).run(None))
    with pytest.raises(ValueError, match="5 patches do not tile a 4x4 picture"):
        pixels_of_patches(np.ones((1, 5), bool), 4, 4)


def test_thumbnails_keep_the_shape_of_the_picture():
    tall = thumbnail(np.zeros((40, 20, 3), np.uint8), 10)
    assert (tall[:, 3:7] == 0).all() and (tall[:, [0, 9]] == 255).all()
    assert thumbnail(np.zeros((1, 300, 3), np.uint8), 10).shape == (10, 10, 3)
    assert (thumbnail(np.zeros((8, 8, 3), np.uint8), 20)[2:18, 2:18] == 0).all()  # enlarged twice, not 2.5 times
