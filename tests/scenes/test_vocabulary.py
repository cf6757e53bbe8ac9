import pytest

from maeclip_jax.scenes import SceneSpec, scene, vocabulary


def listed():
    return vocabulary.FILE.read_text(encoding="utf-8").split("\n")[:-1]


def test_the_file_is_what_the_script_writes():
    assert listed() == vocabulary.tokens()


def test_special_tokens_first_and_no_token_twice():
    assert listed()[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(listed())) == len(listed()) < 300


@pytest.mark.parametrize("seed", [11, 12])
def test_every_word_of_the_data_set_is_one_token(seed):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.BertWordPieceTokenizer.from_file(str(vocabulary.FILE), lowercase=True)
    spec = SceneSpec(resolution=24, objects=(1, 5), shapes=16, colours=12, textures=6, captions=4, questions=8,
                     caption_noise=0.2, heldout_pairs=4)  # fmt: skip
    for split in ("train", "test", "heldout_multi", "classify"):
        for index in range(150):
            record = scene(spec, seed, index, split)
            texts = record["texts"] + [q[k] for q in record["questions"] for k in ("question", "answer")]
            for text in (*texts, *spec.classes):
                tokens = tokenizer.encode(text, add_special_tokens=False).tokens
                assert not any(t == "[UNK]" or t.startswith("##") for t in tokens), (text, tokens)


def test_other_english_is_spelt_not_lost():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.BertWordPieceTokenizer.from_file(str(vocabulary.FILE), lowercase=True)
    assert (
        "[UNK]"
        not in tokenizer.encode("A Quick-Brown fox's 42 jumps, over £3? No: & so (on)!".replace("£", "#")).tokens
    )
    assert "[UNK]" in tokenizer.encode("a 星").tokens
