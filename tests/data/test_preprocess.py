"""Pictures and texts from anywhere: every form of a picture gives the same pixels, and anything else is named."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import clip, vqa
from maeclip_jax.config import read
from maeclip_jax.data import ops, tokenizer
from maeclip_jax.data.preprocess import Preprocess, is_one, is_one_text, many
from maeclip_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
WORDS = tokenizer.make(dict(type="bytes"))


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def refused(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_form_of_a_picture_gives_what_an_evaluation_sees(tmp_path):
    picture, path = Image.fromarray(PIXELS), tmp_path / "a.png"
    path.write_bytes(png(picture))
    made = Preprocess("decode|resize_small(16)|center_crop(16)", 16)
    record = dict(image=path.read_bytes())
    expected = ops.parse('decode|resize_small(16)|center_crop(16)|keep("image")')(record, np.random.default_rng(0))
    assert expected["image"].shape == (16, 16, 3)
    forms = [path, str(path), path.read_bytes(), picture, PIXELS, jnp.asarray(PIXELS), picture.convert("RGBA")]
    for form in forms:
        np.testing.assert_array_equal(made.picture(form), expected["image"])
    np.testing.assert_array_equal(made.pictures(forms), [expected["image"]] * len(forms))
    np.testing.assert_array_equal(made.pictures(np.stack([PIXELS, PIXELS])), [expected["image"]] * 2)
    assert [len(b) for b in made.batches(forms, 3)] == [3, 3, 1]
    np.testing.assert_array_equal(made.pictures(path.parent.glob("*.png")), [expected["image"]])


def test_a_picture_of_the_model_s_size_is_left_alone():
    np.testing.assert_array_equal(Preprocess("decode", 40).picture(PIXELS[:, :40]), PIXELS[:, :40])
    assert Preprocess("decode|resize(8)", 8).picture(PIXELS).shape == (8, 8, 3)


def test_one_or_many():
    assert all(map(is_one, ["a.png", b"", Image.fromarray(PIXELS), PIXELS, jnp.asarray(PIXELS)]))
    assert not any(map(is_one, [["a.png"], (PIXELS,), PIXELS[None], iter(["a.png"])]))
    assert len(many(PIXELS[None])) == len(many(PIXELS)) == len(many(["a.png"])) == 1


def test_what_is_no_picture_is_named(tmp_path):
    made = Preprocess("decode|resize(8)", 8)
    text = tmp_path / "a.txt"
    text.write_text("no picture")
    begins = {
        "a picture as an array is uint8 [H, W, 3], not float64[40, 60, 3]": PIXELS / 255,
        "a picture as an array is uint8 [H, W, 3], not uint8[40, 60, 4]": np.zeros((40, 60, 4), np.uint8),
        f"picture {str(tmp_path / 'b.png')!r} cannot be read: No such file or directory": str(tmp_path / "b.png"),
        f"picture {str(text)!r} cannot be used: not_an_image: 10 bytes that begin with": text,
        "a picture cannot be int; valid: a path, encoded bytes, a PIL picture, a uint8 array [H, W, 3], or": 3,
        "a picture cannot be used: truncated": png(Image.fromarray(PIXELS))[:2000],
    }
    for start, value in begins.items():
        assert refused(made.pictures, value).startswith(start)
        assert refused(made.pictures, [PIXELS, value]).startswith(start)
    assert (
        refused(made.pictures, [])
        == refused(made.pictures, np.zeros((0, 8, 8, 3), np.uint8))
        == ("no pictures were given; valid: one picture or more")
    )
    assert refused(made.pictures, np.zeros((2, 3))).startswith("no pictures in ndarray of shape [2, 3]; valid: a path")


def test_texts_become_ids():
    made = Preprocess("decode", 8, WORDS, 6)
    np.testing.assert_array_equal(made.texts("ab"), [WORDS("ab", 6)])
    np.testing.assert_array_equal(made.texts(["ab", "long enough"]), [WORDS("ab", 6), WORDS("long enough", 6)])
    np.testing.assert_array_equal(made.texts(WORDS("ab", 6)), [WORDS("ab", 6)])
    np.testing.assert_array_equal(made.texts(jnp.stack([WORDS("ab", 6)] * 2)), [WORDS("ab", 6)] * 2)
    assert is_one_text("a") and is_one_text(WORDS("ab", 6)) and not is_one_text(["a"])
    assert refused(made.texts, np.ones((2, 5), int)) == "texts as ids are whole numbers [B, 6], not int64[2, 5]"
    assert refused(Preprocess("decode", 8, None, 6).texts, "a").startswith(
        "no tokenizer came with this model; give ids"
    )
    assert refused(made.texts, " ") == "the text ' ' has no tokens"
    assert refused(made.texts, [3]) == "texts are a string or a list of strings, not of int"
    for nothing in ([], np.zeros((0, made.length), np.int32)):
        assert refused(made.texts, nothing) == "no texts were given; valid: one text or more"
    assert refused(Preprocess("decode", 8).texts, "a") == "this model reads no text; it was trained on pictures alone"


def test_the_config_says_what_happens_to_a_picture(tmp_path):
    assert clip.get_config("scale=low").preprocess.image == "decode|resize_small(224)|center_crop(224)"
    assert vqa.get_config("runlocal").preprocess.image == "decode|resize(32)"
    config = clip.get_config("runlocal")
    path = tmp_path / "config.json"
    for objective, image in (("clip", "decode|resize_small(32)|center_crop(32)"), ("vqa", "decode|resize(32)")):
        older = config.to_dict() | dict(objective=objective)
        del older["preprocess"]
        path.write_text(json.dumps(older))
        assert read(str(path)).preprocess.image == image


def test_a_picture_of_another_size_than_the_model_takes_is_refused():
    with pytest.raises(UserError, match=r"makes pictures \[5, 6, 3\], the model takes \[8, 8, 3\]; end"):
        Preprocess("decode", 8).picture(np.zeros((5, 6, 3), np.uint8))
