"""Answers: normal form, accuracy by hand, soft targets, vocabularies."""

import itertools

import numpy as np
import pytest

from maeclip_jax.data import answers
from maeclip_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Yes", "yes"),
        ("  a Red\tcar\n", "red car"),
        ("the man and an apple", "man and apple"),
        ("Two", "2"),
        ("none", "0"),
        ("twenty two", "twenty 2"),  # number words end at ten
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # two apostrophes missing: not in the table
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("twas", "'twas"),
        ("ow's'at", "'ow's'at"),
        ("wed", "wed"),  # a word of its own
        ("she's", "she's"),
        ("somebody'd", "somebodyd"),
        ("black-white", "black white"),  # between letters: a space
        ("black - white", "black white"),
        ("black -white", "black white"),
        ("well-known, yes", "well known yes"),  # each mark by its own neighbours
        ("1,000", "1000"),
        ("1,000 black-white cows", "1000 blackwhite cows"),  # a number takes all marks away
        ("3.5", "3.5"),
        ("3.5 m.", "3.5 m"),
        ("U.S.A.", "usa"),
        (".5", ".5"),
        ("yes, it is!", "yes it is"),
        ("who?", "who"),
        ("plastic_cup_of_coffee", "plastic cup of coffee"),
        ("7:30", "7:30"),
        ("man's", "man's"),
        ("the", ""),
        ("?!", ""),
    ],
)
def test_normal_form(text, form):
    assert answers.normalise(text) == form


def test_normal_form_of_a_normal_form_is_itself():
    words = ["two", "the", "U.S.", "1,5", "don't", "dont", "-", "black-white", "a.", "x,", "3.0", "?", "none"]
    for some in itertools.permutations(words, 2):
        once = answers.normalise(" ".join(some))
        assert answers.normalise(once) == once, some


def annotators(**given):
    """annotators(yes=7, no=3) -> ten references."""
    return [answer for answer, n in given.items() for _ in range(n)]


@pytest.mark.parametrize(
    ("matches", "expected"),
    # By hand, of ten: of m that match, m folds leave m - 1 and 10 - m folds leave m; min(/3, 1) each.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (9, 1.0), (10, 1.0)],
)
def test_accuracy_of_ten_annotators_by_hand(matches, expected):
    given = annotators(net=matches, netting=10 - matches)
    assert answers.accuracy("Net.", given) == pytest.approx(expected)


def leave_one_out(prediction, references):
    """The definition, word by word."""
    folds = []
    for i in range(len(references)):
        others = references[:i] + references[i + 1 :]
        folds.append(min(1, sum(r == prediction for r in others) / 3))
    return float(np.mean(folds))


def test_accuracy_is_the_definition_for_any_number_of_annotators():
    random = np.random.default_rng(0)
    for _ in range(300):
        given = [str(n) for n in random.integers(0, 4, random.integers(2, 13))]
        assert answers.accuracy("1", given) == pytest.approx(leave_one_out("1", given))


def test_accuracy_compares_normal_forms():
    assert answers.accuracy("The Dog!", ["a dog"] * 10) == 1
    assert answers.accuracy("two", ["2"] * 5 + ["Two."] * 5) == 1
    assert answers.accuracy("cat", ["dog"]) == 0 and answers.accuracy("Dog", ["a dog"]) == 1
    with pytest.raises(ValueError, match="without references"):
        answers.accuracy("dog", [])


def test_soft_targets():
    given = annotators(red=5, Blue=2, green=1, **{"a green": 1, "the": 1})
    assert list(answers.soft_scores(given).items()) == [("red", 1.0), ("blue", 2 / 3), ("green", 2 / 3)]
    assert answers.soft_scores(["Two dogs"]) == {"2 dogs": 1.0}
    assert answers.soft_scores([]) == answers.soft_scores(["?"]) == {}


def test_vocabulary_is_ordered_by_count_then_alphabet():
    counts = {"no": 3, "yes": 5, "2": 3, "dog": 1}
    assert list(answers.vocabulary(counts)) == ["yes", "2", "no", "dog"]
    assert answers.vocabulary(dict(reversed(counts.items()))) == answers.vocabulary(counts)
    assert answers.vocabulary(counts, min_count=3) == {"yes": 5, "2": 3, "no": 3}
    assert list(answers.vocabulary(counts, top=2)) == ["yes", "2"]


def test_vocabulary_files(tmp_path):
    path = tmp_path / "answers.txt"
    answers.write(path, {"yes": 5, "2 dogs": 1})
    assert list(answers.read(path).items()) == [("yes", 5), ("2 dogs", 1)]
    path.write_text("Two\t4\nblue\n\n2\t1\n")
    assert answers.read(path) == {"2": 5, "blue": 0}
    path.write_text("one\u2028way\t4\nblue\x85\n")
    assert answers.read(path) == {"1 way": 4, "blue": 0}  # a line ends at \n alone
    path.write_bytes("yes\t4\r\nno\r\n".encode("utf-8-sig"))  # as Windows' editors write it
    assert answers.read(path) == {"yes": 4, "no": 0}
    path.write_text("two\tmany\n")
    with pytest.raises(
        UserError, match=r"answers.txt, line 1: 'many' is not a count; valid: answer, or answer TAB count"
    ):
        answers.read(path)
    path.write_text("\n")
    with pytest.raises(UserError, match=r"answers.txt holds no answer; valid: a text file with an answer a line"):
        answers.read(path)
    with pytest.raises(UserError, match=f"no answers at {tmp_path}/none.txt; valid: a text file"):
        answers.read(tmp_path / "none.txt")


def test_references_travel_as_one_text():
    given = ["yes", "a\nb", ""]
    assert answers.split(answers.join(given)) == ["yes", "a b", ""]
    assert answers.split(answers.join([])) == []
