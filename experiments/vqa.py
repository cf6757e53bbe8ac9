"""VQA finetuning (table "VQA" of the paper): the towers of a pretrained run, a fusion of both, an answer head.

    python -m maeclip_jax.main --config=experiments/vqa.py:init=runs/clip,data=scenes --workdir=runs/clip_vqa
    python -m maeclip_jax.main --config=experiments/vqa.py:init=gs://b/m3ae_high,scale=high,data=clevr --workdir=...

Argument: data = scenes | clevr | vqav2 | gqa | the name of a set built by maeclip_jax.data.builders.vqa_jsonl; init =
workdir of the pretrained run, whose towers, tokenizer and sizes are taken over from its config.json; without it, of =
clip | mae_clip | m3ae with scale and size (and --config.init_from, or towers from scratch); pool (of either stream
after fusion); blind (grey pictures: what the same model learns from questions alone); epochs (0: the default);
runlocal.

M3AE fuses in its own joint encoder; CLIP and MAE-CLIP in a fresh transformer over both token streams: 2 layers (demo,
photos) or 4 as wide as the image tower. That, and the recipe, are defaults of ours: the paper's are unknown. From
LXMERT: form of the head, 4 epochs; answers: 3,129 (VQAv2, soft targets, sigmoid), 1,842 (GQA), 28 (CLEVR). The paper
has, after 1.4B: CLEVR / VQAv2 / GQA 96.9 / 59.9 / 53.3 % (M3AE), 87.8 / 61.8 / 55.0 % (CLIP), 92.8 / 61.9 / 55.3 %
(MAE-CLIP).
"""

from __future__ import annotations

import json

from etils import epath

from experiments import common
from maeclip_jax.data import source

# data -> the prepared set, its splits, how many answers, and which loss. Answers of scenes/demo: counted.
DATA = {
    "scenes": dict(name="scenes/demo", train="train", test="test", answers=25),
    "clevr": dict(name="clevr", train="train", test="validation", answers=28),
    "vqav2": dict(name="vqav2", train="train", test="validation", answers=3129, loss="sigmoid", min_count=9),
    "gqa": dict(name="gqa", train="train", test="testdev", answers=1842),
}


def get_config(arg=None):
    arg = common.parse_arg(
        arg, data="scenes", of="clip", init="", scale="demo", size="", pool="gap", epochs=0.0, blind=False,
        runlocal=False,
    )  # fmt: skip
    pretrained = _pretrained(arg)
    joint = pretrained.objective == "m3ae"
    config = common.base(arg, "vqa", ("image", "text"))
    big = arg.scale in ("low", "high") and not arg.runlocal
    config.arg = dict(config.arg) | dict(of=pretrained.objective, pool=pretrained.arg.get("pool", ""))
    config.init_from = arg.init
    config.tokenizer = pretrained.tokenizer
    image, text = pretrained.model.image_tower, pretrained.model.text_tower
    width, heads = image.width, image.heads
    data = _data(arg)
    config.model = dict(
        image_tower=image, text_tower=text, fusion="joint" if joint else "towers",
        fusion_tower=None if joint else dict(
            width=width, depth=4 if big else 2, heads=heads, activation=image.get("activation", "gelu")
        ),
        answers=data["answers"], pool=arg.pool, loss=data.get("loss", "softmax"), slots=10,
        stats=pretrained.model.get("stats", "imagenet"), compute=config.model.compute,
    )  # fmt: skip
    side, length = image.size, text.length
    config.data.source = _questions(data, "train")
    config.data.ops = _ops(side, length, arg.blind, "score")
    config.batch_size = 16 if arg.runlocal else 256 if big else 128
    if not arg.runlocal:
        config.total = f"{arg.epochs or (4 if big else 3):g} epochs"
    config.optim.update(lr=5e-5 if big else 1e-3, weight_decay=0.05, warmup="10%")
    train = dict(source=_questions(data, "train"), ops=_ops(side, length, arg.blind, "credit"))
    test = dict(source=_questions(data, "test"), ops=_ops(side, length, arg.blind, "credit"))
    batch = 16 if arg.runlocal else 128
    config.evals = dict(vqa=dict(type="vqa", every="34%", data=test, train=train, batch_size=batch))
    return config


def _pretrained(arg):
    """The config of the run that is finetuned, or of one that `of`, `scale` and `size` describe."""
    if arg.init:
        path = epath.Path(arg.init) / "config.json"
        if not path.exists():
            raise common.UserError(f"init={arg.init!r} is no workdir: it has no config.json; valid: a run's --workdir")
        found = common.ml_collections.ConfigDict(json.loads(path.read_text()))
    else:
        module = common.errors.choose("of", arg.of, dict.fromkeys(("clip", "mae_clip", "m3ae"), arg.of))
        words = ",".join([f"scale={arg.scale}", f"size={arg.size}", *(["runlocal"] if arg.runlocal else [])])
        found = __import__(f"experiments.{module}", fromlist=["get_config"]).get_config(words)
    if found.get("objective") not in ("clip", "mae_clip", "m3ae"):
        raise common.UserError(
            f"init={arg.init!r} is a run of objective {found.get('objective')!r}, which reads no text; "
            "valid: runs of clip, mae_clip, m3ae"
        )
    return found


def _data(arg) -> dict:
    if arg.data in DATA and not arg.runlocal:
        return DATA[arg.data]
    found = {} if arg.runlocal else dict(name=arg.data, train="train", test="test")
    return found | dict(answers=len(source.make(_questions(found, "train")).answers))


def _questions(data: dict, split: str) -> dict:
    if "name" not in data:  # drawn when asked for; the vocabulary is that of the very same scenes
        of = dict(kind="scenes", resolution=32, count=64, truth="all", seed=0)
        return dict(kind="questions", of=of, vocabulary=dict(split="", min_count=1, top=0))
    of = dict(kind="tfds", dir="", name=data["name"], split=data[split])
    rule = dict(split=data["train"], min_count=data.get("min_count", 1), top=0)
    return dict(kind="questions", of=of, vocabulary=rule)


def _ops(side: int, length: int, blind: bool, worth: str) -> str:
    words = ["decode", f"resize_small({side})", f"center_crop({side})"]
    words += ["blank"] if blind else []
    words += [f'tokenize({length},key="question",out="text")', "answers(10)"]
    return "|".join([*words, f'keep("image","text","answer","{worth}")'])
