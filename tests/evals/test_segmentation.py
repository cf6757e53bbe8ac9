import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals import NotApplicable, segmentation, statistics
from maeclip_jax.evals.segmentation import Segmentation, confusion, metrics, per_class, read_words, window_places
from tests.evals.found import values

NAMES = ["background", "cat", "dog", "bird"]
EYE = np.eye(8, dtype=np.float32)


class Patches:
    """Pictures of 2x2 patches of 2x2 pixels; a patch whose first pixel holds v looks like the unit vector e_v."""

    contrastive, streams = True, ("image", "text")

    def apply(self, variables, batch, method):
        assert method == "dense" and variables == {"params": None}
        value_BxN = batch["image"][:, ::2, ::2, 0].reshape(-1, 4)
        return {"image": jnp.asarray(EYE)[value_BxN]}


def blocks(*patches):
    """[N, 4, 4] uint8, each of four 2x2 patches."""
    return np.array(patches, np.uint8).reshape(-1, 2, 2).repeat(2, axis=1).repeat(2, axis=2)


def stand_in(fake, seen, mask, **kwargs):
    """A fake in which class c (and word c) embeds as e_c: "background" 0, "cat" 1, ...; "sky" is 5."""
    image = np.repeat(blocks(*seen)[..., None], 3, axis=-1)
    context = fake({"image": image, "mask": mask}, text=EYE[[7, 0, 1, 2, 3, 5]], objective=Patches(), **kwargs)
    for word in (*NAMES, "sky"):
        context.tokenizer(word, 1)
    return context


def make(context, **config):
    return Segmentation(context, data={}, length=4, templates=["{}"], **{"batch_size": 2, "classes": NAMES} | config)


SEEN = ([0, 1, 1, 1], [2, 2, 0, 0], [3, 5, 5, 0])
TRUE = ([0, 1, 1, 2], [2, 2, 0, 255], [1, 0, 0, 0])


def test_every_pixel_counts_once(fake):
    # 3 pictures in batches of 2: the filling row would add pixels.
    got = values(make(stand_in(fake, SEEN, blocks(*TRUE)), background_words=["background", "sky"]).run(None))
    # In patches, 11 count. background: 5 true, all found; cat: 3 true, 2 found, 1 taken for bird; dog: 3 true, 2 found.
    assert got["pixel_accuracy"] == pytest.approx(100 * 9 / 11)
    assert got["mean_accuracy"] == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3)
    assert got["miou"] == pytest.approx(100 * (1 + 2 / 4 + 2 / 3 + 0) / 4)  # bird was found, and is nowhere
    assert got["baseline_miou"] == pytest.approx(100 * 5 / 11 / 3)
    assert got["baseline_pixel_accuracy"] == pytest.approx(100 * 5 / 11)
    assert got["foreground_iou"] == pytest.approx(100) and got["baseline_foreground_iou"] == pytest.approx(600 / 11)
    rows = {r[0]: r[1:] for r in got["classes"]["rows"]}
    assert rows["cat"] == pytest.approx([300 / 11, 50.0, 200 / 3, "bird"]) and rows["bird"] == [0.0, 0.0, "", ""]
    json.dumps(got["classes"]), json.dumps(got["sheet"])


def test_two_processes_give_what_one_gives(fake, processes):
    one = values(make(stand_in(fake, SEEN, blocks(*TRUE))).run(None))
    context = stand_in(fake, SEEN, blocks(*TRUE))
    two = processes(make, context.data, text=context.text, objective=Patches(), tokenizer=context.tokenizer)
    assert np.array_equal(one.pop("pictures"), two.pop("pictures")) and one == two


def test_the_sheet_shows_image_truth_and_finding(fake):
    got = values(make(stand_in(fake, SEEN, blocks(*TRUE)), pictures=2, tile=8).run(None))
    picture, detail = got["pictures"], got["sheet"]
    assert picture.shape == (2 * 8 + 2, 3 * 8 + 2 * 2, 3) and detail["rows"] == 2
    colours = {name: list(bytes.fromhex(colour[1:])) for name, colour in detail["legend"]}
    assert set(colours) == {"background", "cat", "dog"} and detail["rows_text"] == ["cat, dog", "dog"]
    truth, found = picture[:8, 10:18], picture[:8, 20:28]
    assert truth[7, 7].tolist() == colours["dog"] and found[7, 7].tolist() == colours["cat"]
    assert picture[17, 17].tolist() == [255] * 3  # ignored


