"""Captions that are cut: counted by the ops of the data, without its pictures."""

import pytest

from maeclip_jax.data import pipeline
from maeclip_jax.data.tokenizer import make
from tests import runs

TEXTS = ["one", "one two three", "one two three four five six", ""]


class Records:
    """Records without a picture: none is looked at."""

    name = "records"

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return {"key": str(i), "texts": [self.texts[i]]}


@pytest.mark.parametrize(
    "ops, said",
    {
        "pick_caption|tokenize(13)": "33.3 % of 3 are cut at 13 tokens; the longest has 27",
        "pick_caption|tokenize(27)": "none of 3 are cut at 27 tokens; the longest has 27",
        'pick_caption|prefix("a photo of ")|tokenize(13)': "100.0 % of 3 are cut at 13 tokens; the longest has 38",
        "captions(2)|tokenize(13)": "33.3 % of 3 are cut at 13 tokens; the longest has 27",
    }.items(),
)
def test_captions_longer_than_their_tokens_are_counted(ops, said):
    data = pipeline.open({"source": Records(TEXTS), "ops": f'decode|{ops}|keep("image","text")'})
    assert str(data.cut_captions(make({"type": "bytes"}))) == said


def test_the_first_records_are_a_sample():
    data = pipeline.open({"source": Records(TEXTS * 10), "ops": 'tokenize(5)|keep("text")'})
    found = data.cut_captions(make({"type": "bytes"}), records=2)
    assert (found.texts, found.cut) == (2, 1)


@pytest.mark.parametrize("spec", [{"type": "bytes"}, {"type": "bert", "path": "scenes", "cls": True}])
def test_a_text_is_cut_where_it_has_more_tokens_than_there_is_room(spec):
    tokenizer = make(spec)
    for text in ("a red circle", "a red circle left of a blue square"):
        tokens = tokenizer.count(text)
        assert (tokenizer(text, 100) != 0).sum() == tokens
        assert (tokenizer(text, tokens) == tokenizer(text, 100)[:tokens]).all()


def test_training_begins_by_saying_it(tmp_path, capsys):
    runs.run(tmp_path, "objective=clip,steps=1,evals=false,save=1", 1)
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("captions of the first 1,000 records: ")]
    assert len(said) == 1 and " of 40 are cut at 16 tokens; the longest has " in said[0]
