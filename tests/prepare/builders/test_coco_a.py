"""COCO-a from its two files and COCO's pictures, in the official layouts."""

import json
import shutil

import numpy as np
import pytest

from maeclip_jax.data.ops import parse
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.coco_a import CocoA
from tests.data.labelled_sources import opened, records, write_tree
from tests.prepare.pair_sources import picture

ACTIONS = {11: "play_baseball", 7: "be_with", 30: "jump", 4: "read?"}  # ids of the file are not in order
INTERACTIONS = {  # agreement -> image, subject, object or -1, actions
    "1": [(57870, 500, 600, [11, 30]), (57870, 500, 600, [7]), (384029, 501, -1, [30])],
    "2": [(57870, 500, 600, [11]), (222016, 502, -1, [4, 30]), (57870, 503, -1, [30])],
    "3": [(57870, 500, 600, [7]), (222016, 502, -1, [4]), (384029, 501, 601, [])],
}


def entries(rows) -> list[dict]:
    return [
        {"id": n, "image_id": image, "subject_id": subject, "object_id": thing, "visual_actions": actions,
         "visual_adverbs": [3]}
        for n, (image, subject, thing, actions) in enumerate(rows)
    ]  # fmt: skip


def annotations(**changed) -> str:
    tree = {"annotations": {k: entries(v) for k, v in INTERACTIONS.items()}, "info": {}} | changed
    return json.dumps(tree)


def verbs() -> str:
    actions = [{"id": i, "name": n, "category": "c", "definition": []} for i, n in ACTIONS.items()]
    return json.dumps({"visual_actions": actions, "visual_adverbs": [{"id": 3, "name": "near"}]})


def coco(**more) -> dict:
    images = {
        "train2014/COCO_train2014_000000057870.jpg": picture(1),
        "val2014/COCO_val2014_000000222016.jpg": picture(2),
        "train2014/COCO_train2014_000000384029.jpg": picture(3),
        "train2014/COCO_train2014_000000000009.jpg": b"",
    }
    files = {"cocoa_beta2015.json": annotations(), "visual_verbnet_beta2015.json": verbs(), **images} | more
    return {k: v for k, v in files.items() if v is not None}  # fmt: skip


def build(tmp_path, files, **options):
    return manual.build(CocoA, write_tree(tmp_path / "src", files), tmp_path / "data", **options)


def actions_of(folder) -> dict[str, set[str]]:
    names = opened(folder, "test").classes
    return {key[-16:-4].lstrip("0"): {names[n] for n in r["labels"]} for key, r in records(folder, "test").items()}


def test_actions_that_two_annotators_saw(tmp_path):
    folder = build(tmp_path, coco())
    source = opened(folder, "test")
    assert source.classes == ["play baseball", "be with", "jump", "read"]
    assert actions_of(folder) == {
        "57870": {"play baseball", "be with", "jump"},
        "222016": {"read", "jump"},
    }
    record = records(folder, "test")["COCO_train2014_000000057870.jpg"]
    assert record["image"] == picture(1)
    who = record["interactions"]
    rows = list(zip(who["subject"].tolist(), who["object"].tolist(), [source.classes[a] for a in who["action"]]))
    assert rows == [(500, 600, "be with"), (500, 600, "play baseball"), (503, -1, "jump")]
    assert (who["box"] == 0).all()  # no instances, no boxes
    row = parse('decode|resize(8)|labels(5)|keep("image","labels")')(record, np.random.default_rng())
    assert row["labels"].tolist() == [0, 1, 2, -1, -1]


@pytest.mark.parametrize(
    ("least", "actions"),
    [
        (1, {"57870": {"play baseball", "be with", "jump"}, "222016": {"read", "jump"}, "384029": {"jump"}}),
        (3, {"57870": {"be with"}, "222016": {"read"}}),
    ],
)
def test_agreement(tmp_path, least, actions):
    assert actions_of(build(tmp_path, coco(), min_agreement=least)) == actions


def test_boxes_come_from_the_instances_of_coco(tmp_path):
    things = [
        {"id": 500, "image_id": 57870, "bbox": [10, 6, 20, 15]},
        {"id": 9, "image_id": 57870, "bbox": [0, 0, 1, 1]},
    ]
    tree = {"annotations": things, "images": [{"id": 57870, "width": 40, "height": 30}]}
    folder = build(tmp_path, coco(**{"annotations/instances_train2014.json": json.dumps(tree)}))
    who = records(folder, "test")["COCO_train2014_000000057870.jpg"]["interactions"]
    np.testing.assert_allclose(
        who["box"], [[0.2, 0.25, 0.7, 0.75]] * 2 + [[0] * 4], atol=1e-6
    )  # top, left, bottom, ...


def test_pictures_in_zips(tmp_path):
    root = write_tree(tmp_path / "src", coco())
    for part in ("train2014", "val2014"):
        shutil.make_archive(str(root / part), "zip", root, part)
        shutil.rmtree(root / part)
    assert len(records(manual.build(CocoA, root, tmp_path / "data"), "test")) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cocoa_beta2015.json": None}, "cocoa_beta2015.json is expected: cocoa_beta2015.json (who does what to whom"),
        ({"visual_verbnet_beta2015.json": None}, "visual_verbnet_beta2015.json is expected: "),
        ({"cocoa_beta2015.json": "{}"}, "is another file: it has no 'annotations'"),
        ({"cocoa_beta2015.json": annotations(annotations={"1": []})}, "is another file: an annotation has no '2'"),
        ({"cocoa_beta2015.json": annotations(annotations={"2": entries([(1, 2, 3, [99])])})}, "has action 99, which"),
        ({"visual_verbnet_beta2015.json": '{"visual_actions": [{"id": 1}]}'}, "is another file: an action has"),
        ({"val2014/COCO_val2014_000000222016.jpg": None}, "1 of 2 pictures of COCO-a are not in "),
        ({"val2014/COCO_val2014_000000222016.jpg": None}, "222016.jpg; expected: val2014, or as val2014.zip"),
    ],
)  # fmt: skip
def test_wrong_and_missing_files_are_named(tmp_path, files, message):
    with pytest.raises(UserError) as e:
        build(tmp_path, coco(**files))
    assert message in str(e.value) and "\n" not in str(e.value)


def test_agreement_out_of_range(tmp_path):
    with pytest.raises(UserError, match="min_agreement=4; valid: 1, 2, 3"):
        build(tmp_path, coco(), min_agreement=4)


def test_the_instructions_name_every_file_its_page_and_its_size():
    for words in ("cocoa_beta2015.json", "visual_verbnet_beta2015.json", "train2014.zip", "13.5 GB", "cocodataset.org"):
        assert words in CocoA.MANUAL_DOWNLOAD_INSTRUCTIONS
