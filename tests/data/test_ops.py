import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import image_ops, tokenizer
from maeclip_jax.data.ops import OPS, describe, parse
from maeclip_jax.errors import BadRecord, UserError

CONTEXT = SimpleNamespace(tokenizer=tokenizer.make({"type": "bytes"}))


def rng(seed=0):
    return np.random.default_rng(seed)


def smooth(height, width) -> np.ndarray:
    """A picture without edges, so that resampling by different filters nearly agrees."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(7 * y + 3 * x), np.cos(5 * x), np.sin(9 * x * y)]
    return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def jpeg(pixels, **kwargs) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0, **kwargs)
    return out.getvalue()


def run(string, record, seed=0):
    return parse(string, CONTEXT)(record, rng(seed))


def test_the_line_of_a_training_config():
    record = {"key": "a", "image": jpeg(smooth(300, 400)), "texts": ["one", "two"], "label": 3}
    ops = parse('decode|random_resized_crop(224,area=(0.5,1))|tokenize(64)|keep("image","text")', CONTEXT)
    example = ops(record, rng())
    assert set(example) == {"image", "text"} and ops.names == ("image", "text")
    assert example["image"].shape == (224, 224, 3) and example["image"].dtype == np.uint8
    assert example["text"].shape == (64,) and example["text"].dtype == np.int32
    assert set(record) == {"key", "image", "texts", "label"}  # untouched
    again = pickle.loads(pickle.dumps(ops))(record, rng())
    np.testing.assert_array_equal(again["image"], example["image"])
    assert not np.array_equal(ops(record, rng(1))["image"], example["image"])


def test_every_op_is_described():
    text = describe()
    for name in OPS:
        assert f"{name}(" in text
    assert "tokenizer" not in text  # comes from the config, not from the string
    assert all(len(paragraph.splitlines()) > 1 for paragraph in text.split("\n\n") if paragraph[0] != " ")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_reduced_decode_is_the_same_crop_as_a_full_one(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(smooth(700, 900), exif=exif.tobytes())
    for seed in range(5):
        crop = 'decode|random_resized_crop(64,area=(0.1,1),antialias="{}")|keep("image")'
        fast, area, exact = (run(crop.format(a), {"image": data}, seed)["image"] for a in ("fast", "area", "exact"))
        assert fast.shape == (64, 64, 3)
        assert np.abs(fast.astype(int) - exact).mean() < 2.5
        assert np.abs(area.astype(int) - exact).mean() < 1


@pytest.mark.parametrize("antialias", ["area", "fast"])
@pytest.mark.parametrize("size", [(200, 2240), (2240, 200), (400, 2240), (300, 500), (1000, 450), (460, 1000)])
def test_a_side_is_averaged_whatever_becomes_of_the_other(size, antialias):
    """Every tenth line across the longer side is white; bilinear alone would take none or all of them."""
    pixels = np.zeros((*size, 3), np.uint8)
    long = int(size[1] > size[0])
    pixels.swapaxes(0, long)[5::10] = 250
    made = image_ops.resample(pixels, (224, 224), antialias).astype(float)
    exact = image_ops.resample(pixels, (224, 224), "exact").astype(float)
    assert abs(made.mean() - 25) < 1.5
    assert made.std() < 1.3 * exact.std() + 7


def test_crops_have_the_shares_and_ratios_asked_for_and_stay_inside():
    # A picture whose pixels are their own coordinates: the crop can be read off its corners.
    y, x = np.mgrid[:200, :240]
    pixels = np.stack([y, x, 0 * x], -1).astype(np.uint8)
    ops = parse('random_resized_crop(240,area=(0.2,0.6),ratio=(0.5,2.0),antialias="exact")|keep("image")')
    shares, ratios = [], []
    for seed in range(200):
        out = ops({"image": pixels}, rng(seed))["image"].astype(float)
        height, width = out[-1, 0, 0] - out[0, 0, 0] + 1, out[0, -1, 1] - out[0, 0, 1] + 1
        shares.append(height * width / (200 * 240))
        ratios.append(width / height)
    assert 0.18 < min(shares) < 0.25 and 0.5 < max(shares) < 0.63
    assert 0.45 < min(ratios) < 0.65 and 1.6 < max(ratios) < 2.1
    assert abs(np.mean(np.log(ratios))) < 0.15


def test_thin_pictures_still_give_a_crop():
    for size in ((3, 4000), (3000, 2), (1, 1)):
        out = run('decode|random_resized_crop(32)|keep("image")', {"image": jpeg(smooth(*size))})
        assert out["image"].shape == (32, 32, 3)


def test_evaluation_is_pillow_bicubic_as_in_torchvision():
    data = jpeg(smooth(333, 500))
    got = run('decode|resize_small(224)|center_crop(224)|keep("image")', {"image": data})["image"]
    image = Image.open(io.BytesIO(data))
    small = np.asarray(image.resize((int(224 * 500 / 333), 224), Image.Resampling.BICUBIC))
    left = round((small.shape[1] - 224) / 2)
    np.testing.assert_array_equal(got, small[:, left : left + 224])
    squashed = run('decode|resize((60,50),method="lanczos")|keep("image")', {"image": data})["image"]
    np.testing.assert_array_equal(squashed, np.asarray(image.resize((50, 60), Image.Resampling.LANCZOS)))
    fast = run('decode|resize_small(100,antialias=False)|keep("image")', {"image": data})["image"]
    exact = run('decode|resize_small(100,antialias=True)|keep("image")', {"image": data})["image"]
    assert fast.shape == exact.shape == (100, 150, 3) and 0 < np.abs(fast.astype(int) - exact).mean() < 2


def test_fit_keeps_proportions_and_fills():
    out = run('decode|fit((40,80),fill=9)|keep("image")', {"image": jpeg(np.full((100, 100, 3), 200, np.uint8))})[
        "image"
    ]
    assert out.shape == (40, 80, 3)
    assert (out[:, :20] == 9).all() and (out[:, 60:] == 9).all() and (out[:, 20:60] > 190).all()


def test_random_crop_and_flip():
    pixels = smooth(20, 30)
    out = run('random_crop((8,10))|keep("image")', {"image": pixels})["image"]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (8, 10, 3))[:, :, 0]
    assert (windows == out).all((2, 3, 4)).any()
    np.testing.assert_array_equal(run('flip_lr(p=1)|keep("image")', {"image": pixels})["image"], pixels[:, ::-1])
    np.testing.assert_array_equal(run('flip_lr(p=0)|keep("image")', {"image": pixels})["image"], pixels)
    flipped = [
        not np.array_equal(run('flip_lr|keep("image")', {"image": pixels}, s)["image"], pixels) for s in range(60)
    ]
    assert 15 < sum(flipped) < 45


def test_drawn_pictures_pass_decode_unchanged():
    pixels = smooth(16, 16)
    np.testing.assert_array_equal(run('decode|resize(16)|keep("image")', {"image": pixels})["image"], pixels)


def test_captions_one_or_all():
    record = {"texts": ["red", " ", "blue", "green"]}
    decoded = {CONTEXT.tokenizer.decode(run('tokenize(8)|keep("text")', record, s)["text"]) for s in range(40)}
    assert decoded == {"red", "blue", "green"}  # each at some time, the empty one never
    same = [run('pick_caption|lower|tokenize(8)|keep("text")', record, 7)["text"] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    some = run('captions(5)|tokenize(6)|keep("text")', record)
    assert some["text"].shape == (5, 6) and some["text"].dtype == np.int32
    assert some["_captions"] == 3 and (some["text"][3:] == 0).all() and some["text"][:3].any(1).all()
    one = run('captions(2)|tokenize(6)|keep("text")', {"text": "only"})
    assert one["text"].shape == (2, 6) and one["_captions"] == 1


def test_text_ops_and_labels():
    record = {"text": "A Dog", "question": "What?", "coarse": np.int64(5)}
    string = (
        'lower|prefix("see: ")|tokenize(12)|tokenize(8,key="question",out="q")|label("coarse")|keep("text","q","label")'
    )
    out = run(string, record)
    assert CONTEXT.tokenizer.decode(out["text"]) == "see: a dog" and CONTEXT.tokenizer.decode(out["q"]) == "What?"
    assert out["label"] == 5 and out["label"].dtype == np.int32


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("", "ops: empty; write for instance decode"),
        ("decode|", "invalid syntax at character"),
        ("decode||keep('image')", "invalid syntax at character 7, before \"|keep('image')\""),
        ("decode|resise(64)|keep('image')", "unknown op 'resise' (did you mean 'resize'?); valid: answers, blank, "),
        ("decode|resise(64)|keep('image')", "at character 7 of"),
        ("decode|resize(sise=64)|keep('image')", "argument of resize: 'sise' (did you mean 'size'?); valid: size, "),
        ("decode|resize|keep('image')", "resize: missing a required argument: 'size'; it is resize(size, method="),
        ("decode|resize(1,'bicubic','exact',4)|keep('image')", "too many positional arguments; it is resize("),
        ("resize(64,antialias='fine')|keep('image')", "antialias='fine' is not valid; valid: exact | area | fast"),
        ("decode|resize(64,method='linear')|keep('image')", "valid: bicubic | bilinear | lanczos | nearest"),
        ("decode|resize(64,method='lanczos',antialias='fast')|keep('image')", 'needs antialias="exact"'),
        ("decode|resize(0)|keep('image')", "size=0 is not valid; valid: a side or (height, width)"),
        ("decode|random_resized_crop(9,area=(1,0.5))|keep('image')", "area=(1, 0.5) is not valid"),
        ("decode|random_resized_crop(9,ratio=(3/4,4/3))|keep('image')", "not '(3/4,4/3)'"),
        ("decode|flip_lr(2)|keep('image')", "p=2 is not valid; valid: a probability from 0 to 1"),
        ("decode(truncated='ok')|keep('image')", "truncated='ok' is not valid; valid: refuse | fill"),
        ("decode|resize(__import__('os'))|keep('image')", "an argument is a number, a quoted text"),
        ("decode|x.y(1)|keep('image')", "'x.y(1)' is not an op, name or name(arguments), at character 7"),
        ("decode|resize(8)", "must be keep(\"image\", ...); found decode | resize"),
        ("keep('image')|decode", "must be keep(\"image\", ...); found keep | decode"),
        ("resize(8)|decode|keep('image')", "decode must stand once, before every op on pictures"),
        ("decode|keep('image','text')", 'keep("text") needs tokenize(length) before it'),
        ("decode|keep()", "names=() is not valid"),
    ],
)  # fmt: skip
def test_a_wrong_string_says_where_and_what_is_valid(string, message):
    with pytest.raises(UserError) as e:
        parse(string, CONTEXT)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_tokenize_without_a_tokenizer():
    with pytest.raises(UserError, match=r"tokenize\(8\): there is no tokenizer; set config.tokenizer"):
        parse('tokenize(8)|keep("text")')


@pytest.mark.parametrize(
    ("string", "record", "message"),
    [
        ('keep("lable")', {"label": 1}, "ops: keep(\"lable\"): the record has no 'lable'; it has: label"),
        (
            'resize(8)|keep("image")',
            {"image": b"x"},
            "ops: resize(8): the picture is encoded (bytes); put decode before",
        ),
        ('tokenize(8)|lower|keep("text")', {"text": "a"}, "ops: lower: 'text' is tokenized already"),
        ('keep("texts")', {"texts": ["a"]}, "'texts' is a list of texts; pick_caption or captions(k)"),
        ('keep("image")', {"image": b"x"}, "'image' is encoded bytes; decode it first"),
        ('label|keep("label")', {"label": "cat"}, "'label' is str ('cat'), not an integer"),
        ('resize(8)|keep("image")', {"image": np.zeros((4, 4), np.float32)}, "uint8 [H,W,3], not float32[4, 4]"),
    ],
)
def test_a_string_that_does_not_suit_the_records_is_the_users_error(string, record, message):
    with pytest.raises(UserError) as e:
        run(string, record)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("string", "record", "kind"),
    [
        ('decode|resize(8)|keep("image")', {"image": b"not a picture"}, "not_an_image"),
        ('decode(min_side=32)|keep("image")', {"image": jpeg(smooth(16, 64))}, "too_small"),
        ('decode(max_pixels=64)|keep("image")', {"image": jpeg(smooth(16, 64))}, "too_large"),
        ('decode|center_crop(32)|keep("image")', {"image": jpeg(smooth(16, 64))}, "too_small"),
        ('decode|resize_small(224)|keep("image")', {"image": jpeg(smooth(1, 3000))}, "too_large"),
        ('decode|resize(8)|keep("image")', {"image": jpeg(smooth(99, 99))[:-400]}, "truncated"),
        ('tokenize(8)|keep("text")', {"texts": []}, "no_text"),
        ('tokenize(8)|keep("text")', {"text": " \n"}, "no_text"),
        ('captions(3)|tokenize(8)|keep("text")', {"texts": [""]}, "no_text"),
    ],
)
def test_a_record_that_cannot_be_used_is_a_bad_record(string, record, kind):
    with pytest.raises(BadRecord) as e:
        run(string, record)
    assert e.value.kind == kind and e.value.detail


def test_views_are_two_parts_of_the_whole_picture():
    """Whatever crop comes after them; each as random_resized_crop would have drawn it."""
    record = {"image": smooth(300, 400)}
    made = run('decode|views(64)|random_resized_crop(32,area=(0.5,0.5))|keep("image","views")', record, seed=5)
    assert made["image"].shape == (32, 32, 3) and made["views"].shape == (2, 64, 64, 3)
    draw = rng(5)
    for view in made["views"]:
        np.testing.assert_array_equal(view, image_ops.random_resized_crop(record, draw, (64, 64), (0.08, 1))["image"])
    boxes = np.array([image_ops.sample_box(draw, 3000, 4000, (0.08, 1), (3 / 4, 4 / 3))[2:] for _ in range(8000)])
    share = boxes.prod(1) / (3000 * 4000)
    assert abs(share.mean() - 0.432) < 4 * share.std() / 8000**0.5  # of a picture of 4 to 3
