"""What lies beside weights in a folder: the processor of pictures and the tokenizer, as the libraries write them."""

import io
import json

import numpy as np
import pytest

import maeclip_jax as mc
from maeclip_jax import interop
from maeclip_jax.data import ops, tokenizer
from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf_siglip, processors
from tests.interop import foreign
from tests.interop.test_clip_family import siglip

SQUARE, EDGE = dict(height=32, width=32), dict(shortest_edge=32)
HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
# What a file says -> ops of a model that takes 32 pixels in patches of 8.
SAID = {
    "CLIP": (
        dict(image_processor_type="CLIPImageProcessor", size=EDGE, crop_size=SQUARE, do_center_crop=True, resample=3),
        "decode|resize_small(32)|center_crop(32)",
    ),
    "a larger edge": (
        dict(image_processor_type="CLIPImageProcessor", size=dict(shortest_edge=36), crop_size=SQUARE, resample=2),
        'decode|resize_small(36,method="bilinear")|center_crop(32)',
    ),
    "CLIP of 2021": (
        dict(feature_extractor_type="CLIPFeatureExtractor", size=32, crop_size=32, do_center_crop=True, resample=3),
        "decode|resize_small(32)|center_crop(32)",
    ),
    "SigLIP": (dict(image_processor_type="SiglipImageProcessor", size=SQUARE, resample=3), "decode|resize(32)"),
    "ViTMAE": (
        dict(feature_extractor_type="ViTFeatureExtractor", size=32, resample=2), 'decode|resize(32,method="bilinear")'
    ),
    "a square and its middle": (
        dict(size=dict(height=36, width=36), crop_size=32, do_center_crop=True, resample=3),
        "decode|resize(36)|center_crop(32)",
    ),
}  # fmt: skip


def put(folder, processor, version: int):
    """The file that version 4 or 5 of transformers writes; version 4 may have one of the other name beside it."""
    if version == 5:
        (folder / "processor_config.json").write_text(json.dumps(dict(image_processor=processor, processor_class="X")))
    else:
        (folder / "processor_config.json").write_text(json.dumps(dict(processor_class="X")))
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", SAID)
def test_pictures_follow_the_processor(name, version, tmp_path):
    said, words = SAID[name]
    put(tmp_path, said | HALF, version)
    made = processors.hugging_face(tmp_path, 32, 8, stats="clip", squash=False)
    assert made == dict(ops=words, stats="half")
    ops.parse(f'{made["ops"]}|keep("image")')


def test_a_folder_without_a_processor_has_the_default_of_its_kind(tmp_path):
    assert processors.hugging_face(tmp_path, 38, 8, stats="clip", squash=True) == dict(
        ops="decode|resize(38)|corner_crop(32)", stats="clip"
    )


def test_another_size_keeps_the_share_that_is_cut_off():
    for words, want in (
        ("decode|resize_small(36)|center_crop(32)", "decode|resize_small(72)|center_crop(64)"),
        ("decode|resize(38)|corner_crop(32)", "decode|resize(64)"),
        ('decode|resize(32,method="bilinear")', 'decode|resize(64,method="bilinear")'),
        # As a config of ours may have them, which `save` keeps.
        ("decode|resize((32,32))", "decode|resize((64,64))"),
        ("decode|resize_small(36)|center_crop((32,32))", "decode|resize_small(72)|center_crop((64,64))"),
        (
            "decode|resize((36,48))|center_crop((32,32))|corner_crop((30,30))",
            "decode|resize((72,96))|center_crop((64,64))",
        ),
        ('decode|resize(method="bilinear",size=32)', 'decode|resize(method="bilinear",size=64)'),
        (
            "decode(10000)|resize_small(side=48)|center_crop((32,24))",
            "decode(10000)|resize_small(side=128)|center_crop((64,64))",
        ),
    ):
        made = processors.at_size(words, 64)
        assert made == want
        ops.parse(f'{made}|keep("image")')
    with pytest.raises(UserError, match=r"size=64: the ops of pictures are 'decode', which name no size"):
        processors.at_size("decode", 64)


