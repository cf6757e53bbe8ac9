"""Token for token: our CLIP and BERT tokenizers against transformers' and open_clip's, on caption files."""

import functools
import gzip
import html
import json

import numpy as np
import pytest

from maeclip_jax.data import tokenizer
from tests.data.test_tokenizer import SPECS, TEXT

transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")

LENGTH = 77
FILES = ("captions.jsonl", *(f"multi30k_train.{language}.gz" for language in ("en", "de", "fr", "cs")))


@functools.cache
def captions(name: str) -> list[str]:
    path = TEXT.parent / "photos" / name if name.endswith(".jsonl") else TEXT / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set MAECLIP_SHARED_DATA")
    if name.endswith(".jsonl"):
        return [c for line in path.read_text().splitlines() for c in json.loads(line)["captions"]]
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def ours(name: str):
    if not TEXT.exists():
        pytest.skip(f"{TEXT} is not there; set MAECLIP_SHARED_DATA")
    return tokenizer.make(SPECS[name])


def same(texts: list[str], words, theirs) -> None:
    """Fails with the first text whose ids differ. `theirs`: lists of ids without padding.

    The one difference that is meant: an inner 0, CLIP's "!" before another sign, is 256 in ours, where 0 is padding.
    """
    assert len(theirs) == len(texts) > 1000
    for text, ids in zip(texts, theirs):
        row = words(text, LENGTH)
        assert row[: len(ids)].tolist() == [i or 256 for i in ids] and not row[len(ids) :].any(), text


@pytest.mark.parametrize("file", FILES)
def test_bert_is_transformers_bert(file):
    words = ours("bert")
    library = transformers.BertTokenizer(SPECS["bert"]["path"])
    assert library.vocab_size == words.vocab_size
    texts = captions(file)
    same(texts, words, library(texts, add_special_tokens=False, truncation=True, max_length=LENGTH)["input_ids"])


@functools.cache
def clip_of_transformers(folder):
    """CLIPTokenizer of the vocabulary and merges that openai/CLIP's file holds."""
    lines = gzip.decompress((TEXT / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    words = ours("clip")
    vocab = {words.token(i): i for i in range(words.vocab_size)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    if transformers.__version__ < "5":
        return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return transformers.CLIPTokenizer(vocab, merges)


@pytest.mark.parametrize("file", FILES)
def test_clip_is_transformers_clip(file, tmp_path_factory):
    words = ours("clip")
    library = clip_of_transformers(tmp_path_factory.getbasetemp())
    # transformers does not resolve HTML entities, which openai/CLIP does.
    texts = [text for text in captions(file) if html.unescape(text) == text]
    assert len(texts) > 0.99 * len(captions(file))
    same(texts, words, library(texts, truncation=True, max_length=LENGTH)["input_ids"])


@pytest.mark.parametrize("file", FILES)
def test_clip_is_open_clip_s(file):
    open_clip = pytest.importorskip("open_clip", reason="parity needs open_clip: make test-parity")
    ftfy = pytest.importorskip("ftfy", reason="parity needs open_clip: make test-parity")
    words, library = ours("clip"), open_clip.tokenizer.SimpleTokenizer()
    # ftfy makes curly quotes straight and repairs broken encodings first; transformers and ours do not.
    texts = [text for text in captions(file)[:6000] if ftfy.fix_text(text) == text]
    assert len(texts) > 0.97 * len(captions(file)[:6000])
    texts += ["salt &amp;amp; pepper", "it's they'll 2024", "日本 😀 Café — naïve #1 (50%)…"]
    theirs = library(texts, LENGTH).numpy()
    same(texts, words, [row[: np.flatnonzero(row)[-1] + 1].tolist() for row in theirs])


@pytest.mark.parametrize("file", FILES)
def test_siglip_is_open_clip_s(file, tmp_path):
    """SigLIP's words in a folder as open_clip's Hub has them: it cleans texts itself before the library splits them."""
    open_clip = pytest.importorskip("open_clip", reason="parity needs open_clip: make test-parity")
    ftfy = pytest.importorskip("ftfy", reason="parity needs open_clip: make test-parity")
    from maeclip_jax.interop import openai_clip

    texts = [text for text in captions(file)[:3000] if ftfy.fix_text(text) == text]
    texts += ["a photo of hot_dog", "__a_b__ c_", "salt &amp;amp; pepper &lt;b&gt;", "Two dogs, one CAT!"]
    transformers.SiglipTokenizer(vocab_file=SPECS["bpe_eos"]["path"]).save_pretrained(tmp_path)
    library = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=64, clean="canonicalize")
    section = dict(hf_tokenizer_name="x", tokenizer_kwargs=dict(clean="canonicalize"))
    words = tokenizer.make(openai_clip._words(section, tmp_path))
    assert len(texts) > 1000
    np.testing.assert_array_equal(np.stack([words(t, 64) for t in texts]), library(texts).numpy())
