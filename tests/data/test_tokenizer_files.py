"""Our tokenizers as files of Hugging Face: the library `tokenizers` reads the same ids out of them."""

import gzip
import json
import os

import numpy as np
import pytest

from maeclip_jax.data import tokenizer
from maeclip_jax.data.tokenizer import files as tokenizer_files
from maeclip_jax.errors import UserError
from maeclip_jax.prepare import vocabulary
from tests.data.test_tokenizer import FUZZ, SPECS, TEXT, captions

LENGTH = 40
KINDS = SPECS | {
    "scenes": {"type": "bert", "path": "scenes"},
    "bert_both": SPECS["bert"] | {"cls": True, "eos": True},
    "unigram_both": SPECS["unigram"] | {"bos": True, "eos": True},
    "siglip": SPECS["bpe_eos"] | {"fill": "eos", "canonical": True},
    "siglip2": SPECS["bpe_eos"] | {"lower": True},
    "siglip_open_clip": SPECS["bpe_eos"] | {"fill": "eos", "canonical": True, "unescape": True},
    "trained": {"type": "sentencepiece", "path": "TRAINED"},
    "json_bpe": {"type": "json", "path": "BPE", "lower": True, "unescape": True},
    "json_unigram": {"type": "json", "path": "UNIGRAM", "eos": True, "fill": "eos", "canonical": True},
    "json_padded": {"type": "json", "path": "PADDED", "bos": True, "eos": True},
}
# What the module says is different: an inner "!" of CLIP. A "</s>" that a text spells is cut
# otherwise by SentencePiece.
MEANT = {
    "clip": ("!+ !! !⊕",),
    "unigram": ("<|endoftext|> [PAD] </s>",),
    "unigram_both": ("<|endoftext|> [PAD] </s>",),
    "trained": ("<|endoftext|> [PAD] </s>",),
}


def spec_of(name, folder):
    spec = dict(KINDS[name])
    if spec.get("path") == "TRAINED":
        spec["path"] = str(folder / "words.model")
        (folder / "words.model").write_bytes(vocabulary.train(iter(captions(2000) * 3), 500))
    elif (trained := spec.get("path")) in ("BPE", "UNIGRAM", "PADDED"):
        spec["path"] = str(folder / "theirs.json")
        train(trained).save(spec["path"])
    elif spec.get("path") not in (None, "scenes") and not os.path.exists(spec["path"]):
        pytest.skip(f"{spec['path']} is not there; set MAECLIP_SHARED_DATA")
    return spec


