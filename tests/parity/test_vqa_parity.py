"""Answers against the program that was published with VQA, as the wheel of LAVIS ships it (BSD-3-Clause)."""

import importlib.util
import itertools
import subprocess
import sys
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from maeclip_jax.data import answers
from tests.parity import compare

pytest.importorskip("torch", reason="torch is missing: make test-parity")  # which may download

WHEEL, FILE = "salesforce-lavis==1.0.2", "lavis/common/vqa_tools/vqa_eval.py"

TEXTS = [
    "yes", "No", "Two", "2", "a dog", "the dog.", "black-white", "dont", "1,000", "1,000 (one thousand)", "t shirt",
    "t-shirt", "it's 3.5 m", "3.", "none", "somebody'd", "somebodyd", "an umbrella, red", "red , blue", "?", "the", "",
    "10:30", "10 : 30", "what?!", "Ten\tdogs\n", "she'd", "hadnt've", "wouldn'tve", "1,2 and three-four", "$5", "50%",
]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The published module. The wheel is taken without its requirements, which want an old transformers."""
    folder = tmp_path_factory.mktemp("lavis")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    if subprocess.run(command, capture_output=True, timeout=300).returncode:
        pytest.skip(f"{WHEEL} cannot be downloaded")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (folder / "vqa_eval.py").write_bytes(wheel.read(FILE))
    spec = importlib.util.spec_from_file_location("vqa_eval", folder / "vqa_eval.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(action="ignore"):  # escapes that Python deprecates
        spec.loader.exec_module(module)
    return module


def judged(program, given, references):
    """Accuracy [N], 0 to 1, of each answer given to a question with so many references."""
    truth = {
        n: {
            "answers": [{"answer": a, "answer_id": k} for k, a in enumerate(asked)],
            "question_type": str(n),
            "answer_type": "other",
        }
        for n, asked in enumerate(references)
    }
    source = SimpleNamespace(qa=truth, getQuesIds=lambda: list(truth))
    said = SimpleNamespace(qa={n: {"answer": a} for n, a in enumerate(given)}, getQuesIds=lambda: list(truth))
    found = program.VQAEval(source, said, n=10)
    found.evaluate()
    return np.array([found.accuracy["perQuestionType"][str(n)] for n in truth]) / 100


def test_normal_form_is_the_published_one(program):
    found = program.VQAEval(SimpleNamespace(getQuesIds=list), SimpleNamespace(getQuesIds=list))

    def theirs(text):
        text = text.replace("\n", " ").replace("\t", " ").strip()
        return found.processDigitArticle(found.processPunctuation(text))

    assert {t: answers.normalise(t) for t in TEXTS} == {t: theirs(t) for t in TEXTS}


def test_accuracy_is_the_published_one(program):
    """Where the references are in their normal form, as those of the released annotations are."""
    random = np.random.default_rng(0)
    plain = sorted({answers.normalise(t) for t in TEXTS} - {""})
    asked = [list(random.choice(plain, 10, p=random.dirichlet(np.full(len(plain), 0.1)))) for _ in range(2000)]
    given = [str(random.choice(a)) if n % 2 else str(random.choice(TEXTS)) for n, a in enumerate(asked)]
    ours = np.array([answers.accuracy(g, a) for g, a in zip(given, asked)])
    assert 0.1 < ours.mean() < 0.9
    compare.close("VQA's published program", f"accuracy of {len(asked):,} answers", ours, judged(program, given, asked))


def test_where_ours_differs_a_reference_is_not_in_its_normal_form(program):
    """The published program takes articles and number words out of what is judged, and not out of the references."""
    pairs = list(itertools.product(TEXTS, TEXTS))
    asked = [[reference] * 9 + ["other"] for _, reference in pairs]
    theirs = judged(program, [g for g, _ in pairs], asked)
    unlike = [r for (g, r), a, t in zip(pairs, asked, theirs) if abs(answers.accuracy(g, a) - t) > 1e-9]
    assert unlike and all(answers.normalise(r) != r for r in unlike)
