"""The files of a run by name, their readers and their writers, and which run a workdir holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from maeclip_jax.cli import warn
from maeclip_jax.config import leaves, plain
from maeclip_jax.errors import UserError, differences

CONFIG, METRICS, COSTS, EXAMPLES = "config.json", "metrics.jsonl", "costs.json", "examples"
CHECKPOINTS, EVALS, NAMES, REPORT = "checkpoints", "evals", "names.json", "report"
RESULTS_FORMAT = 2  # of evals/<step>.json: metrics with `about`: unit, better, chance, reference, interval, note
TENSORBOARD, PROFILE, WANDB_ID = "tensorboard", "profile", "wandb_id.txt"

# What each leaf of a config is, by its dotted name; the first pattern that matches decides. A leaf that none matches,
# as in a person's own experiment, counts as learnt. Identity is what changes the result: LEARNT, LENGTH and ORIGIN.
LEARNT, LENGTH, ORIGIN, SEED = "learnt", "length", "origin", "seed"
COMPUTED, LOOKED_AT, DESCRIBED = "computed", "looked at", "described"
CLASSES = (
    (SEED, r"seed"),
    (LENGTH, r"total"),
    # A run that goes on from another's state (resume) has learnt from both, with whatever settings that one had.
    (ORIGIN, r"resume|init_from|init_rules|init_adopted"),
    # The words of an experiment's argument: what they mean stands in the other leaves.
    (DESCRIBED, r"arg(\..*)?"),
    # How and where it is computed and read. The dtype is not among it: bfloat16 rounds otherwise, which is a recipe.
    (COMPUTED, r"mesh\..*|sharding_rules|model\.compute\.(layers|remat|attention)|model\.contrast_mib"),
    (COMPUTED, r"data\.(num_threads|num_workers|prefetch)"),
    # What is kept and looked at, and when a run gives up.
    (LOOKED_AT, r"(evals|log|checkpoint|preprocess)(\..*)?|max_skipped_in_row|data\.max_bad"),
    (LEARNT, r"objective|batch_size|data\.(ops|mix|seed_offset)|data\.source(\..*)?"),
    (LEARNT, r"tokenizer\.(type|path|cls|bos|eos|fill|canonical)"),
    (LEARNT, r"model\.(image_tower|text_tower|decoder_tower|fusion_tower|mask|weights|simclr)(\..*)?"),
    (LEARNT, r"model\.(answers|decode|duplicates|embed_width|fusion|keep|loss|mask_share|norm_pix|pool|slots)"),
    (LEARNT, r"model\.(stats|streams)"),
    (LEARNT, r"model\.compute\.dtype"),
    (LEARNT, r"optim\.(b1|b2|caps|clip_norm|end_lr|eps|freeze|lr|lr_multipliers|lr_per_examples|mu_dtype|name)"),
    (LEARNT, r"optim\.(no_decay|schedule|warmup|weight_decay)"),
)
# A leaf that older runs lack: what it was then, and the leaf by which those that have it are known.
_BEFORE = {"model.duplicates": ("negative", "model.embed_width")}
_CHECKED_WITH_STATE = ("batch_size",)  # on resume compared with the checkpoint's own, which says what to do


def classify(name: str) -> str:
    """The class of a leaf; "" for a name that no pattern matches, which counts as LEARNT."""
    return next((kind for kind, pattern in CLASSES if re.fullmatch(pattern, name)), "")


def identity(config) -> dict[str, Any]:
    """{name: value} of the leaves that change what is learnt: two runs with the same are the same run but for its seed.

    `config`: a ConfigDict, or a config.json as read. The folder in which named data lies is left out, and so are rules
    of an origin that there is not.
    """
    found = _leaves(config)
    named = {f"{n.removesuffix('name')}dir" for n, value in found.items() if n.endswith(".name") and value}
    if not found.get("init_from"):
        named |= {"init_rules", "init_adopted"}
    return {n: x for n, x in found.items() if n not in named and classify(n) in (LEARNT, LENGTH, ORIGIN, "")}


def _leaves(config) -> dict[str, Any]:
    """Leaves of a config in JSON's types. Objects that a notebook put into it are written without their address."""
    tree = plain(config) if hasattr(config, "to_json_best_effort") else json.loads(json.dumps(config, default=repr))
    found = {n: re.sub(r" at 0x\w+", "", x) if isinstance(x, str) else x for n, x in leaves(tree)}
    return {n: value for n, (value, known_by) in _BEFORE.items() if known_by in found} | found