def train(name):
    """A tokenizer of the library, as one finds them: UNIGRAM and BPE have no padding, PADDED has <pad> as its id 0."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = {"BPE": ["<unk>"], "UNIGRAM": ["<unk>", "</s>"], "PADDED": ["<pad>", "<unk>", "<s>", "</s>"]}[name]
    library = Tokenizer(models.Unigram() if name == "UNIGRAM" else models.BPE(unk_token="<unk>"))
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    settings = dict(vocab_size=500, special_tokens=special, show_progress=False)
    unigram = name == "UNIGRAM"
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **settings) if unigram else trainers.BpeTrainer(**settings)
    library.train_from_iterator(captions(500), trainer)
    if name == "PADDED":  # what it says of special tokens does not count
        library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
        library.enable_padding(pad_id=0, pad_token="<pad>")
    return library


def texts(name) -> list[str]:
    found = [t for t in FUZZ if isinstance(t, str) and "\ud800" not in t and t not in MEANT.get(name, ())]
    for language in ("en", "cs"):
        path = TEXT / f"multi30k_train.{language}.gz"
        found += gzip.decompress(path.read_bytes()).decode().splitlines()[:500] if path.exists() else []
    found += ["salt &amp;amp; pepper", "&lt;b&gt; caf&eacute; &copy; &#65;", "snake_case", "  leading, and   inner  "]
    return [*found, "“curly” — naïve", "[CLS] a dog [SEP]"]


@pytest.mark.parametrize("name", KINDS)
def test_the_library_reads_the_same_ids(name, tmp_path):
    from tokenizers import Tokenizer

    spec = spec_of(name, tmp_path)
    ours = tokenizer.make(spec)
    files = tokenizer_files.files(spec, LENGTH)
    config = json.loads(files["tokenizer_config.json"])
    library = Tokenizer.from_str(files["tokenizer.json"].decode())
    library.encode_special_tokens = config["split_special_tokens"]  # as transformers sets these
    library.enable_truncation(config["model_max_length"])
    pad = config["pad_token"]
    library.enable_padding(length=LENGTH, pad_id=library.token_to_id(pad), pad_token=pad)
    found = texts(name)
    for text, made in zip(found, library.encode_batch(found)):
        assert made.ids == ours(text, LENGTH).tolist(), text
    ids = ours("a brown dog runs", LENGTH)
    assert library.decode([i for i in ids if i], skip_special_tokens=True).split() == ours.decode(ids).split()


@pytest.mark.parametrize("name", KINDS)
def test_the_vocabulary_beside_them_makes_the_tokenizer_again(name, tmp_path):
    spec = spec_of(name, tmp_path)
    files = tokenizer_files.files(spec, LENGTH)
    assert set(files) <= set(tokenizer_files.NAMES)
    saved = tokenizer_files.saved(spec)
    if saved["path"]:
        (tmp_path / saved["path"]).write_bytes(files[saved["path"]])
        saved["path"] = str(tmp_path / saved["path"])
    ours, again = tokenizer.make(spec), tokenizer.make(saved)
    for text in captions(100):
        np.testing.assert_array_equal(again(text, LENGTH), ours(text, LENGTH))


def test_every_type_can_be_written():
    made = {spec["type"] for spec in KINDS.values()}
    assert made == set(tokenizer.TYPES) == set(tokenizer_files.VOCABULARY)


def test_padding_that_is_read_has_no_mask():
    spec = {"type": "bert", "path": "scenes"}
    masked, attended = (tokenizer_files.files(spec, 8, attended=x)["tokenizer_config.json"] for x in (False, True))
    assert json.loads(masked)["model_input_names"] == ["input_ids", "attention_mask"]
    assert json.loads(attended)["model_input_names"] == ["input_ids"]


def test_a_model_that_cannot_be_written_is_refused_with_what_can(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions(500)), model_prefix=str(tmp_path / "x"), vocab_size=200, pad_id=0, unk_id=1,
        bos_id=-1, eos_id=-1, treat_whitespace_as_suffix=True, num_threads=1, minloglevel=2,
    )  # fmt: skip
    spec = {"type": "sentencepiece", "path": str(tmp_path / "x.model")}
    with pytest.raises(UserError, match=r"treat_whitespace_as_suffix, .*; valid: config.tokenizer.type=bert"):
        tokenizer_files.files(spec, 8)


def test_a_bert_text_ends_where_it_is_asked_to():
    plain, both = (tokenizer.make({"type": "bert", "path": "scenes"} | x) for x in ({}, {"cls": True, "eos": True}))
    words = plain("a red circle", 8).tolist()
    assert both("a red circle", 8).tolist() == [2, *words[:3], 3, 0, 0, 0]
    assert both("a red circle", 4).tolist() == [2, *words[:2], 3]  # the end stays
    assert both.decode(both("a red circle", 8)) == "a red circle"


def test_an_option_that_is_off_does_not_hinder_another_type():
    made = tokenizer.make({"type": "bytes", "path": "", "cls": False, "eos": False})
    assert made.vocab_size == 257
    with pytest.raises(UserError, match="unknown option of tokenizer 'bytes': 'clss'"):
        tokenizer.make({"type": "bytes", "clss": False})
    with pytest.raises(UserError, match="unknown option of tokenizer 'bytes': 'eos'; it has none"):
        tokenizer.make({"type": "bytes", "eos": True})
