"""Tables that the experiment files share: sizes, scales, recipes; and the typed argument after the colon.

Facts of the paper are marked "paper"; what the paper does not say (or we do not know) is marked "default of ours".
"""

from __future__ import annotations

import math
from pathlib import Path

import ml_collections

from maeclip_jax import errors
from maeclip_jax.errors import UserError
from maeclip_jax.nn import pool as pooling

# size -> picture side, patch, image tower (width, depth, heads), text tower, decoder. ViT sizes: Dosovitskiy et al.
# 2020; the text tower of B/16 is BERT-base (paper), the others are defaults of ours; decoder 8 x 512 (MAE, M3AE) from
# S/16 up. GELU by tanh, as M3AE's code and big_vision have it: the exact one costs a tenth of the step (LOG.md).
SIZES = {
    "mu": dict(side=32, patch=8, image=(32, 2, 2), text=(32, 2, 2), decoder=(32, 1, 2), embed=32, activation="gelu"),
    # Chosen by what two CPU cores learn in minutes (LOG.md): few tokens.
    "demo": dict(side=64, patch=16, image=(128, 4, 4), text=(64, 2, 4), decoder=(64, 1, 2), embed=128),
    "photos": dict(side=96, patch=16, image=(128, 4, 4), text=(128, 2, 4), decoder=(128, 2, 4), embed=128),
    "Ti/8": dict(side=64, patch=8, image=(192, 12, 3), text=(192, 6, 3), decoder=(128, 4, 4), embed=192),
    "S/8": dict(side=64, patch=8, image=(384, 12, 6), text=(384, 6, 6), decoder=(256, 4, 8), embed=384),
    "S/16": dict(side=224, patch=16, image=(384, 12, 6), text=(384, 12, 6), decoder=(512, 8, 16), embed=384),
    "B/16": dict(side=224, patch=16, image=(768, 12, 12), text=(768, 12, 12), decoder=(512, 8, 16), embed=512),
    "L/16": dict(side=224, patch=16, image=(1024, 24, 16), text=(768, 12, 12), decoder=(512, 8, 16), embed=768),
    "H/14": dict(side=224, patch=14, image=(1280, 32, 16), text=(1024, 24, 16), decoder=(512, 8, 16), embed=1024),
}

# How a pod runs the layers, chosen with the pre-flight (LOG.md). Unrolled and with nothing computed twice is fastest;
# deep towers would compile for an hour so, and a loop over layers is fast only if it stacks nothing but its inputs.
COMPUTE = {"L/16": dict(layers="scan", remat="full"), "H/14": dict(layers="scan", remat="full")}

SCENES_WORDS = Path(errors.__file__).parent / "data" / "vocab" / "scenes.txt"
BERT_VOCAB = 30522  # bert-base-uncased


def _scenes_vocab() -> int:
    return sum(1 for line in SCENES_WORDS.read_text(encoding="utf-8").splitlines() if line)


# scale -> where pictures and words come from and how long to train. low: CC12M as downloaded, 11.3M pairs (paper).
# high: 1.4B pairs; the paper's set is not public, DataComp-1B is the public stand-in by count (default of ours).
SCALES = {
    "demo": dict(
        source=dict(kind="tfds", name="scenes/demo"), size="demo", length=24, words=dict(type="bert", path="scenes"),
        crop=None, batch=128, total="7 epochs", warmup="5%", splits=("val", "test", "classify"),
    ),
    "photos": dict(
        source=dict(kind="tfds", name="photos"), size="photos", length=32,
        words=dict(type="sentencepiece", path="data/photos/words.model"),
        crop="random_resized_crop({side},area=(0.5,1))", batch=128, total="40 epochs", warmup="10%",
        splits=("val", "test", None),
    ),
    "low": dict(
        source=dict(kind="tfds", name="cc12m"), size="B/16", length=64, words=dict(type="bert", path="bert_vocab.txt"),
        crop="random_resized_crop({side},area=(0.5,1))", batch=16384, total="30 epochs", warmup="5%",
        splits=("val", "val", None),
    ),
    "high": dict(
        source=dict(kind="tfds", name="datacomp_1b"), size="B/16", length=64,
        words=dict(type="bert", path="bert_vocab.txt"), crop="random_resized_crop({side},area=(0.5,1))", batch=16384,
        total="2.8B examples", warmup="2%", splits=("val", "val", None),
    ),
}  # fmt: skip

