"""Source kind "questions": every question once, answers of the vocabulary, the index and when it is made anew."""

import io
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from maeclip_jax.data import answers, pipeline, questions, source, tokenizer
from maeclip_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

PIXELS = np.zeros((8, 8, 3), np.uint8)
OPS = 'tokenize(12,key="question",out="text")|answers(4)|keep("image","text","answer","score","credit")'
WORDS = tokenizer.make({"type": "bytes"})


def asked(picture):
    """`picture % 3` questions; the answers are 10 annotators' in the first, one in the second."""
    given = [["two"] * 6 + ["Three"] * 3 + ["sky"], ["a dog" if picture % 2 else "cat"]]
    return [
        {"id": f"q{k}", "question": f"what is {k} in {picture}?", "answers": given[k], "kind": ("number", "other")[k]}
        for k in range(picture % 3)
    ]


def notebook(count=9):
    return [{"key": f"p{i}", "image": PIXELS, "questions": asked(i)} for i in range(count)]


class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set in the layout of this project's builders: references as text, a line each."""

    VERSION = tfds.core.Version("1.0.0")
    name = "pets"
    said = "cat"

    def _info(self):
        row = {name: tfds.features.Text() for name in ("id", "question", "answers", "kind")}
        image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
        parts = {"key": tfds.features.Text(), "image": image, "questions": tfds.features.Sequence(row)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(parts))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(9), "val": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(PIXELS).save(file, "PNG")
            rows = [{**q, "answers": answers.join(q["answers"]).replace("cat", self.said)} for q in asked(i)]
            yield i, {"key": f"p{i}", "image": file.getvalue(), "questions": rows}


