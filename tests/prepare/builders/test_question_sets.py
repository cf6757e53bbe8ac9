"""VQA v2, GQA and questions.jsonl from tiny archives in their official layouts."""

import json
import sys
import zipfile

import pytest

from maeclip_jax.cli import guarded
from maeclip_jax.data import answers, questions, source
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import gqa, manual, question_sets, vqa_jsonl, vqav2
from tests.prepare.pair_sources import picture

SAID = ["yes"] * 4 + ["no"] * 5 + ["a\ncouple"]


def coco(part, image):
    return f"COCO_{part}_{image:012d}.jpg"


def write_vqav2(folder, parts=("train2014", "val2014", "test-dev2015"), archive=False):
    """Two pictures a split with 1 and 2 questions; question ids are picture ids with three digits more."""
    for number, part in enumerate(parts):
        images = [57870 + 10 * number, 57871 + 10 * number]
        asked = [(image, 1000 * image + k) for image, count in zip(images, (1, 2)) for k in range(count)]
        rows = [{"image_id": i, "question": f"Is this {q}?", "question_id": q} for i, q in asked]
        common = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": part}
        tree = {**common, "task_type": "Open-Ended", "questions": rows}
        (folder / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps(tree))
        if not part.startswith("test"):
            given = [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(SAID)]
            rows = [
                {"question_type": "is this", "multiple_choice_answer": "no", "answers": given, "image_id": i,
                 "answer_type": "yes/no", "question_id": q}
                for i, q in reversed(asked)
            ]  # fmt: skip
            tree = {**common, "annotations": rows}
            (folder / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps(tree))
        pictures = part.replace("-dev", "")
        data = {f"{pictures}/{coco(pictures, i)}": picture(i) for i in [*images, 999]}  # 999: nothing asked about it
        if archive:
            with zipfile.ZipFile(folder / f"{pictures}.zip", "w") as file:
                for name, jpeg in data.items():
                    file.writestr(name, jpeg)
        else:
            (folder / pictures).mkdir()
            for name, jpeg in data.items():
                (folder / name).write_bytes(jpeg)
    return folder


def records(root, name, split, vocabulary=None):
    of = {"kind": "tfds", "dir": str(root), "name": name, "split": split}
    made = source.make({"kind": "questions", "of": of, "vocabulary": vocabulary})
    return made, {record["key"]: record for record in made}


@pytest.mark.parametrize("archive", [False, True])
def test_vqav2(tmp_path, archive):
    target = manual.build(vqav2.Vqav2, write_vqav2(tmp_path, archive=archive), tmp_path / "data")
    assert len(list(target.glob("questions-*.json"))) == 3  # the index comes with the data
    made, found = records(tmp_path / "data", "vqav2", "train", {"min_count": 2})
    assert set(found) == {f"{coco('train2014', i)}/{1000 * i + k}" for i, k in ((57870, 0), (57871, 0), (57871, 1))}
    record = found[f"{coco('train2014', 57871)}/57871001"]
    assert (
        record["question"] == "Is this 57871001?" and record["kind"] == "yes/no" and record["image"] == picture(57871)
    )
    assert sorted(record["answers"]) == sorted([*SAID[:-1], "a couple"]) and record["answer"] == "no"
    assert (
        made.answers == ["no"] and record["answer_scores"].tolist() == [1] and record["answer_credits"].tolist() == [1]
    )
    assert len(records(tmp_path / "data", "vqav2", "validation")[1]) == 3
    hidden = records(tmp_path / "data", "vqav2", "test_dev")[1]
    assert len(hidden) == 3 and all(r["answers"] == [] and not len(r["answer_ids"]) for r in hidden.values())


def test_the_index_of_the_builder_is_the_one_that_is_read(tmp_path, monkeypatch):
    manual.build(vqav2.Vqav2, write_vqav2(tmp_path), tmp_path / "data")
    questions._indices.clear()
    monkeypatch.setattr(questions, "_scan", lambda made: pytest.fail("read again"))
    made, _ = records(tmp_path / "data", "vqav2:1.0.0", "validation")
    assert len(made) == 3 and made.answer_counts == [3]