def test_backgrounds(fake):
    def accuracy(seen, mask, **config):
        context = stand_in(fake, [seen], blocks(mask))
        return values(make(context, **config).run(None))["pixel_accuracy"]

    # A patch that is like no class (6) ties all cosines at 0.
    assert accuracy([6, 1, 2, 3], [0, 1, 2, 3], background="threshold", threshold=0.4) == 100
    assert accuracy([0, 1, 2, 3], [0, 1, 2, 3], background="none") == 100
    assert accuracy([5, 1, 2, 3], [0, 1, 2, 3], background_words=["sky"]) == 100
    assert accuracy([0, 1, 2, 3], [0, 1, 2, 3], background_words=["sky"]) < 100
    context = stand_in(fake, [[0, 1, 2, 3]], blocks([1, 1, 2, 3]))
    got = values(make(context, classes=["sky", "cat", "dog", ""]).run(None))  # id 3 has no name: never found
    assert got["pixel_accuracy"] < 75 and "foreground_iou" not in got


def test_a_broken_model_gets_nothing_right(fake):
    context = stand_in(fake, SEEN, blocks(*TRUE))
    context.text = np.full_like(context.text, np.nan)
    got = values(make(context).run(None))
    assert got["miou"] == got["pixel_accuracy"] == 0


def test_iou_is_that_of_sets_of_pixels():
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 2, 4, 255], size=(3, 9, 7)).astype(np.uint8)  # 3 is nowhere, 5 is only found
    found = rng.choice([0, 1, 2, 4, 5], size=mask.shape)
    counts = sum(confusion(m, f, 6, (255,)) for m, f in zip(mask, found))
    iou_C, accuracy_C = per_class(counts)
    places = [p for p in np.ndindex(mask.shape) if mask[p] != 255]
    true, got = ([{p for p in places if x[p] == c} for c in range(6)] for x in (mask, found))
    for c in range(6):
        either = true[c] | got[c]
        np.testing.assert_equal(iou_C[c], len(true[c] & got[c]) / len(either) if either else np.nan)
        np.testing.assert_equal(accuracy_C[c], len(true[c] & got[c]) / len(true[c]) if true[c] else np.nan)
    out = values(metrics(counts, background=True))
    ious = [len(t & g) / len(t | g) for t, g in zip(true, got) if t | g]
    assert len(ious) == 5 and out["miou"] == pytest.approx(100 * np.mean(ious))
    thing = [set().union(*x[1:]) for x in (true, got)]
    assert out["foreground_iou"] == pytest.approx(100 * len(thing[0] & thing[1]) / len(thing[0] | thing[1]))
    most = np.bincount(mask[mask != 255], minlength=6).argmax()
    constant = sum(confusion(m, np.full_like(m, most), 6, (255,)) for m in mask)
    assert out["baseline_miou"] == pytest.approx(values(metrics(constant, background=True))["miou"])
    assert out["baseline_mean_accuracy"] == pytest.approx(values(metrics(constant, background=True))["mean_accuracy"])


def test_words_for_background():
    stuff = read_words("stuff")
    assert len(stuff) == len(set(stuff)) == 40 and stuff[0] == "background"
    with pytest.raises(UserError, match=r"unknown background words 'stuf' \(did you mean 'stuff'\?\); valid: "):
        read_words("stuf")
    with pytest.raises(UserError, match="`background_words` is empty; valid: phrases, a file"):
        read_words(())


def test_errors(fake):
    context = stand_in(fake, SEEN, blocks(*TRUE))
    with pytest.raises(
        UserError, match=r"unknown segmentation background 'auot' \(did you mean 'auto'\?\); valid: auto"
    ):
        make(context, background="auot")
    with pytest.raises(UserError, match='background="threshold" needs `threshold`, a cosine from -1 to 1'):
        make(context, background="threshold")
    with pytest.raises(
        UserError, match="segmentation needs the names of 2 to 255 mask classes and got 0; set `classes`"
    ):
        make(context, classes=None)
    with pytest.raises(UserError, match="`ignore` and empty names leave no class to be found"):
        make(context, classes=["background", "", "dog"], ignore=(2, 255))
    with pytest.raises(
        UserError, match=r"id 2 in a mask, but there are 2 classes \(valid ids: 0 to 1, and 255 to be ig"
    ):
        values(make(context, classes=NAMES[:2]).run(None))
    with pytest.raises(UserError, match=r"a batch of masks is whole numbers \[B, H, W\], not uint8\[2, 4, 4, 1\]"):
        values(make(stand_in(fake, SEEN, blocks(*TRUE)[..., None])).run(None))
    with pytest.raises(UserError, match="no pixels that count in its data; check the split and `ignore`"):
        values(make(stand_in(fake, SEEN[:1], blocks([255] * 4))).run(None))
    with pytest.raises(
        UserError, match="segmentation needs 'mask' in its batches, which hold: image; end the ops with"
    ):
        del context.data["mask"]
        values(make(context).run(None))
    with pytest.raises(NotApplicable, match="zero-shot segmentation compares pictures with texts"):
        make(fake({}, objective=SimpleNamespace(contrastive=False)))


