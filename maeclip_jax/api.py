"""Loads a model from any of its sources: a run, a checkpoint, an experiment file, another code base's weights.

Nothing is set up behind one's back: no flags, no jax options, no files but those one names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from maeclip_jax import interop
from maeclip_jax.config import load as experiment
from maeclip_jax.errors import UserError
from maeclip_jax.parallel.sharding import put
from maeclip_jax.params import flatten, unflatten, with_layers_like
from maeclip_jax.run import checkpoint, train
from maeclip_jax.run.model import Model
from maeclip_jax.run.setup import restored, setup
from maeclip_jax.workdir import read_names

SOURCES = (
    "a run's folder (runs/demo) or one checkpoint in it, an experiment file with its argument "
    "(experiments/clip.py:scale=demo), or kind:path of other code bases' weights (hf-clip:/path)"
)

TOWERS = ("image", "text", "decoder")  # whose heads weights without a word about them need from `settings`
# Settings that change the number of positions -> the argument by which `interop.load` fits them.
FITTED = {"model.image_tower.size": "size", "model.text_tower.length": "length"}


def fit(config, workdir: str | os.PathLike, *, devices: Sequence | None = None) -> Model:
    """Trains `config` in `workdir` with the project's loop, on `devices` (default: all); the trained model.

    Resumes an existing run, and returns at once if all its steps are done. Raises what `train.run` raises.
    """
    train.run(config, workdir, devices=devices)
    return load(workdir, devices=devices)


def load(
    source: str | os.PathLike,
    settings: Mapping[str, Any] | None = None,
    *,
    devices: Sequence | None = None,
    batch_size: int = 64,
    params: str = checkpoint.AUTO,
) -> Model:
    """The model of a run, of an experiment file (with fresh weights) or of other code bases, with what belongs to it.

    `source`: see SOURCES. `settings`: leaves of its config to change, such as {"model.compute.dtype": "bfloat16"}; of
    other code bases' weights, model.image_tower.size and model.text_tower.length fit the positions and the ops.
    `devices`: where it computes (default: all); parameters are whole on each unless `settings` name a "mesh.fsdp".
    `batch_size`: pictures computed at a time. `params`: of a run that keeps an average of its parameters, ema (that) |
    raw (those of the last step) | auto (the average, and a line says so). UserError, one line with what is valid, for
    whatever is not there or does not fit.
    """
    name, settings = os.fspath(source), dict(settings or {})
    if not re.search(r"\.py(:|$)", name) and not interop.split(name):
        return _of_run(name, settings, devices, batch_size, params)
    if params != checkpoint.AUTO:
        raise UserError(f"params={params} chooses among the parameters of a run, which {name!r} is not; leave it out")
    have, origin, fresh = {}, "fresh weights", {}
    if kind := interop.split(name):
        towers = {k: settings[f"model.{k}_tower.heads"] for k in TOWERS if f"model.{k}_tower.heads" in settings}
        fitted = {FITTED[k]: v for k, v in settings.items() if k in FITTED and isinstance(v, int)}
        found = interop.load(*kind, heads=towers, **fitted)
        config, have, origin, fresh = found.config, flatten(found.params), kind[0], found.report.missing
        try:
            config.update_from_flattened_dict(settings)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{name}: settings {settings} do not fit: {' '.join(str(e).split())[:200]}") from None
    else:
        config = experiment(name, settings)
    if not any(k.startswith("mesh.") for k in settings):
        config.mesh = dict(replica=-1, fsdp=1, tensor=1)
    made = setup(config, devices=devices)
    want = flatten(made.params)
    if have:
        have = with_layers_like(have, want)
        _check(f"{name}: settings {settings}", have, want, {path.split("/")[0] for path in fresh})
    flat = {p: put(x, want[p]) for p, x in have.items()}
    if set(want) - set(have):  # fresh weights: all, or a decoder that a file left out
        shardings = jax.tree.map(lambda x: x.sharding, made.params)
        with jax.set_mesh(made.mesh):
            flat = flatten(jax.jit(made.fresh, out_shardings=shardings)()) | flat
    about = dict(name=name, origin=origin, step=None, names=read_names(None, config.get("resume", "")))
    return Model(config, made.objective, made.mesh, unflatten(flat), batch_size=batch_size, **about)


def _check(what: str, have: Mapping[str, Any], want: Mapping[str, Any], fresh: set[str]) -> None:
    """Raises UserError unless `have` are the parameters of the model `want`, but for the parts `fresh`."""
    valid = f"valid: those that leave the parameters as they are, and {' and '.join(FITTED)}"
    for path, value in have.items():
        if path not in want:
            raise UserError(f"{what} leave no place for its {path!r}; {valid}")
        if value.shape != want[path].shape:
            raise UserError(f"{what} make {path!r} {want[path].shape}, which is {value.shape} in the file; {valid}")
    lacking = [path for path in want if path not in have and path.split("/")[0] not in fresh]
    if lacking:
        raise UserError(f"{what} need {lacking[0]!r}, which is not in the file; {valid}")


def _of_run(name: str, settings: Mapping[str, Any], devices: Sequence | None, batch_size: int, which: str) -> Model:
    try:
        folder = checkpoint.locate(name)
    except UserError:
        raise UserError(f"nothing to load at {name!r}; valid: {SOURCES}") from None
    config, made, params, found = restored(folder, settings, devices=devices, which=which)
    averaged = ", averaged" if found == checkpoint.EMA else ""
    about = dict(name=name, origin=f"step {folder.name}{averaged}", step=int(folder.name))
    names = read_names(folder, config.get("resume", ""))
    return Model(config, made.objective, made.mesh, params, batch_size=batch_size, names=names, **about)