@pytest.mark.parametrize(
    "said,message",
    [
        (dict(size=SQUARE, do_normalize=False), "do_normalize is False; valid here: True"),
        (dict(size=SQUARE, do_resize=False), "do_resize is False; valid here: True"),
        (dict(size=SQUARE, rescale_factor=1 / 127.5), "rescale_factor is 0.00784.*; valid here: 1/255"),
        (
            dict(size=SQUARE, do_center_crop=False, resample=5),
            r"resample is 5; valid here: 0 \(nearest\), 1 \(lanczos\)",
        ),
        (dict(size=dict(height=32, width=48)), "size is .*; valid here: a square, or the shortest_edge"),
        (dict(size=dict(height=48, width=48), do_center_crop=False), "makes pictures of 48, the model takes 32"),
        (dict(size=EDGE, crop_size=48, do_center_crop=True), "makes pictures of 48, the model takes 32"),
        (
            dict(size=dict(shortest_edge=24), crop_size=32),
            "resizes to 24 and cuts out 32; valid here: a crop of at most",
        ),
    ],
)
def test_what_our_ops_do_not_do_is_one_line(said, message, tmp_path):
    put(tmp_path, said, 5)
    with pytest.raises(UserError, match=f"processor_config.json'?:? ?.*{message}") as caught:
        processors.hugging_face(tmp_path, 32, 8, stats="clip", squash=False)
    assert "\n" not in str(caught.value)


def test_the_upper_left_pixels():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    made = ops.parse('decode|corner_crop((4,2))|keep("image")')({"image": image}, None)["image"]
    np.testing.assert_array_equal(made, image[:4, :2])


