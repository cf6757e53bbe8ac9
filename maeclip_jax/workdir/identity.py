"""Which settings change what is learnt: two runs that agree in these are the same run but for their seed.

Resuming and the report both ask here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from maeclip_jax.config import by_content, leaves, plain

# What each leaf of a config is, by its dotted name; the first pattern that matches decides. A leaf that none matches,
# as in a person's own experiment, counts as learnt. Identity is what changes the result: LEARNT, LENGTH and ORIGIN.
LEARNT, LENGTH, ORIGIN, SEED = "learnt", "length", "origin", "seed"
COMPUTED, LOOKED_AT, DESCRIBED = "computed", "looked at", "described"
CLASSES = (
    (SEED, r"seed"),
    (LENGTH, r"total"),
    # A run that goes on from another's state (resume) has learnt from both, with whatever settings that one had.
    (ORIGIN, r"resume|init_from|init_rules|init_adopted"),
    # The argument of an experiment: what it means stands in the other leaves.
    (DESCRIBED, r"arg(\..*)?"),
    # How and where it is computed and read. The dtype is not among it: bfloat16 rounds otherwise, which is a recipe.
    (COMPUTED, r"mesh\..*|sharding_rules|model\.compute\.(layers|remat|attention|mlp)|model\.contrast_mib"),
    (COMPUTED, r"microbatches"),
    (COMPUTED, r"data\.(num_threads|num_workers|prefetch|blocks\.(ahead|reads))"),
    # What is kept and looked at, and when a run gives up.
    (LOOKED_AT, r"(evals|log|checkpoint|preprocess)(\..*)?|max_skipped_in_row|data\.max_bad"),
    (LEARNT, r"objective|batch_size|data\.(ops|mix|seed_offset|order)|data\.source(\..*)?"),
    (LEARNT, r"data\.blocks\.(size|window|lanes)"),
    (LEARNT, r"tokenizer\.(type|path|cls|bos|eos|fill|canonical|lower)"),
    (LEARNT, r"model\.(image_tower|text_tower|decoder_tower|fusion_tower|mask|weights|simclr|distil)(\..*)?"),
    (
        LEARNT,
        r"model\.(answers|decode|duplicates|embed_width|fusion|keep|label_smoothing|loss|mask_share|mask_words|norm_pix)",
    ),
    (LEARNT, r"model\.(patch_weight|pool|slots|stats|streams)"),
    (LEARNT, r"model\.compute\.dtype"),
    (
        LEARNT,
        r"optim\.(b1|b2|caps|clip_norm|cooldown|decay_by|ema|end_lr|eps|freeze|layer_decay|lr|lr_multipliers)",
    ),
    (LEARNT, r"optim\.(lr_per_examples|mu_dtype|muon|name|no_decay|schedule|warmup|weight_decay)"),
)
# A leaf that older runs lack: what it was then, and the leaf by which those that have it are known.
_BEFORE = {
    "data.order": ("auto", "data.num_workers"),
    "data.blocks.size": (64, "data.num_workers"),
    "data.blocks.window": (16, "data.num_workers"),
    "data.blocks.lanes": (0, "data.num_workers"),
    "model.duplicates": ("negative", "model.embed_width"),
    "model.image_tower.drop_path": (0.0, "model.image_tower.width"),
    "model.image_tower.norm_pre": (False, "model.embed_width"),
    "model.image_tower.projection": ("linear", "model.embed_width"),
    "model.label_smoothing": (0.0, "model.loss"),
    "model.mask_words": ("any", "model.norm_pix"),
    "model.patch_weight": ("one", "model.norm_pix"),
    "model.simclr.views": ("image", "model.simclr.weight"),
    "model.text_tower.drop_path": (0.0, "model.text_tower.width"),
    "model.text_tower.padding": ("masked", "model.embed_width"),
    "model.text_tower.projection": ("linear", "model.embed_width"),
    "optim.cooldown": ("0 steps", "optim.weight_decay"),
    "optim.decay_by": ("lr", "optim.weight_decay"),
    "optim.ema": (0.0, "optim.weight_decay"),
    "optim.layer_decay": ([], "optim.weight_decay"),
    "optim.muon": ([], "optim.weight_decay"),
    "tokenizer.cls": (False, "tokenizer.path"),
    "tokenizer.eos": (False, "tokenizer.path"),
}


def classify(name: str) -> str:
    """The class of a leaf; "" for a name that no pattern matches, which counts as LEARNT."""
    return next((kind for kind, pattern in CLASSES if re.fullmatch(pattern, name)), "")


def identity(config) -> dict[str, Any]:
    """{name: value} of the leaves that change what is learnt: two runs with the same are the same run but for its seed.

    `config`: a ConfigDict, or a config.json as read. The folder in which named data lies is left out, and so are rules
    of an origin that there is not. Files that a workdir keeps count by their content.
    """
    found = all_leaves(config)
    named = {f"{n.removesuffix('name')}dir" for n, value in found.items() if n.endswith(".name") and value}
    if not found.get("init_from"):
        named |= {"init_rules", "init_adopted"}
    counted = {n: x for n, x in found.items() if n not in named and classify(n) in (LEARNT, LENGTH, ORIGIN, "")}
    return {n: by_content(x) for n, x in counted.items()}


def model_differences(before, config) -> dict[str, tuple[Any, Any]]:
    """{name: (was, is)} of the settings that say what a run's parameters mean, or how they were trained.

    `before`: the config of the run. How the model is computed, its dtype too, is not among them.
    """
    then, now = all_leaves(before), all_leaves(config)
    names = sorted(n for n in then.keys() | now.keys() if n.startswith("model.") and not n.startswith("model.compute."))
    return {n: (then.get(n), now.get(n)) for n in names if classify(n) == LEARNT and then.get(n) != now.get(n)}


def all_leaves(config) -> dict[str, Any]:
    """Leaves of a config in JSON's types. Objects that a notebook put into it are written without their address."""
    tree = plain(config) if hasattr(config, "to_json_best_effort") else json.loads(json.dumps(config, default=repr))
    found = {n: re.sub(r" at 0x\w+", "", x) if isinstance(x, str) else x for n, x in leaves(tree)}
    return {n: value for n, (value, known_by) in _BEFORE.items() if known_by in found} | found
