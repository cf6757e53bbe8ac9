"""A checkpoint of orbax: found, and read onto any mesh, number of processes or layer layout. `saving` writes them.

One checkpoint holds the item `state` (a nested dict whose '/'-joined names are the paths of params, opt_state, step,
counters and, where the run keeps one, the average of the parameters, ema) and the item `meta` (JSON: data position,
seed, batch size, config). Also: parameters of another run, by path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import UserError, choose, storage
from maeclip_jax.parallel.sharding import put
from maeclip_jax.parallel.terminal import say
from maeclip_jax.params import flatten, unflatten, with_layers_like
from maeclip_jax.remote import traffic
from maeclip_jax.workdir import CHECKPOINTS

STATE, META = "state", "meta"
# Which parameters of a checkpoint are meant, and where they lie: the first that is there.
AUTO, EMA, RAW = "auto", "ema", "raw"
PLACES = {AUTO: ("ema/", "params/"), EMA: ("ema/",), RAW: ("params/",)}
SWITCHED_ON = (
    "keeps no average of its parameters; valid: optim.ema=0, or a new --workdir with config.init_from={source}, from "
    "whose parameters the average starts"
)
SWITCHED_OFF = (
    "keeps an average of its parameters, which would be lost; valid: optim.ema={then}, or a new --workdir with "
    "config.init_from={source}"
)
COMMITTED = "commit_success.txt"  # what makes a checkpoint in a bucket a whole one


def _saved_shapes(directory: epath.Path) -> dict[str, tuple]:
    import orbax.checkpoint as ocp

    tree = ocp.StandardCheckpointHandler().metadata(directory).tree
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}


@contextlib.contextmanager
def _reading(folder: epath.Path) -> Iterator[None]:
    """What goes wrong with files of a checkpoint is a matter of that checkpoint, said in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # damaged files raise anything from KeyError to XlaRuntimeError
        status = storage.remote_status(e) if remote.is_remote(folder) else None
        if status not in (None, 404):
            raise storage.remote_failure("read", folder, e) from e
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        raise UserError(
            f"checkpoint {folder} cannot be read ({reason}); move it away to continue from the one before"
        ) from e


def read(folder: epath.Path, target: Any) -> tuple[Any, dict]:
    """(state, meta) of one checkpoint `.../<step>`; the state in the structure, dtypes and shardings of `target`.

    Scanned and unrolled layers are converted into each other. UserError if it is of another model or damaged.
    """
    import orbax.checkpoint as ocp

    before = traffic.so_far()
    with _reading(folder), remote.known(folder):
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore(folder / META)
        state = _read_state(folder / STATE, target)
    if remote.is_remote(folder):
        say(f"{folder} was read with {traffic.so_far() - before}")
    return state, meta


def _read_state(directory: epath.Path, target: Any) -> Any:
    import orbax.checkpoint as ocp

    want = flatten(target)
    have = _saved_shapes(directory)
    if set(have) == set(want):
        for path, leaf in want.items():
            _same_shape(directory, path, have[path], leaf.shape)
        nested = unflatten({p: _abstract(leaf) for p, leaf in want.items()})
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            flat = flatten(checkpointer.restore(directory, args=ocp.args.StandardRestore(nested)))
    else:
        hollow = {p: np.broadcast_to(np.int8(0), shape) for p, shape in have.items()}  # no memory: only shapes matter
        if set(with_layers_like(hollow, want)) != set(want):
            _other_model(directory, have, want)
        say(f"the layers of {directory} are laid out the other way: converting")
        flat = with_layers_like(read_numpy(directory), want)
        for path, leaf in want.items():
            _same_shape(directory, path, flat[path].shape, leaf.shape)
        flat = {p: put(flat[p], leaf) for p, leaf in want.items()}
    structure = jax.tree_util.tree_structure(target)
    return jax.tree_util.tree_unflatten(structure, [flat[p] for p in want])


def _same_shape(directory, path: str, have: tuple, want: tuple) -> None:
    if tuple(have) != tuple(want):
        raise UserError(f"checkpoint {directory} has {path!r} of shape {tuple(have)}, this config makes {tuple(want)}")