# runlocal: the whole experiment in seconds on a laptop: tiny towers, a few steps, scenes drawn on the fly.
LOCAL = dict(
    source=dict(kind="scenes", resolution=32), size="mu", length=16, words=dict(type="bert", path="scenes"), crop=None,
    batch=16, total="4 steps", splits=("val", "test", None),
)  # fmt: skip


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
    """`"pool=max,scale=low,runlocal"` -> typed values; a key alone means True.

    `defaults` gives names, types and default values. UserError names an unknown key or bad value and the valid ones.
    """
    values = dict(defaults)
    for part in filter(None, _split(arg or "")):
        key, equals, text = part.partition("=")
        if key not in defaults:
            raise errors.unknown("experiment argument", key, sorted(defaults))
        kind = type(defaults[key])
        if kind is bool:
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise UserError(
                    f"experiment argument {key}={text!r} is a switch; valid: {key}, {key}=true, {key}=false"
                )
            values[key] = text.lower() in ("", "true", "1")
            continue
        if not equals:
            raise UserError(f"experiment argument {key!r} needs a value: {key}=... ({defaults[key]!r} by default)")
        try:
            values[key] = kind(text)
        except ValueError:
            raise UserError(f"experiment argument {key}={text!r} is no {kind.__name__}") from None
    return ml_collections.ConfigDict(values)


def _split(arg: str) -> list[str]:
    """At commas outside parentheses."""
    parts, depth = [""], 0
    for c in arg:
        depth += {"(": 1, ")": -1}.get(c, 0)
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]


def scale_of(arg: ml_collections.ConfigDict) -> dict:
    """The row of SCALES that `arg` names, with what `size=` and `runlocal` change in it."""
    scale = dict(errors.choose("scale", arg.scale, SCALES))
    if arg.size:
        scale["size"] = arg.size
    if arg.runlocal:
        scale |= LOCAL
    errors.choose("size", scale["size"], SIZES)
    return scale


def base(arg: ml_collections.ConfigDict, objective: str, streams: tuple[str, ...]) -> ml_collections.ConfigDict:
    """What every objective has: data, optimizer, mesh, checkpoints, logs. `arg` holds scale, size and runlocal."""
    scale = scale_of(arg)
    big = arg.scale in ("low", "high") and not arg.runlocal
    config = ml_collections.ConfigDict()
    config.objective = objective
    config.arg = dict(arg) | dict(size=scale["size"])  # what the report calls this run
    config.seed = 0
    config.batch_size = scale["batch"]  # global
    config.total = scale["total"]
    config.max_skipped_in_row = 10
    config.resume = ""
    config.init_from = ""
    config.init_rules = ((r"(.*)", r"\1"),)
    config.tokenizer = dict(path="", cls=False) | scale["words"]
    if config.tokenizer.type != "bert":
        del config.tokenizer.cls
    # Eight chips of a pod share parameters and optimizer: updating a copy on each would take a tenth of the step.
    config.mesh = dict(replica=-1, fsdp=8 if big else 1, tensor=1)
    config.sharding_rules = ()  # () = sharding.RULES
    config.data = dict(source=source(scale, "train"), ops=ops(scale, streams, train=True), max_bad=0.1, num_workers=0)
    config.optim = dict(
        name="adamw", lr=1e-3, lr_per_examples=0, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, warmup=scale["warmup"],
        schedule="cosine", end_lr=0.0, clip_norm=1.0, mu_dtype="bfloat16" if big else "float32",
        no_decay=(r".*/(embedding|position|probe)",), freeze=(), lr_multipliers=(), caps=(),
    )  # fmt: skip
    config.checkpoint = dict(
        every="1%" if big else "10%", keep_last=2, keep_every="0 steps", keep_best=0, best="", best_mode="max"
    )
    config.log = dict(every="100 steps" if big else "1%", examples=False)
    config.evals = {}
    compute = dict(dtype="float32", layers="scan", remat="none", attention="xla")
    if big:
        compute |= dict(dtype="bfloat16", layers="unroll", attention="fused") | COMPUTE.get(scale["size"], {})
    config.model = dict(compute=compute)
    return config


def words_are_scenes(scale: dict) -> bool:
    """Whether pictures and captions are drawn ones."""
    return scale["words"].get("path") == "scenes"