def clip_json() -> dict:
    """The tokenizer.json of foreign.MERGES as version 5 writes it."""
    letters = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    names = [*letters, *(c + "</w>" for c in letters), "ab", "cd</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(names)}
    return dict(model=dict(type="BPE", end_of_word_suffix="</w>", vocab=vocab, merges=[["a", "b"], ["c", "d</w>"]]))


@pytest.mark.parametrize("pairs", [True, False])
def test_a_clip_whose_words_are_in_a_tokenizer_json(tmp_path, pairs):
    folder, _ = foreign.hf_clip(tmp_path / "clip")
    before = mc.load(f"hf-clip:{folder}").preprocess
    (folder / "merges.txt").unlink()
    (folder / "preprocessor_config.json").unlink()
    there = clip_json()
    if not pairs:
        there["model"]["merges"] = [" ".join(m) for m in there["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(there))
    put(folder, SAID["CLIP"][0] | HALF, 5)
    model = mc.load(f"hf-clip:{folder}")
    assert model.config.model.stats == "half"
    texts = ["ab cd!", "AB &amp; x", "abcd"]
    np.testing.assert_array_equal(model.preprocess.texts(texts), before.texts(texts))


def test_tokenizer_files_that_are_no_clip_are_one_line(tmp_path):
    path, there = tmp_path / "tokenizer.json", clip_json()["model"]
    for model, message in (
        (there | dict(merges=[]), "is not the tokenizer.json of a CLIP: it has no merges of words that end in </w>"),
        (there | dict(vocab={"a": 0}), "is not a CLIP vocabulary: its ids are not those of its merges"),
        ({}, "is not the tokenizer.json of a CLIP: it has no 'merges'"),
    ):
        path.write_text(json.dumps(dict(model=model)))
        with pytest.raises(UserError, match=message):
            tokenizer.make(dict(type="clip", path=str(path)))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json: "):
        tokenizer.make(dict(type="json", path=str(path)))


def pieces(bos: int) -> bytes:
    """A small SentencePiece model: T5's special tokens with bos=-1, Gemma's with bos=2."""
    import sentencepiece

    out = io.BytesIO()
    texts = [f"a dog, a cat! the {w}: (one) two-three." for w in ("cube", "ball", "red", "blue")] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, vocab_size=60, pad_id=0, eos_id=1, bos_id=bos,
        unk_id=2 if bos < 0 else 3, hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def library_json() -> str:
    """A tokenizer.json with Gemma's special tokens; what it says of special tokens and of length is not followed."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {n: i for i, n in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "a", "dog", ",", "!"))}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.enable_padding(length=3, pad_id=5)
    made.enable_truncation(2)
    return made.to_str()


SIGLIP = dict(eos=True, fill="eos", canonical=True)
SIGLIP_2 = dict(eos=True, fill="pad", lower=True)


@pytest.mark.parametrize(
    "file,bos,class_name,rules",
    [
        ("spiece.model", -1, "", SIGLIP),
        ("spiece.model", 2, "", SIGLIP_2),
        ("tokenizer.model", 2, "", SIGLIP_2),
        ("tokenizer.json", 2, "", SIGLIP_2),
        ("spiece.model", 2, "SiglipTokenizer", SIGLIP),
        ("tokenizer.json", 2, "Siglip2Tokenizer", SIGLIP_2),
        ("tokenizer.model", -1, "GemmaTokenizerFast", SIGLIP_2),
    ],
)
def test_siglip_and_siglip_2_have_opposite_rules(file, bos, class_name, rules, tmp_path):
    folder, _ = siglip(tmp_path)
    if file.endswith(".json"):
        (folder / file).write_text(library_json())
    else:
        (folder / file).write_bytes(pieces(bos))
    if class_name:
        (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class=class_name)))
    found = interop.load("hf-siglip", folder).config.tokenizer.to_dict()
    kind = "json" if file.endswith(".json") else "sentencepiece"
    assert found == dict(type=kind, path=str(folder / file)) | rules
    words = tokenizer.make(found)
    text, plain = words("A dog, a DOG!", 24), words("a dog a dog", 24)
    keeps = rules is SIGLIP_2
    assert (text.tolist() != plain.tolist()) == keeps
    end = int(np.flatnonzero(text == 1)[0])
    assert set(text[end:].tolist()) == ({0, 1} if keeps else {1}) and text[end] == 1
    assert words("a dog " * 30, 6)[-1] == 1  # the end stays where a text is cut
    assert words("a dog,", 24).tolist() == words("A Dog,", 24).tolist()


def test_texts_of_open_clip_are_unescaped_first(tmp_path):
    """Entities are resolved twice and underscores are spaces, before punctuation goes."""
    from pathlib import Path

    from maeclip_jax.interop import openai_clip

    (tmp_path / "tokenizer.json").write_text(library_json())
    section = dict(hf_tokenizer_name="x", tokenizer_kwargs=dict(clean="canonicalize"))
    words = tokenizer.make(openai_clip._words(section, Path(tmp_path)))
    assert words("A_dog &amp;amp; &#97;_DOG_", 6).tolist() == words("a dog a dog", 6).tolist() == [4, 5, 4, 5, 1, 0]
    hugging_face = tokenizer.make(hf_siglip.words(tmp_path, canonical=True))
    assert hugging_face("a_dog", 6).tolist() != hugging_face("a dog", 6).tolist()


def test_a_tokenizer_json_by_our_rules(tmp_path):
    (tmp_path / "tokenizer.json").write_text(library_json())
    spec = hf_siglip.words(tmp_path)
    words = tokenizer.make(spec)
    assert words("A dog, a DOG!", 10).tolist() == [4, 5, 6, 4, 5, 7, 1, 0, 0, 0]
    assert words.vocab_size == 8 and words.token(5) == "dog" and words.decode([4, 5, 1, 0]) == "a dog"
    canonical = tokenizer.make(hf_siglip.words(tmp_path, canonical=True))
    assert canonical("A dog, a DOG!", 6).tolist() == [4, 5, 4, 5, 1, 0]