def test_names_of_the_source(fake):
    context = stand_in(fake, SEEN, blocks(*TRUE))
    context.source = lambda config: SimpleNamespace(mask_classes=["background", "big_cat"])
    assert make(context, classes=None).classes == ["background", "big cat"]


def test_windows_slide_over_larger_pictures(fake):
    """A picture of 4 x 4 patches and a model of 2 x 2: where windows overlap, a patch has the mean of its cosines."""
    random = np.random.default_rng(0)
    seen = random.integers(0, 4, (2, 4, 4))
    image = seen.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)

    class Crowded(Patches):
        """A patch looks like itself, and a little like the first patch of its window: so windows differ."""

        image_tower = dict(size=4, patch=2)

        def apply(self, variables, batch, method):
            value = batch["image"][:, ::2, ::2, 0].reshape(-1, 4)
            return {"image": jnp.asarray(EYE)[value] + 0.5 * jnp.asarray(EYE)[value[:, :1]]}

    context = fake(
        {"image": np.repeat(image[..., None], 3, -1), "mask": image}, text=EYE[[7, 0, 1, 2, 3]], objective=Crowded()
    )
    for word in NAMES:
        context.tokenizer(word, 1)
    evaluator = make(context, background="none", stride=2)
    (batch,) = context.batches({}, 2)
    score = evaluator.scores(None, {"image": batch["image"], "_valid": batch["_valid"]}, EYE[:4])
    want = np.zeros((2, 4, 4, 4))
    times = np.zeros((4, 4))
    for y in range(3):
        for x in range(3):
            part = seen[:, y : y + 2, x : x + 2]
            found = np.eye(4)[part] + 0.5 * np.eye(4)[part[:, :1, :1]]
            want[:, :, y : y + 2, x : x + 2] += np.moveaxis(found, -1, 1)
            times[y : y + 2, x : x + 2] += 1
    np.testing.assert_allclose(score.reshape(2, 4, 4, 4), want / times, atol=1e-6)
    found = list(evaluator.run(None))
    assert found[0].note.endswith("background: none, 9 windows of 4 in 8 pixels")
    assert found[0].estimated().n == 2


@pytest.mark.parametrize("pixels, stride", [(8, 3), (8, 0), (10, 4), (2, 2), (8, 6)])
def test_a_stride_that_does_not_suit_is_refused(pixels, stride):
    with pytest.raises(UserError, match=rf"stride={stride} does not suit pictures of {pixels} pixels"):
        window_places(pixels, 4, 2, stride)


def test_one_window_is_the_plain_way(fake):
    plain = values(make(stand_in(fake, SEEN, blocks(*TRUE))).run(None))
    context = stand_in(fake, SEEN, blocks(*TRUE))
    context.objective.image_tower = dict(size=4, patch=2)
    assert values(make(context, stride=2).run(None))["miou"] == plain["miou"]


def test_pictures_without_foreground_are_items_of_every_model():
    """Whether foreground is found where there is none depends on the model; the items must not."""
    empty, thing = np.zeros((3, 4)), np.zeros((3, 4))
    empty[0, 0] = 10  # all background, found as background
    thing[0, 0], thing[1, 1], thing[1, 0] = 5, 4, 1
    wrong = np.zeros((3, 4))
    wrong[0, 0], wrong[0, 1] = 8, 2  # foreground where there is none
    one, other = (
        segmentation.items_of(["x", "y"], np.stack([segmentation.areas(c) for c in pair]))["foreground_iou"]
        for pair in ((empty, thing), (wrong, thing))
    )
    found = statistics.paired(one, other)
    assert found.n == 2 and found.value == pytest.approx(100 * (4 / 7 - 4 / 5))
