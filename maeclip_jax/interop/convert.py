"""Applies conversion tables in both directions and reports what became of every array.

A table is data: rows of (our path, their name, transform word). A side may be a tuple of names where several arrays
make one or one makes several. "{layer}" in their name stands for 0, 1, ... of the stacked layers in our path. Of two
rows for one of our paths the first counts whose names are there. What no row takes must be in `ignored`, with the
reason; anything else is an error, and nothing is returned.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import files
from maeclip_jax.interop.transforms import TRANSFORMS, Transform

Row = tuple[Any, Any, str]
# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names, anywhere and in any
# order.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# First part of our paths -> the tower whose heads its attention has.
TOWERS = {
    "image": "image_tower", "image_head": "image_tower", "image_pool": "image_tower", "image_text": "image_tower",
    "text": "text_tower", "text_head": "text_tower", "text_pool": "text_tower", "decoder": "decoder_tower",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Given:
    """What is known of weights beside their arrays. `heads`: tower (image, text, decoder) -> its number of attention
    heads, as the caller says; `settings`: the plain values that the file holds, by dotted name (`files.settings`).
    `unknown` is filled by `heads_of`: tower -> (what is not known, how to say it).
    """

    heads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unknown: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def check(self, **towers: Mapping) -> None:
        """Raises UserError if `heads` contradict the settings of `towers`."""
        for tower, settings in towers.items():
            self.heads_of(tower, settings["width"], settings["heads"], "")

    def heads_of(self, tower: str, width: int, known: int | None, how: str) -> int:
        """The heads of a tower `width` wide. `known`: what the weights' own files say, None where they are silent.

        The shapes of torch's arrays do not show it, and a wrong number computes something else without an error: there
        is no default. If nobody knows, the tower is `unknown` and has 1 until somebody says (`with_heads`): who does
        not use it need not say. UserError for numbers that contradict each other or do not divide `width`.
        """
        said = self.heads.get(tower)
        if said and known and said != known:
            raise UserError(f"the {tower} tower has {known} heads by its own files; heads={said} contradicts them")
        number = said or known
        if not number:
            self.unknown[tower] = f"nothing says how many heads the {tower} tower has, which is {width} wide", how
            return 1
        return _divides(tower, width, number)


def _divides(tower: str, width: int, number: int) -> int:
    if width % number:
        raise UserError(f"the {tower} tower is {width} wide, which does not divide into {number} heads")
    return number


def with_heads(described: Mapping, heads: Mapping[str, int]) -> dict:
    """`described` (see `Source`) with `heads` (tower -> their number) where its own files do not say them.

    UserError for a number that does not divide the tower's width.
    """
    model, unknown = dict(described["model"]), dict(described.get("unknown", {}))
    for tower in set(unknown) & set(heads):
        settings = model[f"{tower}_tower"]
        model[f"{tower}_tower"] = settings | dict(heads=_divides(tower, settings["width"], heads[tower]))
        del unknown[tower]
    return dict(described) | dict(model=model, unknown=unknown)


@dataclasses.dataclass(frozen=True)
class Source:
    """The weight format of one code base.

    `rows`: the table. `ignored`: (pattern of their name, why it is left out). `renames`: (regex, replacement) applied
    to their names before anything else, for spellings of different versions. `describe(weights, folder, given)` -> the
    config these weights need: dict(objective, model, tokenizer, ops) and maybe notes, lines for the report; it raises
    UserError where that cannot be known.
    `config_of(config)` -> the inverse: what their config.json holds; None where nothing is written in this format.
    `fresh`: (pattern of our paths, why) of parts that a file may leave out as a whole. `stacked`: a part of their names
    under which arrays have the layers as first axis; they are read as if each were called "<stacked>_<layer>".
    `constants(config)` -> arrays of their format that are fixed and therefore none of our parameters.
    `files`: what a folder may hold these weights in, best first; another library's file beside it is not read.
    `wanted(config)` -> {name of a setting: value} of what a model must have to be written in this format; UserError
    where no setting helps. `changed(parameters by path, config)` -> these as the format has them. `writes`: the names
    of the files with what `config_of` gives and with the weights.
    """

    rows: tuple[Row, ...]
    describe: Callable[[Mapping[str, np.ndarray], Any, Given], dict]
    ignored: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    config_of: Callable[[Mapping], dict] | None = None
    fresh: tuple[tuple[str, str], ...] = ()
    stacked: str = ""
    constants: Callable[[Mapping], dict[str, np.ndarray]] | None = None
    files: tuple[str, ...] = files.FOLDER
    wanted: Callable[[Mapping], dict[str, Any]] | None = None
    changed: Callable[[Mapping[str, np.ndarray], Mapping], dict[str, np.ndarray]] | None = None
    writes: tuple[str, str] = ("config.json", "model.safetensors")


@dataclasses.dataclass
class Report:
    """What became of every array. `used`: their name -> our paths; `unused`: their name -> why; `missing`: our path ->
    why it has no value of theirs; `notes`: what else was changed.
    """

    source: str
    used: dict[str, str] = dataclasses.field(default_factory=dict)
    unused: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        parts = [f"{self.source}: {len(self.used)} arrays used, {len(self.unused)} left out"]
        parts += [f"{len(self.missing)} of ours without one"] if self.missing else []
        return "; ".join([*parts, *self.notes])

    def table(self) -> str:
        """Every array, one a line."""
        lines = [f"used     {theirs} -> {ours}" for theirs, ours in self.used.items()]
        lines += [f"unused   {name}: {why}" for name, why in self.unused.items()]
        lines += [f"missing  {path}: {why}" for path, why in self.missing.items()]
        return "\n".join([*lines, *(f"note     {n}" for n in self.notes)])


def under(ours: str, theirs: str, rows: Sequence[Row]) -> tuple[Row, ...]:
    """`rows` with prefixes in front of all paths and names."""

    def put(prefix: str, names):
        return tuple(f"{prefix}{n}" for n in names) if isinstance(names, tuple) else f"{prefix}{names}"

    return tuple((put(ours, a), put(theirs, b), word) for a, b, word in rows)


def shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all parameters of `config` (objective, model), with stacked layers. Nothing is computed."""
    import jax
    import jax.numpy as jnp

    from maeclip_jax import errors, objectives
    from maeclip_jax.params import flatten, stack_layers

    objective = objectives.make(config["objective"], config["model"])

    def init():
        batch = {k: jnp.zeros((1, *x.shape), x.dtype) for k, x in objective.inputs().items()}
        key = jax.random.key(0)
        return objective.init({"params": key, "mask": key, "dropout": key}, batch, train=True)["params"]

    with errors.from_modules():
        flat = flatten(jax.eval_shape(init))
    hollow = {p: np.broadcast_to(np.int8(0), x.shape) for p, x in flat.items()}
    return {p: tuple(x.shape) for p, x in stack_layers(hollow).items()}


