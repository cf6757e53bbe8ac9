"""Training that starts from the weights of another code base: `--config.init_from=hf-clip:/path`.

The towers become those of the weights (`adopt`, once, when the command line is read); what belongs to the experiment
stays: objective, loss, pooling, size of pictures, length of texts, and what weights do not say, such as drop_path.
`parameters` then gives the values, with learned positions interpolated to that size. Fixed ones stay fixed: they are
those of that size, which is said.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax import interop
from maeclip_jax.errors import UserError
from maeclip_jax.interop import convert, positions
from maeclip_jax.params import flatten, rename_path

log = logging.getLogger("maeclip_jax")

OWN = ("size", "length", "pool", "map")  # settings of a tower that the experiment determines
# Settings of a tower that say how weights compute, and what they are where weights do not say them: the defaults of
# nn.tower.Encoder and of its embeddings. Whatever else weights do not say, such as drop_path, stays the experiment's.
IMPLIED = dict(
    activation="gelu", causal=False, cls=False, cls_position=False, eps=1e-6, mlp_ratio=4.0, norm_pre=False,
    padding="masked", patch_bias=True,
)  # fmt: skip
POSITIONS = dict(image_tower="sincos", text_tower="learned")


def adopt(config: Any, said: Collection[str] = ()) -> None:
    """Sets the towers, the pixel statistics and the tokenizer of `config` to those of the weights in its init_from.

    `said`: dotted names of the settings that the caller chose, such as model.image_tower.heads, which files of some
    kinds do not say. Towers that `config.init_rules` exclude are unchanged. Nothing happens if init_from does not name
    a kind of weights, or if the config has adopted them before (as the config of a run has). Raises UserError for
    weights that cannot be read, for weights whose tokenizer is not found, and for what was said if the weights say
    something else.
    """
    named = interop.split(config.get("init_from") or "")
    if not named or config.get("init_adopted") == config.init_from:
        return
    source, weights, theirs = interop.describe(*named)
    towers = _taken(config, source, weights)
    told = {t for t in towers if f"model.{t}.heads" in said}
    theirs = convert.with_heads(theirs, {t.removesuffix("_tower"): config.model[t].heads for t in told})
    for tower, (what, _) in theirs["unknown"].items():
        if f"{tower}_tower" in towers:
            raise UserError(f"init_from {config.init_from}: {what}; say it: --config.model.{tower}_tower.heads=N")
    for tower in sorted(towers & set(theirs["model"])):
        for name, value in _described(theirs, tower).items():
            if f"model.{tower}.{name}" in said:
                _same(config, tower, name, config.model[tower].get(name, value), value)
    with config.unlocked():
        for tower, settings in theirs["model"].items():
            if tower not in towers:
                continue
            have = config.model[tower].to_dict()
            if have.get("length", 0) > settings.get("length", 0):
                raise UserError(
                    f"init_from {config.init_from}: it reads texts of up to {settings['length']} tokens, the config "
                    f"has {have['length']}: set model.text_tower.length and tokenize(...) in the ops to less"
                )
            described = _described(theirs, tower)
            config.model[tower] = settings | {k: v for k, v in have.items() if k in OWN or k not in described}
        if "image_tower" in towers:
            config.model.stats = theirs["model"]["stats"]
            if "embed_width" in config.model:
                image = config.model.image_tower
                # Without a projection pictures are embedded in as many numbers as their tower is wide.
                mine = image.width if image.get("projection") == "none" else config.model.embed_width
                config.model.embed_width = theirs["model"].get("embed_width", mine)
        if "text_tower" in towers and "text_tower" in theirs["model"]:
            _adopt_tokenizer(config, theirs["tokenizer"])
        config.init_adopted = config.init_from


def _adopt_tokenizer(config: Any, theirs: Mapping) -> None:
    if theirs["path"] or theirs["type"] == "bytes":
        config.tokenizer = dict(theirs)
    elif config.tokenizer.type != theirs["type"]:
        raise UserError(
            f"init_from {config.init_from}: its tokenizer's file is missing beside the weights; put it there "
            "(merges.txt, bpe_simple_vocab_16e6.txt.gz or tokenizer.json for CLIP, spiece.model or tokenizer.json for "
            "SigLIP), or keep your texts' tower "
            "and words: --config.init_rules=\"((r'(image.*)', r'\\1'),)\""
        )


def _towers(source: convert.Source, held: Collection[str], rules: Sequence[tuple[str, str]]) -> set[str]:
    """Towers that some array of a file goes to, after `rules`; `held`: the file's names."""
    found = set()
    for ours, names, _ in source.rows:
        if not all(n.format(layer=0) in held for n in (names if isinstance(names, tuple) else (names,))):
            continue
        for path in ours if isinstance(ours, tuple) else (ours,):
            new, first = rename_path(path, rules), path.split("/")[0]
            if "/" in path and new.split("/")[0] == first:
                found |= {"image_tower", "text_tower"} if first == "image_text" else {convert.TOWERS[first]}
    return found


def _taken(config: Any, source: convert.Source, held: Collection[str]) -> set[str]:
    """Towers of `config` that get parameters of a file that holds the names `held`."""
    return {t for t in _towers(source, held, tuple(config.init_rules)) if config.model.get(t)}


def _described(theirs: Mapping, tower: str) -> dict[str, Any]:
    """The settings of a tower that follow from weights of the config `theirs`, the omitted ones too."""
    position = {"position": POSITIONS[tower]} if tower in POSITIONS else {}
    return IMPLIED | position | theirs["model"][tower]


def _same(config: Any, tower: str, name: str, mine: Any, theirs: Any) -> None:
    """Raises UserError if a setting that the weights depend on is another one here."""
    if name not in OWN and mine != theirs:
        raise UserError(
            f"init_from {config.init_from}: model.{tower}.{name} is {mine!r} here and {theirs!r} there; "
            "leave the towers to the weights"
        )


def parameters(config: Any, params: Any) -> tuple[dict[str, np.ndarray] | None, str]:
    """({path: array} of init_from for a model with `params`, a summary of the conversion).

    (None, "") if init_from does not name a kind of weights. Raises UserError if a setting that the weights depend on
    differs between the two configs.
    """
    named, rules = interop.split(config.init_from), tuple(config.init_rules)
    if not named:
        return None, ""
    source, weights, theirs = interop.describe(*named)
    towers = _taken(config, source, weights)
    here = config.model.to_dict()
    theirs = convert.with_heads(
        theirs, {t.removesuffix("_tower"): here[t]["heads"] for t in towers if "heads" in here[t]}
    )
    found, report = convert.into_ours(source, weights, theirs, f"{named[0]} {named[1]!r}")
    there = theirs["model"]
    for tower in sorted(towers & set(there)):
        for name, value in _described(theirs, tower).items():
            mine = here[tower].get(name, value)
            if name == "pool" and mine != value:
                log.warning(
                    f"init_from {config.init_from}: {tower} was trained with pool={value}, this config has {mine}"
                )
            _same(config, tower, name, mine, value)
    flat = {p: x for p, x in found.items() if rename_path(p, rules)}
    want = {p: tuple(x.shape) for p, x in flatten(params).items()}
    report.notes += theirs.get("notes", []) + positions.fit(flat, want, report.source)
    if "image_tower" in towers and positions.is_fixed(here["image_tower"]):
        side, was = (positions.grid_side(model["image_tower"]) for model in (here, there))
        if side != was:
            report.notes.append(
                f"the fixed positions of pictures are those of {side}x{side} patches, the weights know {was}x{was}"
            )
    return flat, str(report)
