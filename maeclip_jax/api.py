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
from maeclip_jax.params import flatten, unflatten
from maeclip_jax.run import checkpoint, train
from maeclip_jax.run.model import Model
from maeclip_jax.run.setup import setup
from maeclip_jax.workdir import CONFIG, read_names

SOURCES = (
    "a run's folder (runs/demo) or one checkpoint in it, an experiment file with its argument "
    "(experiments/clip.py:scale=demo), or kind:path of other code bases' weights (hf-clip:/path)"
)

TOWERS = ("image", "text", "decoder")  # whose heads weights without a word about them need from `settings`


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
) -> Model:
    """The model of a run, of an experiment file (with fresh weights) or of other code bases, with what belongs to it.

    `source`: see SOURCES. `settings`: leaves of its config to change, such as {"model.compute.dtype": "bfloat16"}.
    `devices`: where it computes (default: all); parameters are whole on each unless `settings` name a "mesh.fsdp".
    `batch_size`: pictures computed at a time. UserError, one line with what is valid, for whatever is not there or does
    not fit.
    """
    name, settings = os.fspath(source), dict(settings or {})
    params, step, folder, origin = None, None, None, "fresh weights"
    if re.search(r"\.py(:|$)", name):
        config = experiment(name, settings)
    elif interop.split(name):
        towers = {k: settings[f"model.{k}_tower.heads"] for k in TOWERS if f"model.{k}_tower.heads" in settings}
        found = interop.load(*interop.split(name), heads=towers)
        config, params, origin = found.config, found.params, interop.split(name)[0]
        try:
            config.update_from_flattened_dict(settings)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{name}: settings {settings} do not fit: {' '.join(str(e).split())[:200]}") from None
    else:
        try:
            folder = checkpoint.locate(name)
        except UserError:
            raise UserError(f"nothing to load at {name!r}; valid: {SOURCES}") from None
        step, run = int(folder.name), folder.parent.parent
        origin = f"step {step}"
        config = experiment(run / CONFIG, settings)
    if not any(k.startswith("mesh.") for k in settings):
        config.mesh = dict(replica=-1, fsdp=1, tensor=1)  # that of the training may be a pod's
    made = setup(config, devices=devices)
    if folder is not None:
        params = checkpoint.read_params(folder, made.params)
    else:
        have, want = flatten(params or {}), flatten(made.params)
        flat = {p: put(x, want[p]) for p, x in have.items()}
        if set(want) - set(have):  # fresh weights: all, or a decoder that a file left out
            shardings = jax.tree.map(lambda x: x.sharding, made.params)
            with jax.set_mesh(made.mesh):
                flat = flatten(jax.jit(made.fresh, out_shardings=shardings)()) | flat
        params = unflatten(flat)
    names = read_names(folder, config.get("resume", ""))
    about = dict(name=name, origin=origin, step=step, names=names)
    return Model(config, made.objective, made.mesh, params, batch_size=batch_size, **about)