def renamed(weights: Mapping[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """`weights` under the names that the table of `source` knows, without what wrapping a module puts into them."""
    out = {}
    for name, value in weights.items():
        name = ".".join(part for part in name.split(".") if part not in WRAPPERS) or name
        for pattern, replacement in source.renames:
            name = re.sub(pattern, replacement, name)
        layers = {name: value}
        if source.stacked and f"/{source.stacked}/" in name and value.ndim:
            before, after = name.split(f"/{source.stacked}/", 1)
            layers = {f"{before}/{source.stacked}_{i}/{after}": layer for i, layer in enumerate(value)}
        for name, value in layers.items():
            if name in out:
                raise UserError(f"two arrays are called {name!r}: the file holds more than one model")
            out[name] = value
    return out


def into_ours(
    source: Source, weights: Mapping[str, np.ndarray], config: Mapping, name: str
) -> tuple[dict[str, np.ndarray], Report]:
    """({path: float32 array}, report) of `weights` (as `renamed` leaves them) for `config`.

    UserError, one line, for a shape that does not fit, for arrays that are missing and for arrays nothing explains.
    """
    want, report = shapes(config), Report(name)
    plan, missing = _plan(source.rows, want, weights, config)
    found = {path for ours, *_ in plan for path in ours}
    for pattern, why in source.fresh:
        absent = fnmatch.filter(want, pattern)
        if absent and not found & set(absent):
            report.missing |= dict.fromkeys(absent, why)
            rest = {path: shape for path, shape in want.items() if path not in report.missing}
            plan, missing = _plan(source.rows, rest, weights, config)
    taken = {n for _, names, _, _ in plan for layer in names for n in layer}
    for theirs in (n for n in weights if n not in taken):
        why = next((why for pattern, why in source.ignored if fnmatch.fnmatchcase(theirs, pattern)), None)
        if why is not None:
            report.unused[theirs] = why
    strange = sorted(set(weights) - taken - set(report.unused))
    if missing or strange:
        raise UserError(f"{name} does not fit its table: {_lacks(missing, strange)}")
    for ours, names, transform, heads in plan:
        _check(name, weights, want, ours, names, transform, heads)
    flat: dict[str, np.ndarray] = {}
    for ours, names, transform, heads in plan:
        layers = [transform.into([np.asarray(weights[n], np.float32) for n in layer], heads) for layer in names]
        for i, path in enumerate(ours):
            values = [layer[i] for layer in layers]
            flat[path] = np.stack(values) if _stacked(path) else np.asarray(values[0], order="C")
        report.used |= {n: ", ".join(ours) for layer in names for n in layer}
    return flat, report


def out_of_ours(rows: Sequence[Row], flat: Mapping[str, np.ndarray], config: Mapping) -> dict[str, np.ndarray]:
    """Their arrays, of our parameters by path (layers stacked); ours that no row names are left out."""
    out: dict[str, np.ndarray] = {}
    for row in rows:
        ours, theirs, transform = _sides(row)
        if not all(p in flat for p in ours) or any(n.format(layer=0) in out for n in theirs):
            continue
        heads = _heads(ours[0], config)
        depth = flat[ours[0]].shape[0] if _stacked(ours[0]) else None
        for layer in range(depth or 1):
            values = [np.asarray(flat[p] if depth is None else flat[p][layer]) for p in ours]
            names = [n.format(layer=layer) for n in theirs]
            out |= dict(zip(names, (np.asarray(x, order="C") for x in transform.out(values, heads))))
    return out


def _sides(row: Row) -> tuple[tuple[str, ...], tuple[str, ...], Transform]:
    ours, theirs = (x if isinstance(x, tuple) else (x,) for x in row[:2])
    return ours, theirs, TRANSFORMS[row[2]]


def _stacked(path: str) -> bool:
    return "/blocks/" in path


def _heads(path: str, config: Mapping) -> int:
    return config["model"].get(TOWERS.get(path.split("/")[0], ""), {}).get("heads", 1)


def _plan(rows, want: Mapping[str, tuple], weights: Mapping, config: Mapping) -> tuple[list, list[str]]:
    """([(our paths, their names layer by layer, transform, heads)], their names that are missing)."""
    plan, missing, done = [], {}, set()
    for row in rows:
        ours, theirs, transform = _sides(row)
        if not all(p in want for p in ours) or done & set(ours):
            continue
        depth = want[ours[0]][0] if _stacked(ours[0]) else 1
        names = [[n.format(layer=i) for n in theirs] for i in range(depth)]
        lacking = [n for layer in names for n in layer if n not in weights]
        if lacking:
            for path in ours:
                missing.setdefault(path, lacking)
            continue
        done |= set(ours)
        plan.append((ours, names, transform, _heads(ours[0], config)))
    gone = [n for path, names in missing.items() if path not in done for n in names]
    gone += [f"anything for {path}" for path in want if path not in done and path not in missing]
    return plan, list(dict.fromkeys(gone))


def _check(name, weights, want, ours, names, transform: Transform, heads: int) -> None:
    """Raises UserError if an external array does not have the shape that the conversion expects."""
    hollow = [np.broadcast_to(np.int8(0), want[p][1:] if _stacked(p) else want[p]) for p in ours]
    needed = [x.shape for x in transform.out(hollow, heads)]
    for layer in names:
        for theirs, shape in zip(layer, needed):
            if not transform.fits(weights[theirs].shape, shape):
                raise UserError(f"{name}: {theirs!r} has shape {weights[theirs].shape}, its config needs {shape}")


def _lacks(missing: list[str], strange: list[str]) -> str:
    def few(names: list[str]) -> str:
        return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"

    parts = [f"it lacks {len(missing)} arrays ({few(missing)})"] if missing else []
    parts += [f"it has {len(strange)} that nothing explains ({few(strange)})"] if strange else []
    return " and ".join(parts)
