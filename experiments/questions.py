"""Shared parts of finetuning on questions: the data sets, their sources and ops, and the run to finetune."""

from __future__ import annotations

import importlib

import ml_collections
from etils import epath

from maeclip_jax import errors
from maeclip_jax.config import read
from maeclip_jax.data import source
from maeclip_jax.errors import UserError
from maeclip_jax.workdir import CONFIG

# data -> the prepared set, its splits, how many answers, and which loss. Numbers of answers: LXMERT's label files
# (VQAv2, GQA), Johnson et al. 2017 (CLEVR), counted (scenes/demo). GQA's are all that occur in train and validation,
# neither of which is what is measured; elsewhere the answers are those of train alone.
DATA = {
    "scenes": dict(name="scenes/demo", train="train", test="test", answers=23),
    "clevr": dict(name="clevr", train="train", test="validation", answers=28),
    "vqav2": dict(name="vqav2", train="train", test="validation", answers=3129, loss="sigmoid"),
    "gqa": dict(name="gqa", train="train", test="testdev", answers=1842, vocabulary="train+validation"),
}
READ_TEXT = ("clip", "mae_clip", "m3ae", "slip", "silc", "tips")


def pretrained(arg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of the run that is finetuned (`init`), or of one that `of`, `scale` and `size` describe."""
    if not arg.init:
        errors.choose("of", arg.of, dict.fromkeys(READ_TEXT))
        given = [f"scale={arg.scale}", f"size={arg.size}", *(["runlocal"] if arg.runlocal else [])]
        return importlib.import_module(f"experiments.{arg.of}").get_config(",".join(given))
    path = epath.Path(arg.init) / CONFIG
    if not path.exists():
        raise UserError(f"init={arg.init!r} is not a workdir: it has no config.json; valid: a run's --workdir")
    found = read(str(path))
    if found.get("objective") not in READ_TEXT:
        raise UserError(
            f"init={arg.init!r} is a run of {found.get('objective')!r}, which does not read text; valid: runs of "
            + ", ".join(READ_TEXT)
        )
    return found


def data(arg: ml_collections.ConfigDict) -> dict:
    """A row of DATA; for a set of the user's, and for drawn scenes, the answers are counted in the data."""
    if arg.data in DATA and not arg.runlocal:
        return DATA[arg.data]
    found = {} if arg.runlocal else dict(name=arg.data, train="train", test="test")
    return found | dict(answers=len(source.make(questions(found, "train")).answers))


def questions(row: dict, split: str) -> dict:
    """The source of a split; without a name, scenes drawn when asked for, which are their own vocabulary."""
    if "name" not in row:
        of = dict(kind="scenes", resolution=32, count=64, truth="all", seed=0)
        return dict(kind="questions", of=of, vocabulary=dict(split="", min_count=1, top=0))
    of = dict(kind="tfds", dir="", name=row["name"], split=row[split])
    # The commonest answers of the training split: VQAv2's usual 3,129 were counted over train and validation together.
    top = row.get("answers", 0) if row.get("loss") else 0
    split = row.get("vocabulary", row["train"])
    return dict(kind="questions", of=of, vocabulary=dict(split=split, min_count=1, top=top))


def ops(image: str, length: int, blind: bool) -> str:
    """The ops of questions, in training and in evaluation; `image`: what happens to a picture."""
    ops = [image, *(["blank"] if blind else [])]
    ops += [f'tokenize({length},key="question",out="text")', "answers(10)"]
    return "|".join([*ops, 'keep("image","text","answer","score","credit")'])


def fusion(word: str, of: ml_collections.ConfigDict, depth: int) -> dict:
    """What the model needs to fuse picture and question: see `objectives.vqa`. `of`: the pretrained run's config."""
    errors.choose("fusion", word, dict.fromkeys(("fresh", "decoder", "joint")))
    if word == "joint" and of.objective != "m3ae":
        raise UserError(f"fusion=joint is M3AE's; {of.objective} encodes one stream at a time; valid: fresh")
    decoder = of.model.get("decoder_tower")
    if word == "decoder" and (not decoder or set(of.model.get("decode", ("image", "text"))) != {"image", "text"}):
        raise UserError(
            f"fusion=decoder needs a decoder of pictures and words, which this {of.objective} has not; valid: fresh"
        )
    image = of.model.image_tower
    fresh = dict(
        width=image.width, depth=depth, heads=image.heads, activation=image.get("activation", "gelu")
    )  # fmt: skip
    return dict(
        fusion=word, fusion_tower=fresh if word == "fresh" else {}, decoder_tower=decoder if word == "decoder" else {}
    )
