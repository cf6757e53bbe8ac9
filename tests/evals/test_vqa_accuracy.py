"""The VQA evaluator: credit by hand, text-only baselines that know nothing but questions, rows and kinds, mistakes."""

from types import SimpleNamespace

import numpy as np
import pytest

from maeclip_jax import evals
from maeclip_jax.errors import UserError
from maeclip_jax.evals import vqa
from tests.evals.found import values

TRAIN = (
    [("what colour is the sky", "blue")] * 6
    + [("what colour is the grass", "green")] * 7
    + [("is there a dog", "yes")] * 4
    + [("is there a cat", "no")] * 9
)
ANSWERS = ["no", "green", "blue", "yes"]


def ids(words, *questions):
    return np.stack([words(q, 8) for q in questions])


def test_credit_is_that_of_the_guess_or_none():
    answer = np.array([[2, 0, -1], [2, 0, -1], [1, -1, -1], [-1, -1, -1]])
    worth = np.array([[1, 0.3, 0], [1, 0.3, 0], [0.9, 0, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(vqa.credit(np.array([0, 3, 1, 0]), answer, worth), [0.3, 0, 0.9, 0])


@pytest.mark.parametrize(("length", "count"), [(10, 10), (100, 64), (1000, 300), (1000, 990), (443_757, 50_000)])
def test_training_questions_are_read_in_runs_from_everywhere(length, count):
    found = vqa._spread(length, count)
    assert len(set(found.tolist())) == len(found) <= count and found[0] >= 0 and found[-1] < length
    assert len(found) > 0.9 * count - 64
    requests = 1 + (np.diff(found) > 1).sum()
    assert requests <= -(-count // 64)
    if count > 64 * 100:  # each tenth of the data is there
        assert set(found * 10 // length) == set(range(10))


def test_text_only_answers_come_from_what_was_asked_in_training(words):
    asked = ids(words, *(q for q, _ in TRAIN))
    answer = np.array([ANSWERS.index(a) for _, a in TRAIN])
    new = ids(words, "is there a dog", "what colour is the car", "is there", "who won")
    found = vqa.text_only(asked, answer, new)
    named = {name: [ANSWERS[i] for i in guess] for name, guess in found.items()}
    assert named["commonest answer"] == ["no"] * 4
    # The same question; the longest known beginning (green 7, blue 6); "is there" (no 9, yes 4); nothing in common.
    assert named["same beginning"] == ["yes", "green", "no", "no"]
    assert named["nearest questions"][0] == "no"  # of the 25 nearest of 26, 9 say so


def test_nearest_questions_vote(words):
    asked = ids(words, *["red ball"] * 30, *["blue box"] * 30)
    found = vqa.text_only(asked, np.repeat([3, 5], 30), ids(words, "box", "a ball"))
    assert found["nearest questions"].tolist() == [5, 3]


class Source:
    classes = None

    def __init__(self, answers, records=()):
        self.answers, self.records = answers, records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        question, answer = self.records[i]
        known = [self.answers.index(answer)] if answer in self.answers else []
        return {"question": question, "answer_ids": np.array(known, np.int32)}


@pytest.fixture
def make(fake, words, pictures):
    """A model that answers with the id its picture shows."""

    def build(shown, questions, answer, *, kinds=None, train=None, **kwargs):
        data = {
            "image": pictures(shown),
            "text": ids(words, *questions),
            "answer": np.array(answer, np.int32)[:, None],
            "credit": np.array([[float(a >= 0)] for a in answer], np.float32),
        }
        objective = SimpleNamespace(answer=lambda: None, outputs=lambda: {"answer": len(ANSWERS)}, streams=())
        context = fake(data, objective=objective, tokenizer=words)
        sources = {"test": Source(ANSWERS), "train": train or Source(ANSWERS, TRAIN)}
        context.source = lambda config: sources[config["source"]]
        context.records = lambda config, indices: (sources[config["source"]][int(i)] for i in indices)
        rows = type(context).batches

        def batches(config, size):
            for start, batch in zip(range(0, len(shown), size), rows(context, config, size)):
                if kinds:
                    batch["_kind"] = np.array([*kinds[start : start + size], *[""] * size][:size], object)
                yield batch

        context.batches = batches
        context.compile = lambda function: lambda params, batch: np.eye(4)[context.rows(batch)["image"][:, 0, 0, 0]]
        made = evals.make("vqa", context, data=dict(source="test"), train=dict(source="train"), batch_size=4, **kwargs)
        return values(made.run(None))

    return build


def test_accuracy_by_kind_and_beside_it_what_text_gives(make):
    questions = [
        "is there a dog",
        "is there a cat",
        "what colour is the sky",
        "what colour is the grass",
        "is there a dog",
    ]
    found = make([3, 0, 1, 1, 0], questions, [3, 0, 2, 1, -1], kinds=["exist", "exist", "query", "query", "exist"])
    assert found["accuracy"] == 60 and found["answerable"] == 80
    assert found["accuracy_exist"] == pytest.approx(200 / 3) and found["accuracy_query"] == 50
    assert found["baseline_accuracy"] == 80  # the same questions were answered in training
    assert [r[0] for r in found["table"]["rows"]][:2] == ["the model", "text only: commonest answer"]
    assert found["examples"]["rows"][2] == ["what colour is the sky", "green", "blue", 0.0]


def test_mistakes_are_one_line(make, fake):
    with pytest.raises(UserError, match="`train` and `data` have different vocabularies"):
        make([0], ["is there a dog"], [0], train=Source(["yes"], TRAIN))
    with pytest.raises(UserError, match="`train` has no question with an answer of the vocabulary"):
        make([0], ["is there a dog"], [0], train=Source(ANSWERS, [("why", "because")]))
    with pytest.raises(evals.NotApplicable, match=r"answers no questions; finetune it with experiments/vqa.py"):
        evals.make("vqa", fake({"image": np.zeros((1, 4, 4, 3), np.uint8)}), data=dict(source="test"))


def test_a_vocabulary_of_another_size_is_refused(fake):
    objective = SimpleNamespace(answer=lambda: None, outputs=lambda: {"answer": 9})
    context = fake({"image": np.zeros((1, 4, 4, 3), np.uint8)}, objective=objective)
    context.source = lambda config: Source(ANSWERS)
    with pytest.raises(UserError, match="vocabulary has 4 answers, the model was made for 9; give it"):
        evals.make("vqa", context, data=dict(source="test"))
