"""Data scales: where pictures and words come from, and how long to train. Also: sources and ops of their splits.

Facts of the paper are marked "paper"; a value that we do not know from it is marked "default of ours".
"""

from __future__ import annotations

import ml_collections

from experiments.sizes import SIZES
from maeclip_jax import errors
from maeclip_jax.data import tokenizer

# scale -> where pictures and words come from, how long to train, and how much of a picture is hidden in a masked pass.
# low: CC12M as downloaded, 11.3M pairs (paper).
# high: 1.4B pairs; the paper's set is not public, DataComp-1B is the public stand-in by count (default of ours).
SCALES = {
    "demo": dict(
        source=dict(kind="tfds", name="scenes/demo"), size="demo", length=24,
        tokenizer=dict(type="bert", path="scenes"), crop=None,
        batch=64, total="7 epochs", warmup="5%", splits=("val", "test", "classify"),
        # Of 16 patches with few objects: 12 visible ones say what is in the others, 4 do not. Four in ten patches are
        # background, whose grain nobody can tell; counted by their variance, patches of objects are learnt (LOG.md).
        hidden=0.25, patch_weight="variance",
    ),
    "photos": dict(
        source=dict(kind="tfds", name="photos"), size="photos", length=32,
        tokenizer=dict(type="sentencepiece", path="data/photos/words.model"),
        crop="random_resized_crop({side},area=(0.5,1))", batch=128, total="40 epochs", warmup="10%",
        splits=("val", "test", None), hidden=0.75, patch_weight="one",
    ),
    "low": dict(
        source=dict(kind="tfds", name="cc12m"), size="B/16", length=64,
        tokenizer=dict(type="bert", path="bert_vocab.txt"), crop="random_resized_crop({side},area=(0.5,1))",
        batch=16384, total="30 epochs", warmup="5%", splits=("val", "val", None), hidden=0.75, patch_weight="one",
    ),
    "high": dict(
        source=dict(kind="tfds", name="datacomp_1b"), size="B/16", length=64,
        tokenizer=dict(type="bert", path="bert_vocab.txt"), crop="random_resized_crop({side},area=(0.5,1))",
        batch=16384, total="2.8B examples", warmup="2%", splits=("val", "val", None), hidden=0.75, patch_weight="one",
    ),
}  # fmt: skip

LARGE = ("low", "high")  # scales that pods train at

# runlocal: the whole experiment in seconds on a laptop: tiny towers, a few steps, scenes drawn on the fly.
LOCAL = dict(
    source=dict(kind="scenes", resolution=32), size="mu", length=16, tokenizer=dict(type="bert", path="scenes"),
    crop=None, batch=16, total="4 steps", splits=("val", "test", None),
)  # fmt: skip


# data=scenes: the drawn pictures of scale=demo, as many as `pairs` says (0: no end), of the share `diversity` of the
# combinations of colour and shape; as many examples as the demo sees, however few the pictures are. A file
# that ends in .json is a subset of a prepared set, made by maeclip_jax.study.subsets; the scale tests its own splits.
DATA = dict(data="", pairs=0, diversity=1.0)
SCENES = dict(resolution=64, objects=(1, 2), textures=1, heldout_pairs=4)
PICTURES = {"val": 1000, "test": 1000, "classify": 1280}  # of the splits that are tested


def _data(arg: ml_collections.ConfigDict, scale: dict) -> dict:
    """What `data=`, `pairs=` and `diversity=` change in a row of SCALES. UserError for what does not go together."""
    if "pairs" not in arg:  # an experiment whose `data` is another matter
        return {}
    name = arg.data
    if name != "scenes" and (arg.pairs or arg.diversity != 1.0):
        raise errors.UserError(f"pairs= and diversity= are of data=scenes, not of {f'data={name}' if name else 'none'}")
    if not name:
        return {}
    if name.endswith(".json"):
        return dict(source=dict(kind="subset", path=name), held=scale["source"])
    if name != "scenes":
        raise errors.unknown("data", name, ("scenes", "a subset's file, which ends in .json"))
    if arg.scale != "demo":
        raise errors.UserError(f"data=scenes has words and pictures of scale=demo, not of scale={arg.scale}")
    if arg.pairs < 0:
        raise errors.UserError(f"pairs={arg.pairs}; valid: the number of pictures, or 0 for pictures without end")
    drawn = SCENES | dict(resolution=SIZES[scale["size"]]["side"], diversity=arg.diversity)
    train = dict(kind="scenes", seed=0, split="train", count=arg.pairs or None) | drawn
    total = scale["total"] if arg.runlocal else "140k examples"
    return dict(source=train, splits=tuple(PICTURES), total=total)


def scale_of(arg: ml_collections.ConfigDict) -> dict:
    """The row of SCALES that `arg` names, with what `size=` and `runlocal` change in it."""
    scale = dict(errors.choose("scale", arg.scale, SCALES))
    if arg.size:
        scale["size"] = arg.size
    if arg.runlocal:
        scale |= LOCAL
    errors.choose("size", scale["size"], SIZES)
    return scale | _data(arg, scale)


def words_are_scenes(scale: dict) -> bool:
    """Whether pictures and captions are drawn ones."""
    return scale["tokenizer"].get("path") == "scenes"


def source(scale: dict, split: str, **more) -> dict:
    """Where the pictures and words of a split come from; a stream of scenes has no splits but another seed.

    `more`: of scenes that the argument asks for, what is different in a part of the split.
    """
    drawn = scale["source"]
    if drawn["kind"] == "subset":
        drawn = drawn if split == "train" else scale["held"]
    if drawn["kind"] == "scenes" and "split" in drawn:
        local = drawn["resolution"] < SCENES["resolution"]
        count = PICTURES.get(split, 0) // (16 if local else 1)
        return drawn if split == "train" else drawn | dict(seed=0, split=split, count=count) | more
    if drawn["kind"] == "scenes":
        return drawn | (dict() if split == "train" else dict(seed=1, count=64))
    return drawn if drawn["kind"] == "subset" else drawn | dict(dir="", split=split)


def whole_picture(side: int) -> str:
    """What evaluation does to a picture: the shorter side resized, the middle cut out."""
    return f"decode|resize_small({side})|center_crop({side})"


def ops(
    scale: dict, streams: tuple[str, ...], *, train: bool, captions: int = 0, label: bool = False, views: str = ""
) -> str:
    """The op string of a split: augmentation may be fast in training, resizing is exact in evaluation.

    `views`: the op that makes views of the whole picture as well, where an objective has some.
    """
    side = SIZES[scale["size"]]["side"]
    ops = ["decode", *([views.format(side=side)] if views else [])]
    if train and scale["crop"]:
        ops.append(scale["crop"].format(side=side))
    elif scale["crop"]:
        ops = [whole_picture(side)]
    if "text" in streams:
        ops.append(f"captions({captions})" if captions else "pick_caption")
        ops.append(f"tokenize({scale['length']})")
    kept = [*streams, *(["label"] if label else []), *(["views"] if views else [])]
    return "|".join([*ops, *(["label"] if label else []), "keep(" + ",".join(f'"{k}"' for k in kept) + ")"])


def vocabulary(scale: dict) -> int:
    """Entries of the text tower's table with the usual file of words; loading the config gives it the file's size."""
    return tokenizer.usual_size(scale["tokenizer"])
