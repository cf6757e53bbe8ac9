"""VQA finetuning (table "VQA" of the paper): the towers of a pretrained run, a fusion of both, an answer head.

    python -m maeclip_jax.main --config=experiments/vqa.py:of=clip --workdir=runs/vqa --config.init_from=runs/clip
    python -m maeclip_jax.main --config=experiments/vqa.py:of=m3ae,scale=high,data=clevr --workdir=gs://bucket/clevr

Argument: data = scenes | clevr | vqav2 | gqa | the name of a set of maeclip_jax.prepare.builders.vqa_jsonl; of = clip
| mae_clip | m3ae | slip | silc | tips with scale and size, whose towers are taken (and --config.init_from: the workdir
with their weights; without it they start from scratch); or, init = that workdir, instead of all these: objective,
sizes, tokenizer and scale come from its config.json (scale = beside it: the recipe of another scale); pool (of either
stream after fusion); fusion = fresh | decoder | joint; blind (grey pictures: what the same model learns from questions
alone); epochs (0: the default); runlocal.

fusion=fresh, the same for all: a transformer that was not pretrained over the tokens of picture and question, each
encoded on its own: 2 layers (demo, photos) or 4, as wide as the image tower. decoder: the pretrained cross-modal
decoder of MAE-CLIP or M3AE. joint: M3AE's encoder reads both together. That, whole pictures resized without a crop,
and the recipe are defaults of ours: the paper's are unknown. From LXMERT: form of the head, 4 epochs; answers: 3,129
(VQAv2, soft targets, sigmoid), 1,842 (GQA, of train and validation), 28 (CLEVR). The paper has, after 1.4B pairs,
CLEVR / VQAv2 / GQA: M3AE 96.9 / 59.9 / 53.3 %, CLIP 87.8 / 61.8 / 55.0 %, MAE-CLIP 92.8 / 61.9 / 55.3 %.
"""

from __future__ import annotations

from experiments import questions
from experiments.argument import parse_arg
from experiments.base import base


def get_config(arg=None):
    arg = parse_arg(
        arg, data="scenes", of="clip", init="", scale="", size="", pool="gap", fusion="fresh", epochs=0.0, blind=False,
        runlocal=False,
    )  # fmt: skip
    if not arg.init:
        arg.scale = arg.scale or "demo"
    of, data = questions.pretrained(arg), questions.data(arg)
    arg.scale, arg.size = arg.scale or of.arg.scale, arg.size or of.arg.size
    image, text = of.model.image_tower, of.model.text_tower
    none = dict(drop_path=0.0)  # a setting of the finetuning, whatever the pretraining dropped
    towers = image.to_dict() | none, text.to_dict() | (none if "depth" in text else {})
    big = arg.scale in ("low", "high") and not arg.runlocal
    config = base(arg, "vqa", ("image", "text"))
    config.arg = dict(arg) | dict(of=of.objective, scale=of.arg.scale, size=of.arg.size, pretrained_pool=image.pool)
    config.init_from, config.tokenizer = arg.init, of.tokenizer
    config.model = dict(
        image_tower=towers[0], text_tower=towers[1], **questions.fusion(arg.fusion, of, depth=4 if big else 2),
        answers=data["answers"], pool=arg.pool, loss=data.get("loss", "softmax"),
        label_smoothing=0.0, slots=10,
        stats=of.model.get("stats", "imagenet"), compute=config.model.compute,
    )  # fmt: skip
    config.preprocess.image = f"decode|resize({image.size})"  # whole pictures: answers may lie at their edges
    ops = questions.ops(config.preprocess.image, text.length, arg.blind)
    config.data.source, config.data.ops = questions.questions(data, "train"), ops
    config.batch_size = 16 if arg.runlocal else 256 if big else 128
    if not arg.runlocal:
        config.total = f"{arg.epochs or (4 if big else 3):g} epochs"
    config.optim.update(lr=5e-5 if big else 1e-3, weight_decay=0.05, warmup="10%")
    test, batch = dict(source=questions.questions(data, "test"), ops=ops), 16 if arg.runlocal else 128
    train = dict(source=questions.questions(data, "train"), ops=ops)
    config.evals = dict(
        val=dict(type="loss", every="10%", data=test, batch_size=batch),
        vqa=dict(type="vqa", every="34%", data=test, train=train, batch_size=batch),
    )
    return config
