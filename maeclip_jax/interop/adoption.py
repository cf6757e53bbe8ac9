"""Training that starts from the weights of another code base: `--config.init_from=hf-clip:/path`.

The towers become those of the weights (`adopt`, once, when the command line is read); what belongs to the experiment
stays: objective, loss, pooling, size of pictures, length of texts. `parameters` then gives the values, with positions
interpolated to that size.
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


def adopt(config: Any) -> None:
    """Sets the towers, the pixel statistics and the tokenizer of `config` to those of the weights in its init_from.

    Towers that `config.init_rules` exclude are unchanged. Nothing happens if init_from does not name a kind of weights,
    or if the config has adopted them before (as the config of a run has). Raises UserError for weights that cannot be
    read and for weights whose tokenizer is not found.
    """
    named = interop.split(config.get("init_from") or "")
    if not named or config.get("init_adopted") == config.init_from:
        return
    source, weights, theirs = interop.describe(*named)
    towers = _towers(source, weights, tuple(config.init_rules))
    with config.unlocked():
        for tower, settings in theirs["model"].items():
            if tower not in towers or not config.model.get(tower):
                continue
            have = config.model[tower].to_dict()
            if have.get("length", 0) > settings.get("length", 0):
                raise UserError(
                    f"init_from {config.init_from}: it reads texts of up to {settings['length']} tokens, the config "
                    f"has {have['length']}: set model.text_tower.length and tokenize(...) in the ops to less"
                )
            config.model[tower] = settings | {k: have[k] for k in OWN if k in have}
        if "image_tower" in towers:
            config.model.stats = theirs["model"]["stats"]
            if "embed_width" in config.model:
                config.model.embed_width = theirs["model"].get("embed_width", config.model.embed_width)
        if "text_tower" in towers and config.model.get("text_tower") and "text_tower" in theirs["model"]:
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


def parameters(config: Any, params: Any) -> tuple[dict[str, np.ndarray] | None, str]:
    """({path: array} of init_from for a model with `params`, a summary of the conversion).

    (None, "") if init_from does not name a kind of weights. Raises UserError if a setting that the weights depend on
    differs between the two configs.
    """
    named, rules = interop.split(config.init_from), tuple(config.init_rules)
    if not named:
        return None, ""
    found = interop.load(*named)
    towers = _towers(interop.source_of(named[0]), found.report.used, rules)
    there, here = found.config.model.to_dict(), config.model.to_dict()
    for tower in sorted(towers & set(there) & {k for k, v in here.items() if v}):
        for name, value in there[tower].items():
            mine = here[tower].get(name, value)
            if name == "pool" and mine != value:
                log.warning(
                    f"init_from {config.init_from}: {tower} was trained with pool={value}, this config has {mine}"
                )
            if name not in OWN and mine != value:
                raise UserError(
                    f"init_from {config.init_from}: model.{tower}.{name} is {mine!r} here and {value!r} there; "
                    "leave the towers to the weights"
                )
    flat = {p: x for p, x in flatten(found.params).items() if rename_path(p, rules)}
    want = {p: tuple(x.shape) for p, x in flatten(params).items()}
    found.report.notes += positions.fit(flat, want, found.report.source)
    return flat, str(found.report)