def claim(config, workdir: epath.Path, *, continued: bool) -> str:
    """What config.json is to say: `config`, and where the run began, if it is `continued`.

    UserError if the run in `workdir` is another: in a setting both have, or in any of its data. Names that one of them
    lacks elsewhere came or went with the code.
    """
    made, path = json.loads(config.to_json_best_effort()), workdir / CONFIG
    if continued and path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as e:
            raise UserError(f"cannot read {path}: {e}; put it right, or move it away to continue without it") from e
        mine, theirs = _fixed(made), _fixed(before)
        differ = {n for n in mine.keys() ^ theirs.keys() if n.startswith("data.")}
        differ |= {n for n in mine.keys() & theirs.keys() if mine[n] != theirs[n]}
        if differ:
            said = differences(*({n: x for n, x in one.items() if n in differ} for one in (mine, theirs)))
            raise UserError(
                f"{workdir} holds another run: {said}; continue that one (--config={path}), or start a new --workdir, "
                f"with config.resume={workdir} to go on from its state, or config.init_from={workdir} from its "
                "parameters"
            )
        made |= {n: x for n, x in before.items() if classify(n) in (ORIGIN,)}  # which no later command changes
    return json.dumps(made, indent=1)


def _fixed(config: Mapping) -> dict[str, Any]:
    """What may not change when a run is continued: its identity without its length and its origin."""
    kept = identity(config)
    return {n: x for n, x in kept.items() if classify(n) not in (LENGTH, ORIGIN) and n not in _CHECKED_WITH_STATE}


def make_workdir(workdir: epath.PathLike) -> epath.Path:
    """The workdir, made if it is not there; UserError if it cannot be (no permission, no support for gs://)."""
    try:
        path = epath.Path(workdir)
        path.mkdir(parents=True, exist_ok=True)
    except Exception as e:  # remote file systems raise what they like
        raise UserError(
            f"workdir {str(workdir)!r} cannot be made: {' '.join(str(e).split()) or type(e).__name__}"
        ) from e
    return path


def write_text(path: epath.Path, text: str) -> None:
    """A whole file of process 0; whoever reads it, or restarts after a kill, sees the old text or the new, not half."""
    import jax

    if jax.process_index():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in str(path):  # objects appear when they are complete, and cannot be renamed
        path.write_text(text)
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def read_metrics(workdir: epath.PathLike) -> list[dict]:
    """The rows of metrics.jsonl; a last line cut short by a kill is left out."""
    return read_lines(workdir)[0]


def read_lines(workdir: epath.PathLike) -> tuple[list[dict], int]:
    """The rows of metrics.jsonl, and how many of its lines are none: cut short, broken, or without a step."""
    path, rows, unreadable = epath.Path(workdir) / METRICS, [], 0
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            unreadable += bool(line.strip())
    return rows, unreadable


def read_object(path: epath.Path) -> dict:
    """The object in a JSON file. UserError, with the path, if it cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {str(path)!r}: {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"cannot read {str(path)!r}: it holds a {type(value).__name__}, not an object")
    return value


def read_results(workdir: epath.PathLike) -> tuple[list[dict], list[epath.Path]]:
    """Every evals/<step>.json by step, and the files that are left out: of older versions, without units.

    UserError for a file that cannot be read.
    """
    results, older = [], []
    for path in sorted(result_files(epath.Path(workdir)), key=lambda p: int(p.stem)):
        one = read_object(path)
        if not isinstance(one.get("step"), int):
            raise UserError(f"{str(path)!r} has no step; delete it and evaluate again")
        if one.get("format") == RESULTS_FORMAT:
            results.append(one)
        else:
            older.append(path)
    if older:
        warn(
            f"left out, as their numbers have no units (written by an older version): {', '.join(map(str, older))}; "
            "evaluating the checkpoint of such a step writes its file anew"
        )
    return sorted(results, key=lambda one: one["step"]), older


def read_evals(workdir: epath.PathLike) -> dict[int, dict[str, float]]:
    """{step: metrics} of every evaluation in a workdir."""
    return {one["step"]: one["metrics"] for one in read_results(workdir)[0]}


def result_files(workdir: epath.Path) -> list[epath.Path]:
    folder = workdir / EVALS
    return [p for p in folder.glob("*.json") if p.stem.isdigit()] if folder.exists() else []


def write_names(workdir: epath.Path, names: Mapping[str, Sequence[str]], objective: Any) -> None:
    """Keeps with the run what the numbers of its data mean: names.json, vocabulary -> names in order.

    UserError if the objective's targets come from a vocabulary of another size, or from another than so far.
    """
    before = read_names(workdir)
    for what, size in getattr(objective, "outputs", dict)().items():
        if len(names.get(what, ())) != size:
            raise UserError(
                f"the training data has {len(names.get(what, ()))} names of {what}, the model is made for {size}; "
                f"set config.model.{what}s={len(names.get(what, ()))}, or train on other data"
            )
        if list(before.get(what, names[what])) != list(names[what]):
            raise UserError(
                f"the names of {what} in the training data are not those of {workdir / NAMES}: the data has changed; "
                "use the data of before, or start a new --workdir with config.init_from"
            )
    if names and names != before:
        write_text(workdir / NAMES, json.dumps(names, indent=0, ensure_ascii=False))


def read_names(*workdirs: epath.PathLike) -> dict[str, list[str]]:
    """names.json of the first of the workdirs (or checkpoints in one) that has it, or {}."""
    for workdir in map(epath.Path, filter(None, workdirs)):
        folder = workdir.parent.parent if workdir.parent.name == CHECKPOINTS else workdir
        if (folder / NAMES).exists():
            return json.loads((folder / NAMES).read_text())
    return {}
