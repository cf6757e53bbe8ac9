"""Weights of other code bases, in and out.

    found = interop.load("hf-clip", "/models/clip-vit-base-patch16")     found.config, found.params, found.report
    interop.save("hf-siglip", config, params, "/models/mine")            a folder that `transformers` loads

Each kind is one module with a conversion table that is data (`convert.Source`). Files are local, or copied from and
to a bucket; nothing in them is executed and torch is not needed (`files`). Everything in a file is accounted for, or it
is an error of one line and nothing is loaded.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maeclip_jax import errors, remote
from maeclip_jax.remote import copies

# kind -> the module that has its SOURCE, or module:NAME.
KINDS = {
    "big_vision": "big_vision", "hf-clip": "hf_clip", "hf-siglip": "hf_siglip", "hf-vit-mae": "hf_vit_mae",
    "m3ae": "m3ae", "mae": "mae", "open_clip": "openai_clip:GELU", "open_clip-quickgelu": "openai_clip:QUICK",
    "openai-clip": "openai_clip:OPENAI",
}  # fmt: skip
WRITTEN = ("hf-clip", "hf-siglip", "open_clip", "hf-vit-mae", "hf-vision")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """`config`: objective, model, tokenizer and evaluation ops that these weights need, enough for `run.setup.setup`;
    `params`: float32 arrays as that model has them; `report`: what became of every array (`convert.Report`).
    """

    config: Any
    params: dict
    report: Any


def source_of(kind: str):
    """The `convert.Source` of `kind`; UserError with the valid ones."""
    module, _, name = errors.choose("kind of weights", kind, KINDS).partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name or "SOURCE")


def split(name: str) -> tuple[str, str] | None:
    """("hf-clip", path) of "hf-clip:path"; None for what names no kind, such as a path or gs://bucket."""
    kind, colon, path = str(name).partition(":")
    if not colon or path.startswith("//") or not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", kind):
        return None
    errors.choose("kind of weights", kind, KINDS)
    return kind, path


def load(
    kind: str, path: str | os.PathLike, *, size: int = 0, length: int = 0, heads: Mapping[str, int] | None = None
) -> Loaded:
    """The model in `path`, a file or a folder of `kind` (see KINDS).

    `size`: side of the pictures it is to take, if not its own; positions are interpolated, fixed ones of an encoder as
    well, which become learned; those of a decoder are computed anew. `length`: of its texts, at most its own. `heads`:
    number of attention heads by tower, such as {"image": 16, "text": 16}, for files that do not say. UserError for a
    damaged file, for shapes that do not fit and for arrays that are missing or that nothing explains; nothing is loaded
    then.
    """
    from maeclip_jax.interop import convert, positions
    from maeclip_jax.params import unflatten

    source, weights, described = describe(kind, path, heads)
    for what, how in described["unknown"].values():
        raise errors.UserError(f"{what}; {how}")
    flat, report = convert.into_ours(source, weights, described, f"{kind} {os.fspath(path)!r}")
    report.notes += described.get("notes", [])
    if size or length:
        before, described = described["model"], _resized(described, size, length)
        after = described["model"]
        if positions.is_fixed(before["image_tower"]) and not positions.is_fixed(after["image_tower"]):
            flat |= positions.fixed(flat, before["image_tower"])
        report.notes += positions.fit(flat, convert.shapes(described), report.source)
        side, was = (positions.grid_side(model["image_tower"]) for model in (after, before))
        if "decoder_tower" in after and side != was:
            report.notes.append(f"the decoder's positions are those of {side}x{side} patches, it knows {was}x{was}")
    return Loaded(_config(described), unflatten(flat), report)