def build(root, said="cat"):
    tfds.disable_progress_bar()
    Pets.said = said
    Pets(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pets"))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(questions, "_indices", {})
    monkeypatch.setattr(questions, "_said", set())


def pets(root, split="train", **kwargs):
    of = {"kind": "tfds", "dir": str(root), "name": "pets", "split": split}
    return source.make({"kind": "questions", "of": of, **kwargs})


def test_every_question_once_in_order(root):
    own = {f"p{i}/q{k}" for i in range(9) for k in range(i % 3)}
    for made in (pets(root), questions.QuestionSource(notebook(), {"split": ""})):
        keys = [made[i]["key"] for i in range(len(made))]
        assert len(keys) == len(own) == 9 and set(keys) == own
        assert keys == [record["key"] for record in made]  # the same again
        pictures = [picture for picture, _ in itertools.groupby(k.partition("/")[0] for k in keys)]
        assert len(pictures) == len(set(pictures)) == 6  # those of a picture side by side
        with pytest.raises(IndexError):
            made[9]
    assert len(pets(root, "val")) == 3


def test_a_record(root):
    record = {r["key"]: r for r in pets(root)}["p2/q0"]
    assert record["question"] == "what is 0 in 2?" and record["kind"] == record["_kind"] == "number"
    assert record["answers"] == ["two"] * 6 + ["Three"] * 3 + ["sky"] and record["answer"] == "two"
    assert answers.split(record["_references"]) == record["answers"]
    assert "questions" not in record and record["image"][:4] == b"\x89PNG"
    # Vocabulary: 6 questions answered "2", of the 3 others two "dog" and one "cat"; "3" and "sky" win nowhere.
    made = pets(root)
    assert list(zip(made.answers, made.answer_counts)) == [("2", 6), ("cat", 2), ("dog", 1)]
    assert record["answer_ids"].tolist() == [0] and record["answer_ids"].dtype == np.int32
    assert record["answer_scores"].tolist() == [1] and record["answer_credits"].tolist() == [1]


def test_soft_targets_are_those_of_the_vocabulary_in_order(tmp_path):
    (tmp_path / "words.txt").write_text("sky\nThree\nmoon\ntwo\n")
    made = questions.QuestionSource(notebook(), str(tmp_path / "words.txt"))
    assert made.answers == ["sky", "3", "moon", "2"] and made.answer_counts == [0, 0, 0, 0]
    record = made[0]
    assert record["answer_ids"].tolist() == [3, 1, 0]  # commonest first
    np.testing.assert_allclose(record["answer_scores"], [1, 1, 1 / 3])
    np.testing.assert_allclose(record["answer_credits"], [1, 0.9, 0.3])
    assert made.outside == 3  # the three about pets


def test_rows_of_training_and_evaluation(root):
    config = {"source": {"kind": "questions", "of": {"kind": "tfds", "dir": str(root), "name": "pets"},
                         "vocabulary": {"min_count": 2}}, "ops": OPS}  # fmt: skip
    config["source"]["of"]["split"] = "train"
    config["ops"] = "decode|" + OPS
    rows = []
    for batch in pipeline.evaluate(config, batch_size=4, tokenizer=WORDS):
        assert batch["answer"].shape == (4, 4) and batch["answer"].dtype == np.int32
        assert batch["score"].dtype == batch["credit"].dtype == np.float32
        for i in np.flatnonzero(batch["_valid"]):
            # What an evaluator can know of a row agrees with the official accuracy of the raw references.
            references = answers.split(str(batch["_references"][i]))
            for place, said in enumerate(batch["answer"][i]):
                right = answers.accuracy(("2", "cat")[said], references) if said >= 0 else 0
                assert batch["credit"][i, place] == pytest.approx(right)
            rows.append((batch["_key"][i], WORDS.decode(batch["text"][i]), str(batch["_kind"][i])))
    assert len(rows) == len(set(rows)) == 9 and {kind for *_, kind in rows} == {"number", "other"}
    outside = [r for r in pets(root, vocabulary={"min_count": 2}) if not len(r["answer_ids"])]
    assert [r["answer"] for r in outside] == ["a dog"]  # stays, without a target
    with pipeline.train(config, batch_size=9, seed=0, tokenizer=WORDS) as batches:
        batch = next(batches)
    assert len(set(batch["_key"])) == 9 and (batch["answer"] == -1).all(1).sum() == 1
    assert pipeline.open(config).length == 9


def test_two_processes_have_every_question_once(root):
    of = {"kind": "tfds", "dir": str(root), "name": "pets", "split": "train"}
    config = {"source": {"kind": "questions", "of": of}, "ops": "decode|" + OPS}
    keys = []
    for process in range(2):
        for batch in pipeline.evaluate(
            config, batch_size=4, tokenizer=WORDS, process_index=process, process_count=2
        ):  # fmt: skip
            assert len(batch["_references"]) == len(batch["_kind"]) == 2
            assert all((r != "") == real for r, real in zip(batch["_references"], batch["_valid"]))  # of its own rows
            keys += list(batch["_key"][batch["_valid"]])
    assert sorted(keys) == sorted(record["key"] for record in pets(root))


def test_more_answers_than_there_is_room_for():
    made = questions.QuestionSource(
        [{"key": "a", "questions": [{"question": "?", "answers": list("bbccd")}]}], {"split": ""}
    )
    record = {**made[0], "answer_ids": np.array([3, 1, 2], np.int32), "answer_scores": np.ones(3, np.float32)}
    record["answer_credits"] = np.ones(3, np.float32)
    from maeclip_jax.data.ops import parse

    out = parse('answers(2)|keep("answer","score")')(record, None)
    assert out["answer"].tolist() == [3, 1] and out["score"].shape == (2,)
    with pytest.raises(UserError, match="most=0 is not valid; valid: a whole number of answers, 1 or more"):
        parse('answers(0)|keep("answer")')
    with pytest.raises(UserError, match=r"ops: answers\(2\): the record has no 'answer_ids'; it has: key"):
        parse('answers(2)|keep("answer")')({"key": "a"}, None)


def test_vocabulary_rules(root):
    assert pets(root, "val").answers == pets(root).answers  # counted on train, whatever is read
    assert pets(root, vocabulary={"top": 2}).answers == ["2", "cat"]
    assert pets(root, vocabulary={"split": "val"}).answers == ["2", "cat"]
    assert pets(root, vocabulary={"split": "train+val"}).answer_counts == [8, 3, 1]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"min": 2}, "unknown key of a vocabulary: 'min'; valid: split, min_count, top"),
        ({"min_count": "2"}, "vocabulary: min_count='2' is not valid; valid: a whole number, 0 or more"),
        ({"split": 3}, "vocabulary: split=3 is not valid; valid: the name of a split"),
        ({"min_count": 100}, "no answer of split 'train' is given 100 times; valid: a smaller min_count, or a path"),
        ({"split": "trian"}, "unknown split of pets/1.0.0: 'trian' (did you mean 'train'?); valid: train, val"),
        (3, "a vocabulary is a dict with split, min_count, top, or the path of a text file, not 3"),
        ("/nowhere.txt", "no answers at /nowhere.txt; valid: a text file with an answer a line"),
    ],
)
def test_wrong_vocabularies(root, vocabulary, message):
    with pytest.raises(UserError) as e:
        pets(root, vocabulary=vocabulary)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_wrong_sources():
    with pytest.raises(UserError, match=r"questions of scenes/train-0 have no end; valid: .* with count=1000"):
        source.make({"kind": "questions", "of": {"kind": "scenes", "truth": "all"}})
    with pytest.raises(UserError) as e:
        source.make({"kind": "questions", "of": {"kind": "scenes", "count": 2}})
    assert "record 'train-0-0' holds no questions, but image, key, noisy, texts; valid: a data set with" in str(e.value)
    with pytest.raises(UserError, match="unknown argument of source 'questions': 'off'"):
        source.make({"kind": "questions", "off": 1})
    with pytest.raises(
        UserError, match=r'records given as they are have no splits; valid: vocabulary=dict\(split=""\)'
    ):
        questions.QuestionSource(notebook())
    with pytest.raises(
        UserError, match=r"questions of record 'a' are \['why\?'\]; valid: dicts .* of question, answer or"
    ):
        questions.QuestionSource([{"key": "a", "questions": ["why?"]}], {"split": ""})
    with pytest.raises(UserError, match="unknown truth of source 'scenes': 'none'; valid: captions, all"):
        source.make({"kind": "scenes", "truth": "none"})