def _other_model(directory, have: Mapping, want: Mapping) -> None:
    averaged, wanted = (any(path.startswith(PLACES[EMA]) for path in of) for of in (have, want))
    if averaged != wanted:
        said = SWITCHED_ON if wanted else SWITCHED_OFF
        source = directory.parent
        raise UserError(f"checkpoint {source} {said.format(then='the one of its run', source=source)}")
    missing, extra = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    raise UserError(
        f"checkpoint {directory} is of another model or optimizer: "
        f"it lacks {len(missing)} arrays ({', '.join(missing[:2]) or 'none'}) and has {len(extra)} others "
        f"({', '.join(extra[:2]) or 'none'}); use another --workdir, or config.init_from to take parameters by path"
    )


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def read_numpy(directory: epath.PathLike, *within: str) -> dict[str, np.ndarray]:
    """The arrays of a saved state, as {path: numpy array}; those whose path starts with the first of `within` that any
    does, if some are given."""
    import orbax.checkpoint as ocp

    there = _saved_shapes(epath.Path(directory))
    shapes = next((found for w in within or ("",) if (found := [p for p in there if p.startswith(w)])), [])
    if not shapes:
        return {}
    item = unflatten(dict.fromkeys(shapes, 0))
    args = unflatten({p: ocp.RestoreArgs(restore_type=np.ndarray) for p in shapes})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(
            epath.Path(directory), args=ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        )
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


def keeps_average(folder: epath.Path) -> bool:
    """Whether a checkpoint `.../<step>` holds an average of the parameters beside them."""
    with _reading(folder), remote.known(folder):
        return any(path.startswith(PLACES[EMA]) for path in _saved_shapes(folder / STATE))


def read_parameters(source: epath.PathLike, which: str = AUTO) -> tuple[dict[str, np.ndarray], str]:
    """({path: array}, EMA or RAW): the parameters of a checkpoint, and what they are; `source`: see `locate`.

    `which`: EMA (their running average) | RAW (as the last step left them) | AUTO (the average, if there is one).
    UserError for an average that there is not.
    """
    places = choose("params", which, PLACES)
    folder = locate(source)
    with _reading(folder), remote.known(folder):
        found = read_numpy(folder / STATE, *places)
    if not found and which == EMA:
        raise UserError(f"checkpoint {folder} keeps no average of its parameters (optim.ema); valid: params={RAW}")
    root = next(iter(found), "params/").partition("/")[0]
    return {p.removeprefix(f"{root}/"): v for p, v in found.items()}, EMA if root == EMA else RAW


def read_params(folder: epath.Path, target: Any, which: str = AUTO) -> tuple[Any, str]:
    """(the parameters of a checkpoint `.../<step>` alone, in the structure and shardings of `target`; EMA or RAW).

    `which`: see `read_parameters`. UserError if they are others.
    """
    directory = folder / STATE
    (have, found), want = read_parameters(folder, which), flatten(target)
    flat = with_layers_like(have, want)
    if set(flat) != set(want):
        _other_model(directory, flat, want)
    for path, leaf in want.items():
        _same_shape(directory, path, flat[path].shape, leaf.shape)
    structure = jax.tree_util.tree_structure(target)
    return jax.tree_util.tree_unflatten(structure, [put(flat[p], leaf) for p, leaf in want.items()]), found


def absolute(path: epath.PathLike) -> epath.Path:
    """A local path made absolute, as orbax wants it; a remote one (gs://) as it is."""
    return epath.Path(path) if remote.is_remote(path) else epath.Path(path).resolve()


def locate(source: epath.PathLike) -> epath.Path:
    """The checkpoint meant by `source`: a workdir (its newest complete one) or `.../checkpoints/<step>` itself."""
    remote.check_scheme(source, "checkpoint", "checkpoints")
    path = absolute(source)
    there = remote.names(path)
    if STATE in there:
        return path
    folder = path / CHECKPOINTS if CHECKPOINTS in there else path
    there = remote.names(folder) if CHECKPOINTS in there else there
    steps = sorted((int(n) for n in there if n.isdigit()), reverse=True)
    newest = next((step for step in steps if _complete(folder / str(step))), None)
    if newest is None:
        raise UserError(
            f"no checkpoint in {str(source)!r}; valid: a workdir with {CHECKPOINTS}/<step>, or one such step"
        )
    return folder / str(newest)


def _complete(folder: epath.Path) -> bool:
    """Local checkpoints get their name when they are complete; where nothing can be renamed, a file says so."""
    return not remote.is_remote(folder) or remote.read(folder / COMMITTED) is not None
