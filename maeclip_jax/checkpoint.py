"""Orbax checkpoints: async, atomic, kept by policy, restored onto any mesh, number of processes or layer layout.

One checkpoint holds the item `state` (a nested dict whose '/'-joined names are the paths of params, opt_state, step and
counters) and the item `meta` (JSON: data position, seed, batch size, config). Also: parameters of another run, by path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from maeclip_jax import paths
from maeclip_jax.errors import UserError

STATE, META = "state", "meta"


class KeepBest:
    """Orbax preservation policy: the `count` checkpoints with the best value of an evaluation metric.

    Evaluations come after the checkpoint they belong to, so their values are told to `record`, not to orbax.
    """

    def __init__(self, count: int, mode: str):
        self.count, self.sign, self.values = count, -1 if mode == "max" else 1, {}

    def record(self, step: int, value: float) -> None:
        self.values[step] = self.sign * value

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        there = sorted((self.values[c.step], c.step) for c in checkpoints if c.step in self.values)
        best = {step for _, step in there[: self.count]}
        return [c.step in best for c in checkpoints]


class Checkpoints:
    """The checkpoints of one workdir.

    `keep_last`: how many of the newest stay. `keep_every`: a period in steps whose multiples stay for ever (0: none).
    `keep_best`: how many stay by `best` (name of an evaluation metric), `best_mode` max | min.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_best: int = 0,
        best: str = "",
        best_mode: str = "max",
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as cm

        if keep_last < 1:
            raise UserError(f"checkpoint.keep_last must be at least 1, got {keep_last}")
        if best_mode not in ("max", "min"):
            raise UserError(f"unknown checkpoint.best_mode {best_mode!r}; valid: max, min")
        self._best_metric, self._best = best, KeepBest(keep_best, best_mode)
        policies = [cm.LatestN(keep_last), self._best]
        if keep_every:
            policies.append(cm.EveryNSteps(keep_every))
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            epath.Path(directory),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=cm.AnyPreservationPolicy(policies), enable_async_checkpointing=True
            ),
        )

    def latest(self) -> int | None:
        """The newest complete step, or None. Half-written checkpoints of a killed run are never seen."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete steps."""
        return sorted(self._manager.all_steps())

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells the keep-best policy what an evaluation of checkpoint `step` found."""
        if self._best_metric in metrics:
            self._best.record(step, metrics[self._best_metric])

    def save(self, step: int, state: Any, meta: Mapping) -> None:
        """Saves asynchronously; returns when `state` may be donated. A step that exists is left alone."""
        args = self._ocp.args
        nested = paths.unflatten(paths.flatten(state))
        self._manager.save(
            step, force=True, args=args.Composite(state=args.StandardSave(nested), meta=args.JsonSave(dict(meta)))
        )

    def restore(self, step: int, target: Any) -> tuple[Any, dict]:
        """(state, meta) of `step`, in the structure, dtypes and shardings of `target` (arrays or ShapeDtypeStructs).

        Scanned and unrolled layers are converted into each other. UserError if it is of another model.
        """
        directory = self._manager.directory / str(step)
        state = read(directory / STATE, target)
        meta = self._manager.restore(step, args=self._ocp.args.Composite(meta=self._ocp.args.JsonRestore()))[META]
        return state, meta

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def _saved_shapes(directory: epath.Path) -> dict[str, tuple]:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(directory)
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    return {path: tuple(leaf.shape) for path, leaf in paths.flatten(tree).items()}


def read(directory: epath.Path, target: Any) -> Any:
    """One saved state, in the structure and shardings of `target`. UserError if its parameters are others."""
    import orbax.checkpoint as ocp

    want = paths.flatten(target)
    have = _saved_shapes(directory)
    if set(have) == set(want):
        for path, leaf in want.items():
            _same_shape(directory, path, have[path], leaf.shape)
        nested = paths.unflatten({p: _abstract(leaf) for p, leaf in want.items()})
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            flat = paths.flatten(checkpointer.restore(directory, args=ocp.args.StandardRestore(nested)))
    else:
        hollow = {p: np.broadcast_to(np.int8(0), shape) for p, shape in have.items()}  # no memory: only shapes matter
        if set(paths.like(hollow, want)) != set(want):
            _other_model(directory, have, want)
        logging.info("checkpoint %s has its layers laid out the other way: converting", directory)
        flat = paths.like(read_numpy(directory), want)
        for path, leaf in want.items():
            _same_shape(directory, path, flat[path].shape, leaf.shape)
        flat = {p: put(flat[p], leaf) for p, leaf in want.items()}
    structure = jax.tree_util.tree_structure(target)
    return jax.tree_util.tree_unflatten(structure, [flat[p] for p in want])


def _same_shape(directory, path: str, have: tuple, want: tuple) -> None:
    if tuple(have) != tuple(want):
        raise UserError(f"checkpoint {directory} has {path!r} of shape {tuple(have)}, this config makes {tuple(want)}")


def _other_model(directory, have: Mapping, want: Mapping) -> None:
    missing, extra = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    raise UserError(
        f"checkpoint {directory} is of another model or optimizer: "
        f"it lacks {len(missing)} arrays ({', '.join(missing[:2]) or 'none'}) and has {len(extra)} others "
        f"({', '.join(extra[:2]) or 'none'}); use another --workdir, or config.init_from to take parameters by path"
    )


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def put(value: np.ndarray, like: Any) -> jax.Array:
    """A host array as a device array with the dtype and sharding of `like`; every process holds the whole value."""
    value = np.asarray(value).astype(like.dtype)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


def read_numpy(directory: epath.PathLike, within: str = "") -> dict[str, np.ndarray]:
    """The arrays of a saved state whose path starts with `within`, as {path: numpy array}."""
    import orbax.checkpoint as ocp

    shapes = [p for p in _saved_shapes(epath.Path(directory)) if p.startswith(within)]
    if not shapes:
        return {}
    item = paths.unflatten(dict.fromkeys(shapes, 0))
    args = paths.unflatten({p: ocp.RestoreArgs(restore_type=np.ndarray) for p in shapes})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(
            epath.Path(directory), args=ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        )
    return {path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()}


def read_params(directory: epath.PathLike, target: Any) -> Any:
    """The parameters alone (no optimizer), in the structure and shardings of `target`. UserError if they are others."""
    prefix = "params/"
    have = {p.removeprefix(prefix): v for p, v in read_numpy(directory, prefix).items()}
    want = paths.flatten(target)
    flat = paths.like(have, want)
    if set(flat) != set(want):
        _other_model(directory, flat, want)
    for path, leaf in want.items():
        _same_shape(directory, path, flat[path].shape, leaf.shape)
    structure = jax.tree_util.tree_structure(target)
    return jax.tree_util.tree_unflatten(structure, [put(flat[p], leaf) for p, leaf in want.items()])


def locate(source: str) -> epath.Path:
    """The `state` directory meant by `source`: a workdir (its newest step), `.../checkpoints/<step>`, or that itself."""
    path = epath.Path(source)
    for candidate in (path, path / STATE):
        if candidate.name == STATE and candidate.exists():
            return candidate
    folder = path / "checkpoints" if (path / "checkpoints").exists() else path
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
    if not steps:
        raise UserError(f"no checkpoint in {source!r}; valid: a workdir with checkpoints/<step>, or one such step")
    return folder / str(steps[-1]) / STATE


def init_params(source: str, rules: Sequence[tuple[str, str]], params: Any) -> tuple[Any, str]:
    """`params` with values taken from another run's checkpoint, by path.

    `rules`: ((regex of the source path, replacement), ...), first match wins; an empty replacement drops the path. What
    has no counterpart keeps its fresh value. Returns (params, one-line report). UserError if a shape differs or nothing
    fits.
    """
    want = paths.flatten(params)
    have = {p.removeprefix("params/"): v for p, v in read_numpy(locate(source), "params/").items()}
    renamed: dict[str, np.ndarray] = {}
    for path, value in paths.like(have, want).items():
        for pattern, replacement in rules:
            m = re.fullmatch(pattern, path)
            if m:
                if replacement:
                    renamed[m.expand(replacement)] = value
                break
    loaded = {}
    for path, value in renamed.items():
        if path in want:
            if value.shape != tuple(want[path].shape):
                raise UserError(
                    f"init_from {source!r}: {path!r} has shape {value.shape} there and {tuple(want[path].shape)} here; "
                    "drop it with an init_rules entry ((its path, ''), ...)"
                )
            loaded[path] = put(value, want[path])
    if not loaded:
        raise UserError(
            f"init_from {source!r}: none of its {len(have)} parameters has a place here; "
            f"theirs look like {next(iter(have), 'nothing')!r}, ours like {next(iter(want))!r}; see config.init_rules"
        )
    fresh = sorted(set(want) - set(loaded))
    unused = sorted(set(renamed) - set(loaded))
    report = f"init_from {source}: {len(loaded)} of {len(want)} parameters loaded; fresh: {_some(fresh)}; unused: {_some(unused)}"
    structure = jax.tree_util.tree_structure(params)
    return jax.tree_util.tree_unflatten(structure, [loaded.get(p, leaf) for p, leaf in want.items()]), report


def _some(names: list[str]) -> str:
    tops = sorted({n.split("/")[0] for n in names})
    return f"{len(names)} ({', '.join(tops[:6])})" if names else "none"
