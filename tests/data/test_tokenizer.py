import functools
import gzip
import html
import itertools
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from maeclip_jax.data.tokenizer import TYPES, make
from maeclip_jax.errors import UserError

TEXT = Path(os.environ.get("MAECLIP_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "text"
SPECS = {
    "bert": {"type": "bert", "path": str(TEXT / "bert_base_uncased_vocab.txt")},
    "bert_cls": {"type": "bert", "path": str(TEXT / "bert_base_uncased_vocab.txt"), "cls": True},
    "clip": {"type": "clip", "path": str(TEXT / "bpe_simple_vocab_16e6.txt.gz")},
    "unigram": {"type": "sentencepiece", "path": str(TEXT / "sentencepiece_test_unigram_1k.model")},
    "bpe_eos": {"type": "sentencepiece", "path": str(TEXT / "axlearn_sp_bpe_32k_c4.model"), "eos": True},
    "bytes": {"type": "bytes"},
}


@functools.cache
def tokenizer(name):
    path = SPECS[name].get("path")
    if path and not os.path.exists(path):
        pytest.skip(f"{path} is not there; set MAECLIP_SHARED_DATA")
    return make(SPECS[name])


def captions(count=300) -> list[str]:
    path = TEXT / "multi30k_test2016_en5.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there; set MAECLIP_SHARED_DATA")
    rows = [json.loads(line) for line in path.read_text().splitlines()[: count // 5]]
    return [c for row in rows for c in next(v for v in row.values() if isinstance(v, list))]


FUZZ = [
    "", "   ", "\n\t", "a" * 10_000, "word " * 2_000, "\x00\x01\x07\x1b", "\ud800 half a pair", b"\xff\xfe bytes \xc3",
    "😀👩\u200d👩\u200d👧 🏳️\u200d🌈", "\u202eright to left", "ﷺ" * 50, "日本語のテキスト", "Ünïcödé", "\u0301\u0301",
    "&amp;lt; &#33;", "<|endoftext|> [PAD] </s>", "!+ !! !⊕",
]  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_any_text_gives_ids_in_range_with_zero_only_as_padding(name):
    t = tokenizer(name)
    assert t.pad_id == 0
    for text in FUZZ:
        for length in (1, 2, 7, 64):
            ids = t(text, length)
            assert ids.shape == (length,) and ids.dtype == np.int32
            assert ids.min() >= 0 and ids.max() < t.vocab_size
            real = (ids != 0).sum()
            assert (ids[:real] != 0).all(), f"a 0 inside {text!r}"
            assert isinstance(t.decode(ids), str)
        np.testing.assert_array_equal(t(text, 8)[:2], t(text, 64)[:2])
    assert t(b"a dog", 16).tolist() == t("a dog", 16).tolist()


@pytest.mark.parametrize("name", SPECS)
def test_decode_gives_the_words_back_and_pickling_changes_nothing(name):
    t = tokenizer(name)
    copy = pickle.loads(pickle.dumps(t))
    for text in captions(50):
        ids = t(text, 300)
        np.testing.assert_array_equal(copy(text, 300), ids)
        letters = re.sub(r"[\W_]|⁇", "", text.lower())
        assert re.sub(r"[\W_]|⁇", "", t.decode(ids).lower()) == letters, t.decode(ids)
    assert "".join(t.token(i) for i in ids if i).lower().count("a") >= text.lower().count("a")
    with pytest.raises(UserError, match=f"token -1 is not in the vocabulary of {t.vocab_size}; valid: 0 to"):
        t.token(-1)


def test_bert_ids_are_those_of_bert():
    t = tokenizer("bert")
    assert t.vocab_size == 30522 and t.token(0) == "[PAD]" and t.token(100) == "[UNK]"
    assert t("Hello, unaffable Café DOG!", 12).tolist() == [7592, 1010, 14477, 20961, 3468, 7668, 3899, 999, 0, 0, 0, 0]
    assert tokenizer("bert_cls")("hello world", 4).tolist() == [101, 7592, 2088, 0]
    assert tokenizer("bert_cls").decode([101, 14477, 20961, 3468, 0]) == "unaffable"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_a_bert_vocabulary_is_a_token_whatever_it_holds(tmp_path, end):
    """bert-base-chinese has U+2028 as a token; such lines must not shift the ids of those below them."""
    tokens = ["[PAD]", "[UNK]", "\x85", "\u2028", "\x0c", "a\u2029b", "cat", "dog"]
    for last in ("", end):
        (tmp_path / "vocab.txt").write_bytes((end.join(tokens) + last).encode())
        t = make({"type": "bert", "path": str(tmp_path / "vocab.txt")})
        assert [t.token(i) for i in range(t.vocab_size)] == tokens and t("dog cat", 3).tolist() == [7, 6, 0]


@functools.cache
def clip_ranks():
    lines = gzip.decompress(Path(SPECS["clip"]["path"]).read_bytes()).decode().splitlines()
    return {tuple(m.split()): i for i, m in enumerate(lines[1 : 49152 - 256 - 2 + 1])}


def clip_by_hand(text: str) -> list[str]:
    """CLIP's tokens by the definition of byte-pair encoding: again and again join the pair that was learnt first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letter = {b: chr(b) for b in printable}
    letter |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in printable)}
    text = re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip().lower()
    out = []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", text):
        parts = [letter[b] for b in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda p: clip_ranks().get(p, 1 << 30))
            if best not in clip_ranks():
                break
            at = pairs.index(best)
            parts[at : at + 2] = ["".join(best)]
        out += parts
    return out


def test_clip_ids_are_those_of_clip():
    t = tokenizer("clip")
    assert t.vocab_size == 49408
    assert t("a photo of a cat", 9).tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0, 0]
    assert t("Hello   WORLD!", 6).tolist() == [49406, 3306, 1002, 256, 49407, 0]
    assert t("one two three four five", 4).tolist()[::3] == [49406, 49407]  # the end stays
    assert t("salt &amp;amp; pepper", 8).tolist() == t("salt & pepper", 8).tolist()
    for text in [*captions(200), "Café — naïve #1 (50%)…", "it's they'll 2024", "日本 😀"]:
        assert [t.token(i) for i in t(text, 200) if i][1:-1] == clip_by_hand(text)


def test_an_exclamation_mark_in_clip_is_never_padding():
    t = tokenizer("clip")
    assert t.token(0) == "!" and t.token(256) == "!</w>"
    ids = t("!+", 5).tolist()
    assert ids == [49406, 256, 266, 49407, 0]  # by OpenAI: 0, 266
    assert t.decode(ids).replace(" ", "") == "!+"


def test_sentencepiece_keeps_zero_free():
    t = tokenizer("unigram")
    assert t.shift == 1 and t.vocab_size == 1001 and t.token(0) == "<pad>" and t.token(1) == "<unk>"
    assert t("A dog!", 6).tolist() == [105, 94, 38, 148, 0, 0]  # the model's own ids are 104 93 37 147
    t = tokenizer("bpe_eos")
    assert t.shift == 0 and t.vocab_size == 32000 and t.token(0) == "<pad>"
    assert t("A dog", 5).tolist() == [336, 2468, 1, 0, 0] and t("A dog", 2).tolist() == [336, 1]
    with_bos = make({**SPECS["unigram"], "bos": True, "eos": True})
    assert with_bos("A dog!", 7).tolist() == [2, 105, 94, 38, 148, 3, 0] and with_bos.decode([2, 105, 94, 3]) != ""


def test_texts_as_siglip_has_them_are_filled_with_their_end():
    spec = SPECS["bpe_eos"]
    plain = tokenizer("bpe_eos")
    t = make(spec | {"fill": "eos", "canonical": True})
    ids = t("A  DOG's ball!", 8).tolist()

    assert [i for i in ids if i != 1] == [i for i in plain("a dogs ball", 8).tolist() if i > 1]
    assert 0 not in ids and len(t("a " * 50, 8)) == 8 and t("a " * 50, 8)[-1] == 1
    for changes, message in (
        ({"fill": "end"}, "unknown fill of tokenizer 'sentencepiece': 'end'; valid: eos, pad"),
        ({"fill": "eos", "eos": False}, "fill='eos' needs eos=True"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            make(spec | changes)


def test_bytes_need_no_file():
    t = make(ConfigDict({"type": "bytes", "path": ""}))
    assert t.vocab_size == 257 and t("Aé\x00", 6).tolist() == [66, 196, 170, 1, 0, 0]
    assert t.decode([66, 196, 170, 0]) == "Aé" and t.decode([66, 196]) == "A"
    assert [t.token(i) for i in (0, 1, 66)] == ["<pad>", "<00>", "A"]


def test_the_packaged_vocabulary():
    import maeclip_jax

    if not (Path(maeclip_jax.__file__).parent / "data/vocab/scenes.txt").exists():
        pytest.skip("maeclip_jax/data/vocab/scenes.txt is not packaged yet")
    t = make({"type": "bert", "path": "scenes"})
    ids = t("a red circle left of a blue square", 32)
    assert t.decode(ids) == "a red circle left of a blue square" and (ids != 0).sum() <= 12


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "unknown tokenizer type None; valid: bert, bytes, clip, json, sentencepiece"),
        ({"type": "brt"}, "unknown tokenizer type 'brt' (did you mean 'bert'?); valid: bert, bytes"),
        ({"type": "bert"}, "tokenizer 'bert' needs path=\"FILE\""),
        (
            {"type": "bert", "path": "x", "clss": 1},
            "unknown option of tokenizer 'bert': 'clss' (did you mean 'cls'?); valid",
        ),
        ({"type": "bytes", "eos": True}, "unknown option of tokenizer 'bytes': 'eos'; it has none"),
        ({"type": "bert", "path": "no/such.txt"}, "tokenizer file 'no/such.txt' is not there; packaged are: scenes"),
        ({"type": "bert", "path": "bert_vocab.txt"}, "bert-base-uncased's is https://huggingface.co/google-bert/"),
        ({"type": "clip", "path": "no/such.gz"}, "tokenizer file 'no/such.gz' is not there; OpenAI's is https://"),
        (
            {"type": "sentencepiece", "path": "a/words.model"},
            "train one on your captions with `python -m maeclip_jax.prepare.vocabulary --name <data set> --out a/w",
        ),
        ({"type": "clip", "path": "/"}, "tokenizer file '/' cannot be read"),
    ],
)
def test_a_wrong_spec_names_the_thing_and_the_choices(spec, message):
    with pytest.raises(UserError) as e:
        make(spec)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [k for k in TYPES if k != "bytes"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff\xfe binary \x80", b"just\nsome\ntext\n", gzip.compress(b"zipped", mtime=0)],  # no time in it
    ids=["empty", "binary", "text", "gzip"],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, kind, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is not a "):
        make({"type": kind, "path": str(path)})


def test_missing_special_tokens_are_said():
    for spec, message in (
        ({**SPECS["bpe_eos"], "bos": True}, "has no bos token; leave bos out"),
        ({**SPECS["bert"], "path": SPECS["clip"]["path"]}, "is not a BERT vocabulary"),
        ({**SPECS["clip"], "path": SPECS["bert"]["path"]}, "is not a CLIP merges file"),
        ({**SPECS["unigram"], "path": SPECS["bert"]["path"]}, "is not a SentencePiece model"),
    ):
        if not os.path.exists(spec["path"]):
            pytest.skip(f"{spec['path']} is not there; set MAECLIP_SHARED_DATA")
        with pytest.raises(UserError, match=message):
            make(spec)