def source(scale: dict, split: str) -> dict:
    """Where the pictures and words of a split come from; a stream of scenes has no splits but another seed."""
    if scale["source"]["kind"] == "scenes":
        return scale["source"] | (dict() if split == "train" else dict(seed=1, count=64))
    return scale["source"] | dict(dir="", split=split)


def ops(scale: dict, streams: tuple[str, ...], *, train: bool, captions: int = 0, label: bool = False) -> str:
    """The op string of a split: augmentation may be fast in training, resizing is exact in evaluation."""
    side = SIZES[scale["size"]]["side"]
    words = ["decode"]
    if train and scale["crop"]:
        words.append(scale["crop"].format(side=side))
    elif scale["crop"]:
        words += [f"resize_small({side})", f"center_crop({side})"]
    if "text" in streams:
        words.append(f"captions({captions})" if captions else "pick_caption")
        words.append(f"tokenize({scale['length']})")
    kept = [*streams, *(["label"] if label else [])]
    return "|".join([*words, *(["label"] if label else []), "keep(" + ",".join(f'"{k}"' for k in kept) + ")"])


def towers(arg: ml_collections.ConfigDict) -> tuple[dict, dict, dict, int]:
    """(image tower, text tower, decoder, embedding width) of the size and vocabulary that `arg` asks for."""
    scale = scale_of(arg)
    size = SIZES[scale["size"]]

    def tower(name: str) -> dict:
        shape = dict(zip(("width", "depth", "heads"), size[name]))
        return shape | dict(activation=size.get("activation", "gelu_tanh"))

    vocab = {"bytes": 257, "bert": BERT_VOCAB, "sentencepiece": 4000}[scale["words"]["type"]]
    if words_are_scenes(scale):
        vocab = _scenes_vocab()
    image = dict(size=size["side"], patch=size["patch"]) | tower("image")
    text = dict(vocab=vocab, length=scale["length"]) | tower("text")
    return image, text, tower("decoder"), size["embed"]


def contrastive(config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict) -> None:
    """Puts CLIP's towers, loss and optimizer into `config`; `arg` holds pool, text_pool, loss and keep.

    The image tower has a class token only where it is pooled: over patches alone it would be 1 more token for nothing.
    """
    image, text, _, width = towers(arg)
    for word in (arg.pool, arg.text_pool):
        try:
            pooling.parse(word)
        except ValueError as e:
            raise UserError(str(e)) from None
    config.model.update(
        image_tower=image | dict(cls=arg.pool == "cls", pool=arg.pool),
        text_tower=text | dict(causal=False, position="learned", pool=arg.text_pool),
        embed_width=width,
        loss=arg.loss,
        keep=arg.keep,
        contrast_mib=128.0,  # of a chip's 16 GiB or more
        mask_share="sample",
        stats="imagenet",
    )
    if arg.text_pool == "cls":
        config.tokenizer.cls = True
    config.optim.update(lr=5e-4 if arg.scale in ("low", "high") else 2e-3)
    if arg.loss == "softmax":
        config.optim.caps = (("log_logit_scale", math.log(100)),)


def evals(arg: ml_collections.ConfigDict, *, contrastive: bool, generative: bool, streams: tuple[str, ...]) -> dict:
    """The evaluators that fit: losses; zero-shot and retrieval where there is a shared space; reconstructions."""
    scale = scale_of(arg)
    val, test, classify = scale["splits"]
    batch = min(scale["batch"], 256)
    batch = 16 if arg.runlocal else min(batch, 100 if arg.scale == "photos" else batch)

    def data(split, **kwargs) -> dict:
        return dict(source=source(scale, split), ops=ops(scale, kwargs.pop("streams", streams), train=False, **kwargs))

    found = dict(val=dict(type="loss", every="10%", data=data(val), batch_size=batch))
    if generative:
        found["reconstruction"] = dict(type="reconstruction", every="25%", data=data(val), batch_size=batch)
    if contrastive:
        captions = data(test, captions=3 if words_are_scenes(scale) else 5)
        # Drawn pictures may share a caption word for word; photos do not (the COCO and Flickr protocol).
        duplicates = "merge" if words_are_scenes(scale) else "apart"
        found["retrieval"] = dict(type="retrieval", every="25%", data=captions, batch_size=batch, duplicates=duplicates)
        if classify:
            pictures = data(classify, streams=("image",), label=True)
            found["zero_shot"] = dict(
                type="zero_shot",
                every="10%",
                data=pictures,
                length=scale["length"],
                templates="scenes",
                batch_size=batch,
            )
    return found
