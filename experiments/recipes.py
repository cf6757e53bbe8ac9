"""How each method was trained by its authors, as data: what `recipe=source` sets, and the rows of docs/recipes.md.

`recipe=matched`, the default: all experiments of a scale share batch, steps, optimizer, schedule, decay, crops and
words (experiments/base.py and scales.py), so that two runs differ in their objective alone. `recipe=source`: the
method's own, as far as it is known and fits the scale. `make golden` writes docs/recipes.md from this file.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import ml_collections

from experiments.scales import LARGE, SCALES
from experiments.sizes import SIZES
from maeclip_jax import errors
from maeclip_jax.config import leaves

# How a value of a source is known.
MARKS = {
    "code": "read in the source's code",
    "code of a neighbour": "read in the code of a later method by the same authors",
    "second-hand": "quoted by others",
    "memory": "remembered and not checked",
    "unknown": "not known",
}
# Settings that are of large sets: elsewhere the scale's own stay, and the rate is the peak that the source reaches.
OF_LARGE_SETS = ("batch_size", "total", "optim.warmup", "crop")


class Setting(NamedTuple):
    """One setting of a source. `name`: of a config's leaf, or `crop` (the ops between decoding and words), or words
    that no leaf has. `ours`: what recipe=source sets, a dict by scale where it depends on it; None: what
    recipe=matched has. `why`: why ours is not theirs, or what should be known of it.
    """

    name: str
    theirs: str
    mark: str
    ours: Any = None
    why: str = ""


class Recipe(NamedTuple):
    """`source`: where it comes from; `peak`: its highest learning rate, at its own batch."""

    source: str
    peak: float
    settings: tuple[Setting, ...]


MAE_CROP = 'random_resized_crop({side},area=(0.2,1),antialias="exact")|flip_lr'
WORDS = "Arms share their words."

RECIPES = {
    "clip": Recipe("Radford et al. 2021 (training code is not public)", 5e-4, (
        Setting("batch_size", "32,768", "memory", 32768),
        Setting("total", "32 epochs of 400M pairs", "memory", dict(low="32 epochs", high="12.8B examples")),
        Setting("optim.lr", "5e-4 (B/32, B/16)", "memory", 5e-4),
        Setting("optim.b2", "0.98", "memory", 0.98),
        Setting("optim.eps", "1e-6", "memory", 1e-6),
        Setting("optim.weight_decay", "0.2", "memory", 0.2),
        Setting("optim.warmup", "2,000 steps", "memory", "2000 steps"),
        Setting("optim.clip_norm", "?", "unknown"),
        Setting("crop", "a random square of the resized picture", "memory",
                "random_resized_crop({side},area=(0.9,1))", "Area: ours."),
        Setting("words", "49,408 byte pairs, 77 places, causal", "code", None, WORDS),
    )),
    "slip": Recipe("facebookresearch/SLIP, main.py", 3e-3, (
        Setting("batch_size", "4,096 (64 on each of 64 GPUs)", "memory", 4096),
        Setting("total", "25 epochs of YFCC15M, 35 of CC12M", "code", dict(low="35 epochs"),
                "Theirs has no scale=high."),
        Setting("optim.lr", "3e-3 (CLIP beside it: 5e-4)", "code", 3e-3),
        Setting("optim.b2", "0.98", "code", 0.98),
        Setting("optim.eps", "1e-8", "code", 1e-8),
        Setting("optim.weight_decay", "0.1 (CLIP beside it: 0.5)", "code", 0.1),
        Setting("optim.warmup", "1 epoch, from 1e-6", "code", dict(low="1 epochs"), "Ours starts at one step's share."),
        Setting("optim.end_lr", "1e-5", "code", 1e-5 / 3e-3, "A share of the peak."),
        Setting("optim.clip_norm", "none", "code", 0.0),
        Setting("crop", "0.5 to 1, not mirrored", "code", "random_resized_crop({side},area=(0.5,1))"),
        Setting("words", "49,408 byte pairs, 77 places, causal", "code", None, WORDS),
    )),
    "silc": Recipe("Naeem et al. 2023 (training code is not public); DINO's code", 1e-3, (
        Setting("batch_size", "16,384", "memory", 16384),
        Setting("total", "20B examples", "memory", dict(high="20B examples"), "Of 11.3M pairs: 1,770 epochs."),
        Setting("optim.lr", "1e-3", "memory", 1e-3),
        Setting("optim.schedule", "?", "unknown"),
        Setting("optim.b2", "?", "unknown"),
        Setting("optim.eps", "?", "unknown"),
        Setting("optim.weight_decay", "?", "unknown"),
        Setting("optim.warmup", "?", "unknown"),
        Setting("optim.clip_norm", "?", "unknown"),
        Setting("crop", "see global views", "second-hand", None, "Captions are contrasted with global views."),
        Setting("model.distil.first", "every global view is a crop", "second-hand", "crop",
                "picture: what CLIP sees."),
        Setting("model.distil.globals", "2", "second-hand", 2),
        Setting("model.distil.global_area", "0.4 to 1", "second-hand", (0.4, 1.0)),
        Setting("model.distil.locals", "8", "second-hand", 8),
        Setting("model.distil.local_area", "0.05 to 0.4", "second-hand", (0.05, 0.4)),
        Setting("model.distil.local_patches", "96 of 224 pixels (DINO)", "code", None, "The same share of the side."),
        Setting("looks of views", "?", "unknown", None, "Not mirrored, their own colours."),
        Setting("captions", "contrasted with every global view", "second-hand"),
        Setting("model.distil.momentum", "fixed, value unknown; DINO: 0.996 at first", "second-hand", 0.996),
        Setting("model.distil.centring", "running mean", "second-hand", "mean"),
        Setting("model.distil.centre_momentum", "0.9 (DINO)", "code", 0.9),
        Setting("model.distil.student_temperature", "0.1 (DINO)", "code", 0.1),
        Setting("model.distil.teacher_temperature", "0.04 (DINO, which may raise it)", "code", 0.04),
        Setting("model.distil.prototypes", "65,536 (DINO)", "code", None, "512 at scale=demo and photos."),
        Setting("head", "2,048, 2,048, 256 (DINO)", "code", None, "256, 256, 64 at demo and photos."),
        Setting("model.weights.distil", "?", "unknown"),
        Setting("words", "64 SentencePieces", "memory", None, WORDS),
    )),
    "tips": Recipe("Maninis et al. 2025 (public code is inference alone); DINO's and iBOT's code", 5e-4, (
        Setting("batch_size", "16,384", "memory", 16384),
        Setting("total", "70 epochs of 116M pairs", "memory", dict(high="8.1B examples"), "Of 11.3M: 719 epochs."),
        Setting("optim.lr", "5e-4", "memory", 5e-4),
        Setting("optim.name", "Adafactor", "memory", None, "AdamW, as CLIP's arm: its constants are unknown."),
        Setting("optim.schedule", "linear", "memory", None, "Cosine, as CLIP's arm."),
        Setting("optim.weight_decay", "?", "unknown"),
        Setting("optim.warmup", "?", "unknown"),
        Setting("optim.clip_norm", "?", "unknown"),
        Setting("crop", "?", "unknown"),
        Setting("captions", "of the web, and synthetic", "second-hand", None, "One caption."),
        Setting("model.distil.globals", "1", "memory", 1),
        Setting("model.distil.locals", "6", "memory", 6),
        Setting("areas of views", "?", "unknown", None, "SILC's."),
        Setting("looks of views", "?", "unknown", None, "Not mirrored, their own colours."),
        Setting("model.distil.momentum", "0.994 at first, to 1", "memory", 0.994, "Fixed, as SILC has it."),
        Setting("model.distil.centring", "running means (DINO, iBOT)", "code", "mean"),
        Setting("model.distil.centre_momentum", "0.9 (DINO, iBOT)", "code", 0.9),
        Setting("model.distil.student_temperature", "0.1 (DINO, iBOT)", "code", 0.1),
        Setting("model.distil.teacher_temperature", "0.04 (DINO, iBOT; of patches up to 0.07)", "code", 0.04),
        Setting("model.mask.image", "0.75, at random", "memory", 0.75, "iBOT: blocks, of 0 or 0.1 to 0.5."),
        Setting("head of patches", "?", "unknown", None, "Of its own, as in DINOv2; iBOT may share one."),
        Setting("model.weights.distil", "1", "memory", 1.0),
        Setting("model.weights.patches", "2", "memory", 2.0),
        Setting("words", "64 SentencePieces", "memory", None, WORDS),
    )),
    "flip": Recipe("facebookresearch/flip, configs", 4e-6 * 65536 / 256, (
        Setting("batch_size", "65,536", "code", 65536),
        Setting("total", "10,000 times 1,281,167 examples", "code", dict(low="32 epochs", high="12.8B examples"),
                "32 epochs of LAION-400M."),
        Setting("optim.lr", "4e-6", "code", 4e-6),
        Setting("optim.lr_per_examples", "256", "code", 256),
        Setting("optim.b2", "0.95", "code", 0.95),
        Setting("optim.eps", "1e-8", "memory", 1e-8, "The default of their library."),
        Setting("optim.weight_decay", "0.2", "code", 0.2),
        Setting("optim.warmup", "40 times 1,281,167 examples", "code", dict(low="0.4%", high="51.2M examples"),
                "The same share of the whole."),
        Setting("optim.clip_norm", "?", "unknown"),
        Setting("crop", "0.5 to 1, mirrored", "code", "random_resized_crop({side},area=(0.5,1))|flip_lr"),
        Setting("words", "30,523 WordPieces, 32 places", "code", None, WORDS),
    )),
    "siglip": Recipe("google-research/big_vision; numbers as reported of SigLIP 2", 1e-3, (
        Setting("batch_size", "32,768", "memory", 32768),
        Setting("total", "40B examples", "memory", dict(high="40B examples"),
                "Of 11.3M pairs that would be 3,540 epochs."),
        Setting("optim.lr", "1e-3", "memory", 1e-3),
        Setting("optim.b2", "0.95", "second-hand", 0.95),
        Setting("optim.eps", "1e-8", "memory", 1e-8, "The default of their library."),
        Setting("optim.weight_decay", "1e-4", "memory", 1e-4),
        Setting("optim.decay_by", "added after the rate, scaled by the schedule", "code", "schedule"),
        Setting("optim.warmup", "20,000 steps", "memory", dict(high="20000 steps")),
        Setting("optim.clip_norm", "1", "memory", 1.0),
        Setting("crop", "?", "unknown"),
        Setting("words", "32,000 SentencePieces, 64 places", "code", None, WORDS),
    )),
    "mae": Recipe("facebookresearch/mae, PRETRAIN.md and main_pretrain.py", 2.4e-3, (
        Setting("batch_size", "4,096", "code", 4096),
        Setting("total", "800 epochs of ImageNet", "code", "1.025B examples",
                "91 epochs of 11.3M."),
        Setting("optim.lr", "1.5e-4", "code", 1.5e-4),
        Setting("optim.lr_per_examples", "256", "code", 256),
        Setting("optim.b2", "0.95", "code", 0.95),
        Setting("optim.eps", "1e-8", "code", 1e-8),
        Setting("optim.weight_decay", "0.05", "code", 0.05),
        Setting("optim.warmup", "40 epochs of ImageNet", "code", "51.2M examples"),
        Setting("optim.clip_norm", "none", "code", 0.0),
        Setting("crop", "0.2 to 1, bicubic, mirrored", "code", MAE_CROP),
    )),
    "m3ae": Recipe("young-geng/m3ae_public, README and m3ae_main.py", 2.4e-3, (
        Setting("batch_size", "4,096", "code", 4096),
        Setting("total", "100 epochs of CC12M", "code", dict(low="100 epochs"),
                "Theirs has no scale=high."),
        Setting("optim.lr", "1.5e-4", "code", 1.5e-4),
        Setting("optim.lr_per_examples", "256", "code", 256),
        Setting("optim.b2", "0.95", "code", 0.95),
        Setting("optim.eps", "1e-8", "code", 1e-8),
        Setting("optim.weight_decay", "0.05", "code", 0.05),
        Setting("optim.warmup", "5 epochs", "code", dict(low="5 epochs", high="5%"), "The same share at scale=high."),
        Setting("optim.clip_norm", "none", "code", 0.0),
        Setting("crop", "0.2 to 1, bicubic, mirrored", "code", MAE_CROP),
        Setting("model.mask_words", "a caption may show none", "code", "any",
                "Padding is kept and dropped like words."),
        Setting("words", "30,522 WordPieces, 64 places", "code"),
    )),
}  # fmt: skip


def follow(config: ml_collections.ConfigDict, method: str) -> None:
    """Puts the recipe that `config.arg.recipe` names into a finished config; `method`: a key of RECIPES.

    At scale=low and high all of it. At scale=demo and photos, and with runlocal, the optimizer with the source's peak
    rate, at the scale's own batch, steps and crops. UserError for a method whose recipe is not known.
    """
    word = errors.choose("recipe", config.arg.recipe, dict(matched="matched", source="source"))
    if word == "matched":
        return
    if method not in RECIPES:
        raise errors.UserError(f"how {method} was trained is not known; valid: recipe=matched")
    large = config.arg.scale in LARGE and not config.arg.runlocal
    for setting in RECIPES[method].settings:
        value = setting.ours.get(config.arg.scale) if isinstance(setting.ours, dict) else setting.ours
        if value is None or (setting.name in OF_LARGE_SETS and not large):
            continue
        if setting.name == "crop":
            side = SIZES[config.arg.size]["side"]
            was, crop = (x.format(side=side) for x in (SCALES[config.arg.scale]["crop"], value))
            config.data.ops = config.data.ops.replace(was, crop)
        else:
            config.update_from_flattened_dict({setting.name: value})
    if not large:
        config.optim.update(lr=RECIPES[method].peak, lr_per_examples=0)


OPTIM = (
    "name", "lr", "b1", "b2", "eps", "weight_decay", "decay_by", "warmup", "schedule", "end_lr", "clip_norm",
)  # fmt: skip
HEAD = """# Recipes