def test_vqav2_is_the_same_every_time(tmp_path):
    write_vqav2(tmp_path)
    one, two = (manual.build(vqav2.Vqav2, tmp_path, tmp_path / name) for name in "ab")
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_vqav2_builds_what_is_there(tmp_path):
    with pytest.raises(UserError) as e:
        manual.build(vqav2.Vqav2, tmp_path, tmp_path / "data")
    said = f"{tmp_path}/v2_OpenEnded_mscoco_train2014_questions.json is expected: "
    assert str(e.value).startswith(said) and "443,757 questions" in str(e.value) and vqav2.PAGE in str(e.value)
    write_vqav2(tmp_path, ("val2014",))
    (tmp_path / "v2_mscoco_val2014_annotations.json").rename(tmp_path / "aside")
    with pytest.raises(
        UserError, match=rf"{tmp_path}/v2_mscoco_val2014_annotations.json is expected: .*the answers to"
    ):
        manual.build(vqav2.Vqav2, tmp_path, tmp_path / "data")
    (tmp_path / "aside").rename(tmp_path / "v2_mscoco_val2014_annotations.json")
    (tmp_path / "val2014").rename(tmp_path / "pictures")
    with pytest.raises(
        UserError, match=rf"{tmp_path}/val2014 is expected: val2014, or as val2014.zip \(40,504 pictures"
    ):
        manual.build(vqav2.Vqav2, tmp_path, tmp_path / "data")
    (tmp_path / "pictures").rename(tmp_path / "val2014")
    target = manual.build(vqav2.Vqav2, tmp_path, tmp_path / "data")
    assert [s["name"] for s in json.loads((target / "dataset_info.json").read_text())["splits"]] == ["validation"]


def change(path, edit):
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("questions", lambda t: t.pop("questions"), "questions.json is another file: it has no 'questions'; expected"),
        ("questions", lambda t: t["questions"][0].pop("image_id"), "a question of it has no 'image_id'; expected: v2_"),
        ("annotations", lambda t: t["annotations"][0].pop("answers"), "an answer of it has no 'answers'; expected"),
        ("annotations", lambda t: t["annotations"].pop(), "has no answers to question 57870000 of v2_OpenEnded_mscoco"),
    ],
)  # fmt: skip
def test_other_files_in_place_of_vqav2s(tmp_path, name, edit, message):
    write_vqav2(tmp_path, ("train2014",))
    change(next(tmp_path.glob(f"*_{name}.json")), edit)
    with pytest.raises(UserError) as e:
        manual.build(vqav2.Vqav2, tmp_path, tmp_path / "data")
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_missing_picture_is_named_or_left_out(tmp_path):
    write_vqav2(tmp_path, ("train2014",))
    lost = tmp_path / "train2014" / coco("train2014", 57871)
    lost.unlink()
    with pytest.raises(UserError) as e:
        manual.build(vqav2.Vqav2, tmp_path, tmp_path / "data")
    assert str(e.value) == (
        "2 of 3 questions of v2_OpenEnded_mscoco_train2014_questions.json (train) are about pictures that are not in "
        f"{tmp_path}/train2014, the first: {lost.name}; valid: put them there, or --skip_missing"
    )
    target = manual.build(vqav2.Vqav2, tmp_path, tmp_path / "data", skip_missing=True)
    assert len(records(tmp_path / "data", "vqav2", "train")[1]) == 1
    said = {"split": "train", "key": lost.name, "kind": "missing_image", "detail": "2 questions"}
    assert [json.loads(line) for line in (target / "dropped.jsonl").read_text().splitlines()] == [said]


def write_gqa(folder, parts=("train", "testdev")):
    for part in parts:
        rows = {
            f"0{n}": {"imageId": image, "question": f"Is {n} red?", "answer": "yes", "fullAnswer": "Yes, it is.",
                      "isBalanced": True, "types": {"structural": "verify", "semantic": "attr", "detailed": None}}
            for n, image in enumerate(["2407890", "n161313", "2407890"])
        }  # fmt: skip
        (folder / f"{part}_balanced_questions.json").write_text(json.dumps(rows))
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for n, image in enumerate(["2407890", "n161313", "1"]):
            file.writestr(f"images/{image}.jpg", picture(n))
    return folder


def test_gqa(tmp_path, caplog):
    target = manual.build(gqa.Gqa, write_gqa(tmp_path), tmp_path / "data")
    made, found = records(tmp_path / "data", "gqa", "testdev")
    assert set(found) == {"2407890.jpg/00", "n161313.jpg/01", "2407890.jpg/02"} and made.answers == ["yes"]
    assert {r["kind"] for r in found.values()} == {"verify"} and found["n161313.jpg/01"]["image"] == picture(1)
    assert "questions of gqa/1.0.0:testdev: 1 answers; usual are 1842" in caplog.text
    assert len(list(target.glob("questions-*.json"))) == 2


