"""What every experiment has: data, optimizer, mesh, checkpoints, logs, towers of the size that is asked for."""

from __future__ import annotations

import ml_collections

from experiments.scales import DATA, ops, scale_of, source, vocabulary, whole_picture
from experiments.sizes import COMPUTE, SIZES


def base(arg: ml_collections.ConfigDict, objective: str, streams: tuple[str, ...]) -> ml_collections.ConfigDict:
    """What every objective has: data, optimizer, mesh, checkpoints, logs. `arg` holds scale, size and runlocal."""
    scale = scale_of(arg)
    big = arg.scale in ("low", "high") and not arg.runlocal
    config = ml_collections.ConfigDict()
    config.objective = objective
    said = {k: v for k, v in arg.items() if k not in DATA or arg.data}
    config.arg = said | dict(size=scale["size"])  # what the report calls this run
    config.seed = 0
    config.batch_size = scale["batch"]  # global
    config.microbatches = "1"  # parts of a device's rows, one after the other; auto: the fewest that fit
    config.total = scale["total"]
    config.max_skipped_in_row = 10
    config.resume = ""
    config.init_from = ""
    config.init_rules = ((r"(.*)", r"\1"),)
    config.tokenizer = dict(path="", cls=False, eos=False) | scale["tokenizer"]
    # Eight chips of a pod share parameters and optimizer: updating a copy on each would take a tenth of the step.
    config.preprocess = dict(image=whole_picture(SIZES[scale["size"]]["side"]))  # of a picture that is not augmented
    config.mesh = dict(replica=-1, fsdp=8 if big else 1, tensor=1)
    config.sharding_rules = ()  # () = sharding.RULES
    config.data = dict(
        source=source(scale, "train"), ops=ops(scale, streams, train=True), max_bad=0.1, num_threads=0, num_workers=0,
        order="auto", blocks=dict(size=64, window=16, lanes=0, ahead=4, reads=64),
    )  # fmt: skip
    config.optim = dict(
        name="adamw", lr=5e-4 if arg.scale in ("low", "high") else 2e-3,
        lr_per_examples=0, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, decay_by="lr",
        warmup=scale["warmup"], schedule="cosine", cooldown="0 steps", end_lr=0.0, clip_norm=1.0,
        mu_dtype="bfloat16" if big else "float32",
        no_decay=(r".*/(embedding|position|probe)",), freeze=(), lr_multipliers=(), caps=(),
        ema=0.0, muon=(), layer_decay=(),
    )  # fmt: skip
    config.checkpoint = dict(every="1%" if big else "10%", keep_last=2, keep_every="0 steps", keep_best=0, best="")
    config.log = dict(every="100 steps" if big else "1%", examples=False, sinks=("jsonl", "tensorboard"))
    config.evals = {}
    compute = dict(dtype="float32", layers="scan", remat="none", attention="xla", mlp="xla")
    if big:
        compute |= dict(dtype="bfloat16", layers="unroll", attention="fused", mlp="auto") | COMPUTE.get(
            scale["size"], {}
        )
    config.model = dict(compute=compute)
    return config


def towers(arg: ml_collections.ConfigDict) -> tuple[dict, dict, dict, int]:
    """(image tower, text tower, decoder, embedding width) of the size and vocabulary that `arg` asks for."""
    scale = scale_of(arg)
    size = SIZES[scale["size"]]

    def tower(name: str) -> dict:
        shape = dict(zip(("width", "depth", "heads"), size[name]))
        return shape | dict(activation=size.get("activation", "gelu_tanh"))

    image = dict(size=size["side"], patch=size["patch"]) | tower("image")
    text = dict(vocab=vocabulary(scale), length=scale["length"]) | tower("text")
    return image, text, tower("decoder"), size["embed"]
