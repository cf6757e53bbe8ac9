import functools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals import NotApplicable, grounding
from maeclip_jax.evals.grounding import Grounding, falling, score, within
from tests.evals.found import notes, values
from tests.objectives import models

NAMES = ["background", "red", "green", "blue"]


@functools.cache
def seer(pool):
    """A CLIP of 4x4 patches whose embedding of a patch is its colour: blocks do nothing, attention is even."""
    tower = models.IMAGE | dict(pool=pool, position="none", cls=pool == "cls")
    module = models.build("clip", image_tower=tower)
    params = jax.tree.map(np.zeros_like, models.parameters(module))
    for c in range(3):  # mean of the colour into channel c; LayerNorm has nothing to shift but that
        params["image"]["embed_image"]["patch"]["kernel"][c::3, c] = 1 / 16
    params["image"]["norm"]["scale"][:] = 1
    params["image_head"]["project"]["kernel"][:3, :3] = np.eye(3)
    return module, params


def scene(*things):
    """(picture 16x16 black, mask) with things (class, row, column) as one patch each."""
    image, mask = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    for c, y, x in things:
        image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4, c - 1] = 255
        mask[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = c
    return image, mask


SCENES = [scene((1, 0, 0), (2, 2, 3)), scene((3, 1, 2)), scene((2, 3, 1), (1, 0, 3))]


def stand_in(fake, scenes=SCENES, pool="gap", **kwargs):
    """A fake in which the phrase "red" embeds where red patches do, and so on."""
    image, mask = (np.stack(x) for x in zip(*scenes))
    context = fake(
        {"image": image, "mask": mask}, text=np.eye(6, dtype=np.float32)[[5, 4, 0, 1, 2]], objective=seer(pool)[0]
    )
    for name in NAMES:
        context.tokenizer(name, 1)
    return context


def make(context, **config):
    return Grounding(
        context, data={}, length=4, templates=["{}"], **{"batch_size": 2, "classes": NAMES, "tolerance": 0} | config
    )


def test_bright_patches_are_found(fake):
    # 3 pictures in batches of 2: a filling row would add queries.
    got = values(make(stand_in(fake)).run(seer("gap")[1]))
    assert got["maps"]["note"].startswith("5 queries, 4 of them in pictures with several classes")
    assert got["similarity_pointing"] == got["gradcam_pointing"] == 100
    assert got["similarity_matched_iou"] > 60 and got["gradcam_matched_iou"] > 60
    # Attention is even, so the roll-out is a constant map and has what chance has: one patch of 16.
    chance = got["chance_pointing"]
    assert chance == pytest.approx(100 / 16) and got["baseline_whole_iou"] == pytest.approx(chance)
    assert got["rollout_pointing"] == pytest.approx(chance) and got["rollout_iou"] == 0
    assert got["rollout_matched_iou"] == pytest.approx(got["chance_matched_iou"]) == pytest.approx(100 / 31)
    # The picture's centre is where four patches meet; of the five asked for, one touches it.
    assert got["baseline_center_pointing"] == pytest.approx(100 / 4 / 5)
    json.dumps(got["maps"]), json.dumps(got["sheet"])


def test_under_max_a_patch_lights_up_only_behind_the_norm(fake):
    # No LayerNorm cares for the length of a token, so the gradient at a winning patch stands at right angles to it, and
    # here nothing is left of it but rounding, wherever a processor's rounding points: such a map is flat.
    context, params = stand_in(fake, pool="max"), seer("max")[1]
    behind = values(make(context, methods=("gradcam",), block=2).run(params))
    before = values(make(context, methods=("gradcam",), block=1).run(params))
    assert behind["gradcam_pointing"] > 75 and before["gradcam_pointing"] == pytest.approx(before["chance_pointing"])
    assert before["maps"]["note"].endswith("differ by rounding only and which point nowhere: Grad-CAM 5.")
    assert "Grad-CAM 5" not in behind["maps"]["note"]
    assert "Grad-CAM: tokens leaving the final norm" in behind["maps"]["note"]


def test_two_processes_give_what_one_gives(fake, processes):
    context, params = stand_in(fake), seer("gap")[1]
    one = values(make(context).run(params))

    def made(context):
        return SimpleNamespace(run=lambda _: make(context).run(params))

    two = processes(made, context.data, text=context.text, objective=context.objective, tokenizer=context.tokenizer)
    assert np.array_equal(one.pop("pictures"), two.pop("pictures")) and one == two


def test_the_sheet_has_its_columns_in_order(fake):
    evaluator = make(stand_in(fake), pools=("own", "max"), block=2, pictures=3, tile=16)
    got = values(evaluator.run(seer("gap")[1]))
    detail, picture = got["sheet"], got["pictures"]
    assert detail["rows_text"] == ["red", "green", "blue"] and detail["rows"] == 3
    titles = ["Grad-CAM, gap (own)", "Grad-CAM, max", "similarity", "roll-out, gap (own)", "roll-out, max"]
    assert detail["columns"] == ["image", "mask", *titles]
    assert {"gradcam_max_pointing", "rollout_max_iou"} <= set(got) and "similarity_max_iou" not in got
    gap = detail["gap"]
    assert picture.shape == (3 * 16 + 2 * gap, 7 * 16 + 6 * gap, 3)
    second = picture[16 + gap :][:16]
    image, mask, *maps = (second[:, n * (16 + gap) :][:, :16] for n in range(7))
    np.testing.assert_array_equal(image, SCENES[0][0])
    np.testing.assert_array_equal(mask[..., 0], np.where(SCENES[0][1] == 2, 255, 0))
    for title, drawn in zip(titles, maps):
        patches = drawn.astype(int).sum(-1).reshape(4, 4, 4, 4).mean((1, 3))
        assert (patches.argmax() == 2 * 4 + 3) != title.startswith("roll-out"), title


def test_which_classes_are_asked_for(fake):
    image, mask = scene((1, 0, 0), (2, 2, 3))
    mask[8:, :8], mask[0, 8:] = 255, 3  # a quarter ignored; a class of 8 of 192 pixels
    full = np.full_like(mask, 1)

    def asked(**config):
        got = values(
            make(stand_in(fake, [(image, mask), (image, full)]), methods=("similarity",), **config).run(seer("gap")[1])
        )
        return got["sheet"]["rows_text"], got["chance_pointing"]

    names, chance = asked()
    assert names == ["red", "green", "blue"] and chance == pytest.approx(100 * (16 + 16 + 8) / 192 / 3)
    assert asked(min_area=0.05)[0] == ["red", "green"] and asked(phrases=1)[0] == ["red"]
    assert asked(ignore=(2, 255))[0] == ["red", "blue"]


def test_without_a_shared_space_there_is_only_the_rollout(fake):
    module = models.build("mae")
    context = stand_in(fake)
    context.objective = module
    got = values(make(context).run(models.parameters(module)))
    assert "rollout_pointing" in got and not [k for k in got if k.startswith(("gradcam", "similarity"))]
    assert got["sheet"]["columns"] == ["image", "mask", "roll-out, cls (own)"]
    with pytest.raises(NotApplicable, match="grounding by phrases compares pictures with texts"):
        make(context, methods=("gradcam",))
    with pytest.raises(NotApplicable, match="this objective has none to listen to"):
        make(fake({}))


def test_scores():
    target = np.array([1, 1, 0, 0, 0, 0], bool)

    def score(map_P):
        return grounding.score(map_P, target, target)

    assert score(np.array([9, 8, 1, 0, 0, 0.0])) == (1, 1, 1)
    assert score(np.array([0, 9, 8, 0, 0, 0.0])) == pytest.approx((1, 1 / 3, 1 / 3))
    assert score(np.array([0, 4, 9, 0, 0, 0.0])) == pytest.approx((0, 0, 1 / 3))  # 4 is less than half of 9
    assert score(np.array([-5, -6, -9, -9, -9, -9.0])) == (1, 1, 1)  # only the order and the range matter
    assert score(np.ones(6)) == pytest.approx((2 / 6, 0, (2 / 3) / (4 - 2 / 3)))  # ties are shared out
    # One of two places goes to the first pixel, the other is shared by five of which one is right.
    assert score(np.array([9, 0, 0, 0, 0, 0.0])) == pytest.approx((1, 1 / 2, 1.2 / 2.8))
    noise = np.float32(0.3) + np.array([0, 1, 0, -1, 2, 0], np.float32) * np.float32(3e-8)
    assert len(set(noise)) > 1 and score(noise) == score(np.ones(6))  # rounding points nowhere
    assert score(np.array([np.nan, 9, 0, 0, 0, 0.0])) == (0, 0, 0)


def test_a_tolerance_widens_what_may_be_pointed_at(fake):
    mask = np.zeros((40, 40), bool)
    mask[20, 10:13] = True
    y, x = np.mgrid[:40, :40]
    for pixels in (0, 1, 15, 15.5, 100):
        distance = np.sqrt((y - 20) ** 2 + (x - np.clip(x, 10, 12)) ** 2)
        np.testing.assert_array_equal(within(mask, pixels), distance <= pixels)
    target, near = np.array([1, 0, 0, 0], bool), np.array([1, 1, 0, 0], bool)
    assert score(np.array([0, 9, 1, 0.0]), target, near) == (1, 0, 0)  # the area is that of the mask all the same

    def found(**config):
        return list(make(stand_in(fake), methods=("rollout",), **config).run(seer("gap")[1]))

    by = {pixels: found(tolerance=pixels) for pixels in (0, 4)}
    chance = {}
    for n, (_, mask) in enumerate(SCENES):
        for c in set(np.unique(mask)) - {0}:
            chance[n, c] = 100 * within(mask == c, 4).mean()
    got = values(by[4])
    assert got["chance_pointing"] == pytest.approx(np.mean([*chance.values()])) != pytest.approx(100 / 16)
    assert got["rollout_pointing"] == pytest.approx(got["chance_pointing"])  # a flat map has what chance has
    names = {"rollout_pointing", "baseline_center_pointing"}
    assert notes(by[4]) == dict.fromkeys(names, "within 4 pixels of the mask")
    assert notes(by[0]) == dict.fromkeys(names, "inside the mask")
    assert "Pointing: within 4 pixels of the mask." in got["maps"]["note"]
    default = Grounding(stand_in(fake), data={}, length=4, templates=["{}"], batch_size=2, classes=NAMES)
    assert default.tolerance == 15
    with pytest.raises(UserError, match="grounding: tolerance=-1 is not valid; valid: pixels, 0 or more"):
        found(tolerance=-1)


def test_the_centre():
    odd, even = falling((3, 5)), falling((2, 2))
    assert np.unravel_index(odd.argmax(), odd.shape) == (1, 2) and (even == even[0, 0]).all()


def test_errors(fake):
    context = stand_in(fake)
    with pytest.raises(UserError, match=r"unknown grounding method 'cam' .*; valid: gradcam, similarity, rollout"):
        make(context, methods=("cam",))
    with pytest.raises(UserError, match=r"needs at least one of `methods` .* and one of `pools`"):
        make(context, pools=())
    with pytest.raises(UserError, match="pool 'cls' takes a class token, which this tower lacks"):
        make(context, pools=("cls",))
    with pytest.raises(UserError, match=r"topk pooling needs a whole k in 1\.\.16"):
        values(make(context, pools=("topk(17)",)).run(seer("gap")[1]))
    with pytest.raises(UserError, match="no class that covers 50% of a picture but not all of it; check the split"):
        values(make(context, min_area=0.5).run(seer("gap")[1]))
    with pytest.raises(UserError, match=r"grounding: id 3 in a mask, but there are 3 classes \(valid ids: 0 to 2"):
        values(make(context, classes=NAMES[:3]).run(seer("gap")[1]))