def test_other_files_in_place_of_gqas(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path}/train_balanced_questions.json is expected: .*943,000 questions"):
        manual.build(gqa.Gqa, tmp_path, tmp_path / "data")
    write_gqa(tmp_path, ("train",))
    change(tmp_path / "train_balanced_questions.json", lambda tree: tree["01"].pop("imageId"))
    with pytest.raises(
        UserError, match=r"train_balanced_questions.json is another file: a question of it has no 'imageId'"
    ):
        manual.build(gqa.Gqa, tmp_path, tmp_path / "data")


LINES = (
    {"image": "a.jpg", "question": "what?", "answer": "cup, bottle", "answers": ["cup", "bottle"], "id": "x"},
    {"image": "images/deep/b.jpg", "question": "how many?", "answer": 2, "split": "test", "kind": "count"},
    {"image": "a.jpg", "question": "why?", "answers": ["because"] * 10},
    {"image": "a.jpg", "question": "when?", "split": "test"},
)


def write_jsonl(folder, lines=LINES):
    (folder / "questions.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    (folder / "images/deep").mkdir(parents=True)
    (folder / "images/a.jpg").write_bytes(picture(1))
    (folder / "images/deep/b.jpg").write_bytes(picture(2))
    return folder


def test_vqa_jsonl(tmp_path, caplog):
    manual.build(vqa_jsonl.VqaJsonl, write_jsonl(tmp_path), tmp_path / "data", "mine")
    assert "1 questions have two or three answers, on which the official accuracy stays below 100 %" in caplog.text
    made, found = records(tmp_path / "data", "mine", "train")
    assert set(found) == {"a.jpg/x", "a.jpg/1"} and sorted(made.answers) == ["because", "bottle"]
    assert found["a.jpg/x"]["answers"] == ["cup", "bottle"]
    _, test = records(tmp_path / "data", "mine", "test", {"split": "test"})
    assert set(test) == {"images/deep/b.jpg/0", "a.jpg/0"} and test["images/deep/b.jpg/0"]["answers"] == ["2"]
    assert test["images/deep/b.jpg/0"]["image"] == picture(2) and test["images/deep/b.jpg/0"]["kind"] == "count"
    assert test["a.jpg/0"]["answers"] == []


def test_a_picture_of_several_names_has_all_their_questions(tmp_path):
    named = ("a.jpg", "images/a.jpg", "deep/b.jpg", "b.jpg", "images/deep/b.jpg")
    lines = [{"image": name, "question": f"{n}?", "answer": "yes"} for n, name in enumerate(named)]
    manual.build(vqa_jsonl.VqaJsonl, write_jsonl(tmp_path, lines), tmp_path / "data", "mine")
    _, found = records(tmp_path / "data", "mine", "train")
    asked = {"a.jpg/0": "0?", "a.jpg/1": "1?", "deep/b.jpg/0": "2?", "deep/b.jpg/1": "3?", "deep/b.jpg/2": "4?"}
    assert {key: record["question"] for key, record in found.items()} == asked


def test_ids_of_a_picture_of_several_names_are_its_own(tmp_path):
    lines = [{"image": name, "question": "q", "answer": "yes", "id": "x"} for name in ("a.jpg", "images/a.jpg")]
    with pytest.raises(UserError, match=r"line 3: a.jpg has a question with id 'x' already"):
        manual.build(vqa_jsonl.VqaJsonl, write_jsonl(tmp_path, lines), tmp_path / "data")


def test_a_file_name_that_several_pictures_have_is_refused(tmp_path):
    write_jsonl(tmp_path, [{"image": image, "question": "q", "answer": "yes"} for image in ("b.jpg", "a.jpg", "b.jpg")])
    (tmp_path / "images/other").mkdir()
    (tmp_path / "images/other/b.jpg").write_bytes(picture(3))
    with pytest.raises(UserError) as e:
        manual.build(vqa_jsonl.VqaJsonl, tmp_path, tmp_path / "data")
    assert str(e.value).startswith("2 of 3 questions of questions.jsonl (train) name their picture by what several")
    assert ", the first: b.jpg (deep/b.jpg, other/b.jpg); valid: the path of one of them" in str(e.value)


def test_a_line_of_vqa_jsonl_ends_at_a_newline_alone(tmp_path):
    write_jsonl(tmp_path, [])
    line = {"image": "a.jpg", "question": "what\u2028\x85is it?", "answer": "cup"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\r\n", encoding="utf-8")
    manual.build(vqa_jsonl.VqaJsonl, tmp_path, tmp_path / "data", "mine")
    assert records(tmp_path / "data", "mine", "train")[1]["a.jpg/0"]["question"] == line["question"]


def test_vqa_jsonl_with_one_reference(tmp_path):
    lines = [{**LINES[0], "id": k} for k in "xy"]
    manual.build(vqa_jsonl.VqaJsonl, write_jsonl(tmp_path, lines), tmp_path / "data", "mine", references="answer")
    made, found = records(tmp_path / "data", "mine", "train")
    assert found["a.jpg/x"]["answers"] == ["cup, bottle"] and made.answers == ["cup bottle"]
    assert found["a.jpg/y"]["answer_credits"].tolist() == [1]


@pytest.mark.parametrize(
    ("line", "references", "message"),
    [
        ("{", "", "questions.jsonl, line 2: not JSON ("),
        ('{"image": "a.jpg"}', "", "questions.jsonl, line 2: no 'question' in '{\"image\": \"a.jpg\"}'; expect"),
        ('["a"]', "", "line 2: no 'image' in '[\"a\"]'; expected: questions.jsonl (a line a question"),
        ('{"image": "a.jpg", "question": "q", "split": "a b"}', "", "line 2: 'a b' is not a split name; valid"),
        ('{"image": "a.jpg", "question": "q", "id": "x"}', "", "line 2: a.jpg has a question with id 'x' already"),
        ('{"image": "a.jpg", "question": "q", "answer": {}}', "", "line 2: 'answer' is [{}]; expected: a text"),
        ('{"image": "a.jpg", "question": "q", "answers": ["a"]}', "answer", "no 'answer'; valid: --references answers"),
        ('{"image": "c.jpg", "question": "q"}', "", "1 of 2 questions of questions.jsonl (train) are about"),
        ("", "reply", "unknown references 'reply'; valid: answers, answer"),
    ],
)  # fmt: skip
def test_wrong_lines(tmp_path, line, references, message):
    write_jsonl(tmp_path, LINES[:1])
    with open(tmp_path / "questions.jsonl", "a", encoding="utf-8") as file:
        file.write("\n" + line)
    with pytest.raises(UserError) as e:
        manual.build(vqa_jsonl.VqaJsonl, tmp_path, tmp_path / "data", references=references)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_no_lines_and_no_files(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/questions.jsonl is expected: .*; {tmp_path} holds nothing"):
        manual.build(vqa_jsonl.VqaJsonl, tmp_path, tmp_path / "data")
    write_jsonl(tmp_path, [])
    with pytest.raises(UserError, match=r"questions.jsonl is empty; expected: questions.jsonl \(a line a question"):
        manual.build(vqa_jsonl.VqaJsonl, tmp_path, tmp_path / "data")


def test_command_line(tmp_path, monkeypatch, capsys):
    write_jsonl(tmp_path, [*LINES, {"image": "gone.jpg", "question": "where?"}])
    words = ["vqa_jsonl", "--manual_dir", str(tmp_path), "--data_dir", str(tmp_path / "data"), "--name", "mine"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        return guarded(lambda: question_sets.run(vqa_jsonl.VqaJsonl, vqa_jsonl.parser()))

    assert run() == 2 and "the first: gone.jpg; valid: put them there, or --skip_missing" in capsys.readouterr().err
    assert run("--skip_missing", "--references", "answer") == 2  # the third line has only answers
    assert "line 5: no 'answer'; valid: --references answers" in capsys.readouterr().err
    assert run("--skip_missing") == 0
    out = capsys.readouterr().out
    assert "data/mine/1.0.0: test 2, train 1" in out and "missing_image 1" in out


def test_instructions_name_every_file_its_page_and_its_size():
    for cls in (vqav2.Vqav2, gqa.Gqa, vqa_jsonl.VqaJsonl):
        for file in cls.FILES:
            assert all(part in cls.MANUAL_DOWNLOAD_INSTRUCTIONS for part in (*file.names, file.page, file.size))
    assert len(vqav2.Vqav2.FILES) == 9 and len(gqa.Gqa.FILES) == 4


def test_references_survive_the_way(tmp_path):
    """What ten annotators said is judged as by the definition after storing, reading and batching."""
    manual.build(vqav2.Vqav2, write_vqav2(tmp_path, ("train2014",)), tmp_path / "data")
    _, found = records(tmp_path / "data", "vqav2", "train")
    for record in found.values():
        assert answers.accuracy("yes", answers.split(record["_references"])) == 1
        assert answers.accuracy("couple", record["answers"]) == pytest.approx(0.3)