```
python -m maeclip_jax.main --config=experiments/slip.py:scale=low,recipe=source --workdir=runs/slip
```

This trains SLIP as its authors did. `make golden` writes this page from `experiments/recipes.py`; do not edit it.

- `recipe=matched`, the default: all experiments of a scale share the settings of the first table, so that two runs
  differ in their objective alone. Its values are defaults of ours; nobody tuned them for one of the objectives.
- `recipe=source`: the method's own recipe, from the tables below, as far as it is known. It shows what a method does
  at its best; a difference between two of them is one of recipes too. At `scale=demo` and `photos` it is their
  optimizer at its peak rate, with the scale's own batch, steps and crops.
- Crops are given by their share of the picture's area. Captions stay as they are where a picture is mirrored.
- Neither says anything of towers, tokenizer, masks and weights of losses, whose sources the experiment files name.
  How MAE-CLIP was trained is not known, so it has `matched` alone.

"""


def page() -> str:
    """The text of docs/recipes.md: what the configs are, beside what their sources say."""
    import importlib

    def values(method: str, arg: str) -> dict:
        config = importlib.import_module(f"experiments.{method}").get_config(arg)
        steps = config.data.ops.split("|")
        cut = steps[1 : next(i for i, s in enumerate(steps) if s.startswith(("pick_caption", "keep")))]
        crop = "|".join(step for step in cut if not step.startswith("views"))
        return dict(leaves(config)) | {"crop": crop or "none"}

    def row(*cells: Any) -> str:
        return "| " + " | ".join(_shown(cell) for cell in cells) + " |"

    names = ["batch_size", "total", "crop", *(f"optim.{k}" for k in OPTIM)]
    matched = {scale: values("clip", f"scale={scale}") for scale in SCALES}
    lines = ["## matched", "", row("setting", *SCALES), row(*["---"] * (1 + len(SCALES)))]
    lines += [row(name, *(matched[s][name] for s in SCALES)) for name in names]
    for method, recipe in RECIPES.items():
        lines += ["", f"## {method}", "", f"Source: {recipe.source}. Peak rate: {recipe.peak:g}.", ""]
        lines += [row("setting", "theirs", "known by", *(f"source, {s}" for s in LARGE), "matched, low", "why")]
        lines.append(row(*["---"] * 7))
        ours = [values(method, arg) for arg in (*(f"scale={s},recipe=source" for s in LARGE), "scale=low")]
        for s in recipe.settings:
            cells = (at.get(s.name, "as matched") for at in ours)
            lines.append(row(s.name, s.theirs, s.mark, *cells, s.why or "Default of ours." * (s.mark == "unknown")))
    marks = [f"- {name}: {text}." for name, text in MARKS.items()]
    return HEAD + "\n".join(lines) + "\n\n## How a value is known\n\n" + "\n".join(marks) + "\n"


def _shown(cell: Any) -> str:
    """A value as a cell; crops in words, as in the columns beside them."""
    text = f"{cell:g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
    text = re.sub(r"random_resized_crop\(\d+,area=\((.*?),(.*?)\)(,antialias=\"exact\")?\)", r"\1 to \2\3", text)
    return text.replace(',antialias="exact"', ", bicubic").replace("|flip_lr", ", mirrored").replace("|", ", ")