def save(
    kind: str,
    config: Any,
    params: Any,
    folder: str | os.PathLike,
    *,
    overwrite: bool = False,
    tokenizer: bool = True,
    about: Mapping[str, Any] | None = None,
):
    """Writes a model of ours as a folder that `transformers` or open_clip loads; -> the report of what was left out.

    `kind`: one of WRITTEN. `config`, `params`: of a run (`Loaded`, `Model`); layers stacked or not. The folder holds
    what the library's own processor and tokenizer need to give the numbers of ours, and a model card. `overwrite`: of
    a folder that holds something. `tokenizer`: False writes the weights of a model whose tokenizer is unknown; the
    library then has none. `about`: see `card.text`. UserError for a model that the format cannot express, with the
    settings that would help; nothing is written then.
    """
    from maeclip_jax.data.tokenizer import files as tokenizer_files
    from maeclip_jax.interop import export
    from maeclip_jax.params import flatten, stack_layers

    errors.choose("kind of weights to write", kind, dict.fromkeys(WRITTEN))
    parts = {k: _plain(config[k]) for k in ("tokenizer", "preprocess") if config.get(k)}
    config = {"objective": config["objective"], "model": _plain(config["model"])} | parts
    remote.check_scheme(folder, "the folder to write")

    def source(kind: str):
        return _written(kind, config)

    export.check(kind, source, WRITTEN, config)
    reads, spec, words = kind not in ("hf-vision", "hf-vit-mae"), config.get("tokenizer") or {}, {}
    if reads and tokenizer and not spec.get("type"):
        raise errors.UserError(
            f"no tokenizer came with this model, and {kind} needs one: set config.tokenizer to its type and path, such "
            'as dict(type="clip", path="bpe_simple_vocab_16e6.txt.gz"), or save with tokenizer=False'
        )
    if reads and tokenizer:
        tower = config["model"]["text_tower"]
        attended = tower.get("padding", "masked") == "attended"
        words = tokenizer_files.files(spec, tower["length"], attended=attended)
    away, folder = os.fspath(folder) if remote.is_remote(folder) else "", Path(folder)
    there = remote.names(away) if away else folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if there and not overwrite:
        raise errors.UserError(
            f"{(away or str(folder))!r} is there already and holds something; name another folder, or set overwrite "
            "(--overwrite on the command line)"
        )
    flat = stack_layers(flatten(params))
    if not away:
        return export.write(source(kind), kind, config, flat, folder, words=words, about=about or {})
    with tempfile.TemporaryDirectory(prefix="maeclip-") as here:
        made = Path(here) / away.rstrip("/").rpartition("/")[2]
        report = export.write(source(kind), kind, config, flat, made, words=words, about=about or {})
        copies.upload(made, away)
    return report


def _written(kind: str, config: Mapping):
    """The `convert.Source` that writes `config` as `kind`, one of WRITTEN."""
    from maeclip_jax.interop import hf_vision, openai_clip

    made = {"hf-vision": hf_vision.source_for, "open_clip": openai_clip.source_for}
    return made[kind](config) if kind in made else source_of(kind)


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if hasattr(value, "items") else value


def describe(kind: str, path: str | os.PathLike, heads: Mapping[str, int] | None = None) -> tuple[Any, dict, dict]:
    """(source, weights under its table's names, the config they need as a dict); arguments and UserError as `load`.

    The config has `unknown` besides: the towers whose heads nobody says (`convert.Given`).
    """
    from maeclip_jax.interop import convert, files, own

    source = source_of(kind)
    for tower, number in (heads or {}).items():
        errors.choose("tower in heads:", tower, dict.fromkeys(("image", "text", "decoder")))
        if not isinstance(number, int) or number < 1:
            raise errors.UserError(f"heads[{tower!r}] is {number!r}; it must be a whole number above 0")
    path = copies.download(path, "weights")
    arrays, settings = files.read_all(path, source.files)
    weights = convert.renamed(arrays, source)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    given = convert.Given(dict(heads or {}), settings)
    described = own.restored(source.describe(weights, folder, given), folder)
    return source, weights, described | dict(unknown=given.unknown)


def _resized(described: Mapping, size: int, length: int) -> dict:
    from maeclip_jax.interop import positions, processors

    model = dict(described["model"])
    for tower, key, value in (("image_tower", "size", size), ("text_tower", "length", length)):
        if value and model.get(tower):
            model[tower] = dict(model[tower]) | {key: value}
    image, before = (m["image_tower"] for m in (model, described["model"]))
    if positions.is_fixed(image) and positions.grid_side(image) != positions.grid_side(before):
        # Computed for another grid they would be ones that the weights have never seen.
        model["image_tower"] = image | dict(position="learned")
    ops = processors.at_size(described["ops"], size) if size else described["ops"]
    return dict(described) | dict(model=model, ops=ops)


def _config(described: Mapping):
    """A config that objectives, `run.setup.setup` and the preprocessing of pictures read as one of a run."""
    import ml_collections

    config = ml_collections.ConfigDict({k: described[k] for k in ("objective", "model")})
    words = described["tokenizer"]
    config.tokenizer = (
        words if words["path"] or words["type"] == "bytes" else dict(type="", path="")
    )  # without its file there is none
    config.seed, config.sharding_rules, config.mesh = 0, (), dict(replica=-1, fsdp=1, tensor=1)
    config.preprocess = dict(image=described["ops"])
    return config
