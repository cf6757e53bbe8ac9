"""Training a vocabulary on captions: it must read back, keep padding at 0, and learn only from what it is given."""

import pytest

from maeclip_jax.data import tokenizer
from maeclip_jax.errors import UserError
from maeclip_jax.prepare import vocabulary
from maeclip_jax.scenes import SceneSpec, SceneStream

STREAM = SceneStream(SceneSpec(resolution=24), seed=3)
CAPTIONS = [text for i in range(150) for text in STREAM[i]["texts"]]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.model"
    path.write_bytes(vocabulary.train(CAPTIONS, 1000))
    return tokenizer.make({"type": "sentencepiece", "path": str(path)})


def test_captions_come_back(words):
    for caption in CAPTIONS:
        ids = words(caption, 96)
        assert (ids != 0).any() and ids[-1] == 0
        assert words.decode(ids) == caption


def test_case_is_folded_and_words_are_not_spelled_out(words):
    assert (words("A RED STAR", 16) == words("a red star", 16)).all()
    pieces = sum((words(c, 96) != 0).sum() for c in CAPTIONS)
    assert pieces < sum(len(c) for c in CAPTIONS) / 2


def test_same_captions_same_model():
    assert vocabulary.train(CAPTIONS, 300) == vocabulary.train(CAPTIONS, 300)


@pytest.mark.parametrize("words", [250, 2500])
def test_words_of_long_captions_are_learnt(words, tmp_path):
    path = tmp_path / "words.model"
    path.write_bytes(vocabulary.train([*CAPTIONS, *["zebra \u0436 " * words] * 20], 400))
    learnt = tokenizer.make({"type": "sentencepiece", "path": str(path)})
    assert learnt.decode(learnt("a zebra \u0436", 16)) == "a zebra \u0436"


def test_an_end_of_text_is_there_where_it_is_asked_for(tmp_path):
    path = tmp_path / "words.model"
    path.write_bytes(vocabulary.train(CAPTIONS, 400, end=True))
    words = tokenizer.make({"type": "sentencepiece", "path": str(path), "eos": True})
    ids = words("a red star", 16)
    assert ids[ids != 0][-1] == vocabulary.END and words.decode(ids) == "a red star"
    path.write_bytes(vocabulary.train(CAPTIONS, 400))
    with pytest.raises(UserError, match="has no eos token; leave eos out"):
        tokenizer.make({"type": "sentencepiece", "path": str(path), "eos": True})


@pytest.mark.parametrize(
    ("captions", "size", "said"), [(CAPTIONS, 50, "valid: 300 and above"), ([], 300, "no vocabulary")]
)
def test_bad_input_is_named(captions, size, said):
    with pytest.raises(UserError, match=said):
        vocabulary.train(captions, size)


def test_a_file_that_is_there_stays_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "captions_of", lambda *_: CAPTIONS)
    out = tmp_path / "words.model"
    out.write_bytes(b"of a run")
    argv = ["--name=photos", f"--out={out}", "--size=300"]
    with pytest.raises(UserError, match=r"--out \S+ is there: .* add --overwrite"):
        vocabulary.run(argv)
    assert out.read_bytes() == b"of a run"
    vocabulary.run([*argv, "--overwrite"])
    assert tokenizer.SentencePiece(str(out)).vocab_size > 0