def test_the_index_is_kept_and_never_stale(tmp_path, monkeypatch):
    scans = []
    monkeypatch.setattr(questions, "_scan", lambda made, scan=questions._scan: scans.append(made.name) or scan(made))
    build(tmp_path)
    first = pets(tmp_path, "val")
    assert scans == ["pets/1.0.0:val", "pets/1.0.0:train"]
    assert pets(tmp_path, "val").answers == first.answers and len(scans) == 2  # this process knows
    questions._indices.clear()
    again = pets(tmp_path, "val")  # another process reads
    assert len(scans) == 2 and again.answers == first.answers and len(again) == 3
    assert 0 < len(pets(tmp_path, "val[:2]")) <= 3 and scans[2:] == ["pets/1.0.0:val[:2]"]
    # Other data under the same name, with all that lay beside the old: made anew.
    kept = {p.name: p.read_text() for p in (tmp_path / "pets/1.0.0").glob("questions-*.json")}
    assert len(kept) == 3
    for path in (tmp_path / "pets/1.0.0").iterdir():
        path.unlink()
    (tmp_path / "pets/1.0.0").rmdir()
    build(tmp_path, said="cow")  # of the same size
    for name, text in kept.items():
        (tmp_path / "pets/1.0.0" / name).write_text(text)
    questions._indices.clear()
    assert pets(tmp_path, "val").answers == ["2", "cow", "dog"]


def test_data_that_cannot_be_written_to_is_read_again(tmp_path, monkeypatch):
    build(tmp_path)

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(
        type(source.make({"kind": "tfds", "dir": str(tmp_path), "name": "pets"}).folder), "write_text", refuse
    )
    assert len(pets(tmp_path)) == 9
    assert not list((tmp_path / "pets/1.0.0").glob("questions-*"))


def test_what_is_unusual_is_said_once(root, caplog):
    for _ in range(2):
        pets(root, vocabulary={"min_count": 2})
    said = "questions of pets/1.0.0:train: 1 of 9 have no answer among the 2 of the vocabulary"
    assert [r.message for r in caplog.records if r.name == questions.__name__] == [said]
    caplog.clear()
    gqa = questions.QuestionSource(notebook(), {"split": ""})
    gqa.source = type("Set", (list,), {"name": "gqa/1.0.0:train"})(gqa.source)
    gqa._say()
    assert caplog.messages[-1] == "questions of records: 3 answers; usual are 1842"


def test_clevr_of_the_catalogue_and_hidden_answers():
    held = {"question": ["how many cubes?", "is there a ball?"], "answer": ["2", ""]}
    made = questions.QuestionSource([{"key": "c.png", "question_answer": held}], {"split": ""})
    assert [r["key"] for r in made] == ["c.png/0", "c.png/1"] and made.answers == ["2"]
    assert (
        made[1]["answers"] == []
        and made[1]["answer"] == ""
        and made[1]["kind"] == ""
        and not len(made[1]["answer_ids"])
    )
    assert made.outside == 1


def test_drawn_scenes_have_questions():
    of = {"kind": "scenes", "count": 3, "truth": "all", "resolution": 32, "split": "val"}
    made = source.make({"kind": "questions", "of": of, "vocabulary": {"split": "train"}})
    plain = source.make({"kind": "scenes", "count": 3, "resolution": 32, "split": "val"})
    assert len(made) == 3 * 4 and set(made.answers) > {"yes", "no"}
    np.testing.assert_array_equal(made[5]["image"], plain[1]["image"])
    assert made[5]["mask"].shape == (32, 32) and {r["kind"] for r in made} == {"exist", "count", "query", "compare"}


def test_travels_to_other_processes_without_reading_again(root, monkeypatch):
    made = pets(root)
    monkeypatch.setattr(questions, "_scan", None)
    again = pickle.loads(pickle.dumps(made))
    assert [r["key"] for r in again] == [r["key"] for r in made]
