"""The files of a run by name, their readers and their writers, and which run a workdir holds."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from maeclip_jax import remote
from maeclip_jax.config import FILES, KEPT, by_content, digest, has_usual_table, leaves, named_files, plain, with_leaves
from maeclip_jax.errors import UserError, differences, storage
from maeclip_jax.evals import items
from maeclip_jax.parallel.terminal import say, warn
from maeclip_jax.remote import outbox

CONFIG, METRICS, COSTS, EXAMPLES = "config.json", "metrics.jsonl", "costs.json", "examples"
DATA, OWNER = "data.json", "owner.json"
CHECKPOINTS, EVALS, NAMES, REPORT = "checkpoints", "evals", "names.json", "report"
MOST_KEPT = 256 * 2**20  # bytes of a file that is kept with a run
RESULTS_FORMAT = 2  # of evals/<step>.json: metrics with `about`, which is `evals.Metric.about`
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
    # The argument of an experiment: what it means stands in the other leaves.
    (DESCRIBED, r"arg(\..*)?"),
    # How and where it is computed and read. The dtype is not among it: bfloat16 rounds otherwise, which is a recipe.
    (COMPUTED, r"mesh\..*|sharding_rules|model\.compute\.(layers|remat|attention)|model\.contrast_mib"),
    (COMPUTED, r"data\.(num_threads|num_workers|prefetch|blocks\.(ahead|reads))"),
    # What is kept and looked at, and when a run gives up.
    (LOOKED_AT, r"(evals|log|checkpoint|preprocess)(\..*)?|max_skipped_in_row|data\.max_bad"),
    (LEARNT, r"objective|batch_size|data\.(ops|mix|seed_offset|order)|data\.source(\..*)?"),
    (LEARNT, r"data\.blocks\.(size|window|lanes)"),
    (LEARNT, r"tokenizer\.(type|path|cls|bos|eos|fill|canonical|lower)"),
    (LEARNT, r"model\.(image_tower|text_tower|decoder_tower|fusion_tower|mask|weights|simclr)(\..*)?"),
    (
        LEARNT,
        r"model\.(answers|decode|duplicates|embed_width|fusion|keep|loss|mask_share|mask_words|norm_pix|pool|slots)",
    ),
    (LEARNT, r"model\.(stats|streams)"),
    (LEARNT, r"model\.compute\.dtype"),
    (LEARNT, r"optim\.(b1|b2|caps|clip_norm|decay_by|end_lr|eps|freeze|lr|lr_multipliers|lr_per_examples)"),
    (LEARNT, r"optim\.(mu_dtype|name|no_decay|schedule|warmup|weight_decay)"),
)
# A leaf that older runs lack: what it was then, and the leaf by which those that have it are known.
_BEFORE = {
    "data.order": ("auto", "data.num_workers"),
    "data.blocks.size": (64, "data.num_workers"),
    "data.blocks.window": (16, "data.num_workers"),
    "data.blocks.lanes": (0, "data.num_workers"),
    "model.duplicates": ("negative", "model.embed_width"),
    "model.image_tower.norm_pre": (False, "model.embed_width"),
    "model.image_tower.projection": ("linear", "model.embed_width"),
    "model.mask_words": ("any", "model.norm_pix"),
    "model.simclr.views": ("image", "model.simclr.weight"),
    "model.text_tower.padding": ("masked", "model.embed_width"),
    "model.text_tower.projection": ("linear", "model.embed_width"),
    "optim.decay_by": ("lr", "optim.weight_decay"),
    "tokenizer.cls": (False, "tokenizer.path"),
    "tokenizer.eos": (False, "tokenizer.path"),
}
_CHECKED_WITH_STATE = ("batch_size",)  # on resume compared with the checkpoint's own, which says what to do


def classify(name: str) -> str:
    """The class of a leaf; "" for a name that no pattern matches, which counts as LEARNT."""
    return next((kind for kind, pattern in CLASSES if re.fullmatch(pattern, name)), "")


def identity(config) -> dict[str, Any]:
    """{name: value} of the leaves that change what is learnt: two runs with the same are the same run but for its seed.

    `config`: a ConfigDict, or a config.json as read. The folder in which named data lies is left out, and so are rules
    of an origin that there is not. Files that a workdir keeps count by their content.
    """
    found = _leaves(config)
    named = {f"{n.removesuffix('name')}dir" for n, value in found.items() if n.endswith(".name") and value}
    if not found.get("init_from"):
        named |= {"init_rules", "init_adopted"}
    counted = {n: x for n, x in found.items() if n not in named and classify(n) in (LEARNT, LENGTH, ORIGIN, "")}
    return {n: by_content(x) for n, x in counted.items()}


def _leaves(config) -> dict[str, Any]:
    """Leaves of a config in JSON's types. Objects that a notebook put into it are written without their address."""
    tree = plain(config) if hasattr(config, "to_json_best_effort") else json.loads(json.dumps(config, default=repr))
    found = {n: re.sub(r" at 0x\w+", "", x) if isinstance(x, str) else x for n, x in leaves(tree)}
    return {n: value for n, (value, known_by) in _BEFORE.items() if known_by in found} | found


def find_files(config, workdir: epath.Path) -> None:
    """Names the copies that `workdir` keeps in `config`, where the files that it names are not there (any more).

    So a run goes on, and is evaluated, on a machine that has nothing but its workdir.
    """
    before = read_config(workdir)
    here, mine = named_files(config), dict(leaves(config))
    for name, value in leaves(before):
        kept = KEPT.fullmatch(value) if isinstance(value, str) else None
        if not kept or name in here or not isinstance(mine.get(name), str) or not mine[name]:
            continue
        if epath.Path(mine[name]).name.partition(".")[0] == kept["stem"] and (workdir / value).exists():
            say(f"{name}={mine[name]} is not there: using the copy that {workdir} keeps")
            if name == "tokenizer.path" and has_usual_table(config):  # for want of a file it could not follow it
                config.model.text_tower.vocab = before["model"]["text_tower"]["vocab"]
            config.update_from_flattened_dict({name: os.fspath(workdir / value)})


def _files(config) -> dict[str, tuple[epath.Path, str]]:
    """{leaf: (the file that it names, what its copy is called)}; "" for one above 256 MiB, which stays where it is.

    UserError for a copy whose content is not what its name says.
    """
    named = named_files(config)
    return {n: (path, _kept_name(path) if path.stat().length <= MOST_KEPT else "") for n, path in named.items()}


def _named(config, files: Mapping[str, tuple[epath.Path, str]]) -> dict:
    """The config as config.json holds it, which names the copies of `files`."""
    return with_leaves(plain(config), {name: kept for name, (_, kept) in files.items() if kept})


def _keep(config, files: Mapping[str, tuple[epath.Path, str]], workdir: epath.Path) -> None:
    """Copies `files` into `workdir`; `config` names the copies from then on, on the process that writes them."""
    import jax

    for name, (path, kept) in files.items():
        if not kept:
            warn(f"{name}={path} is too large to be kept with the run; keep it where it is")
            continue
        copy = workdir / kept
        if not copy.exists():
            write_bytes(copy, path.read_bytes())
        if jax.process_index() == 0:  # others have the file where it was, and the copy is perhaps not there yet
            config.update_from_flattened_dict({name: os.fspath(copy)})


def claim(config, workdir: epath.Path, *, continued: bool) -> str:
    """What config.json is to say: `config`, and where the run began, if it is `continued`.

    The files that `config` names are kept in `workdir` as `files/STEM-DIGEST.SUFFIX`, and `config` names the copies
    from then on. UserError if the run in `workdir` is another: in a setting both have, in the content of a file, or in
    any of its data; and if the command says another origin than the run has. Names that one of them lacks elsewhere
    came or went with the code.
    """
    before, files = read_config(workdir) if continued else {}, _files(config)
    made = _named(config, files)
    if before:
        mine, theirs = _fixed(made), _fixed(before)
        had, here = dict(leaves(before)), dict(leaves(plain(config)))
        for name in files.keys() & mine.keys() & had.keys():
            if isinstance(had[name], str) and not KEPT.fullmatch(had[name]):  # of a version that kept no files
                mine[name] = here[name]
        differ = {n for n in mine.keys() ^ theirs.keys() if n.startswith("data.")}
        differ |= {n for n in mine.keys() & theirs.keys() if mine[n] != theirs[n]}
        if differ:
            said = differences(*({n: x for n, x in one.items() if n in differ} for one in (mine, theirs)))
            raise UserError(
                f"{workdir} holds another run: {said}; continue that one (--config={workdir / CONFIG}), or start a new "
                f"--workdir, with config.resume={workdir} to go on from its state, or config.init_from={workdir} from "
                "its parameters"
            )
        _same_origin(made, before, workdir)
        made |= {n: x for n, x in before.items() if classify(n) in (ORIGIN,)}  # which no later command changes
    _keep(config, files, workdir)
    return json.dumps(made, indent=1)


def _same_origin(made: Mapping, before: Mapping, workdir: epath.Path) -> None:
    """UserError if a command names an origin that a run under way would not look at."""
    for name in ("resume", "init_from"):
        mine, theirs = made.get(name) or "", before.get(name) or ""
        if mine and mine != theirs and str(epath.Path(mine)).rstrip("/") != str(workdir).rstrip("/"):
            raise UserError(
                f"config.{name}={mine} would do nothing: {workdir} holds a run under way, which began "
                f"{f'with config.{name}={theirs}' if theirs else f'without config.{name}'}; leave it out to continue "
                "that run, or start a new --workdir with it"
            )


def _kept_name(path: epath.Path) -> str:
    """What the copy of a file (or a copy) is called. UserError for a copy whose content is not what its name says."""
    found, of = KEPT.fullmatch(str(path)), digest(path)
    if found and found["digest"] != of:
        raise UserError(f"{path} was changed since the run kept it; put back the file of SHA-256 {found['digest']}...")
    stem, dot, suffix = (found["stem"], "", found["suffix"] or "") if found else path.name.partition(".")
    return f"{FILES}/{stem}-{of}{dot}{suffix}"


def read_config(workdir: epath.Path) -> dict:
    """config.json of the run in `workdir`, {} if there is none. UserError if it cannot be read."""
    path = workdir / CONFIG
    try:
        return json.loads(remote.read_text(path) or "{}")
    except ValueError as e:
        raise UserError(f"cannot read {path}: {e}; put it right, or move it away to continue without it") from e


def other_words(config, origin: epath.Path) -> str:
    """How the tokenizer of `config` differs from that of the run in `origin`; "" if it does not, or cannot be known."""
    theirs = {n: by_content(x) for n, x in leaves(read_config(origin)) if n.startswith("tokenizer.")}
    here = _named(config, _files(config))
    mine = {n: by_content(x) for n, x in leaves(here) if n.startswith("tokenizer.")}
    if "a file" not in str(theirs.get("tokenizer.path")):  # of a version that kept no files
        theirs.pop("tokenizer.path", None)
    both = theirs.keys() & mine.keys() if theirs.get("tokenizer.type") else ()
    return differences({n: mine[n] for n in both}, {n: theirs[n] for n in both})


def claim_data(account: Mapping[str, Mapping], workdir: epath.Path, *, continued: bool) -> None:
    """Keeps what the training data are (data.json): of each component its name, records, bytes, and its manifest.

    UserError if a run is continued with other data under the same name.
    """
    path = workdir / DATA
    if continued:
        before = read_object(path, missing={})
        for name, now in account.items():
            then = {"order": "records", **before.get(name, now)}  # which it was before there was another
            differ = {n for n in then.keys() & now.keys() if then[n] != now[n]}
            if differ:
                said = differences(*({n: one[n] for n in sorted(differ)} for one in (now, then)))
                raise UserError(
                    f"the data set {now.get('name', name)} has changed since {workdir} began: {said}; use the data of "
                    f"before, or start a new --workdir with config.resume={workdir} to go on with the new data"
                )
    if account:
        write_text(path, json.dumps(account, indent=1))


def _fixed(config: Mapping) -> dict[str, Any]:
    """What may not change when a run is continued: its identity without its length and its origin."""
    kept = identity(config)
    return {n: x for n, x in kept.items() if classify(n) not in (LENGTH, ORIGIN) and n not in _CHECKED_WITH_STATE}


def make_workdir(workdir: epath.PathLike) -> epath.Path:
    """The workdir, made if it is not there; UserError if it cannot be (no permission, no support for gs://).

    Folders of a bucket need not be made: the first file makes them.
    """
    remote.check_scheme(workdir, "--workdir")
    path = epath.Path(workdir)
    if remote.is_remote(workdir):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"workdir {str(workdir)!r} cannot be made: {' '.join(str(e).split()) or type(e).__name__}"
        ) from e
    return path


def write_text(path: epath.Path, text: str) -> None:
    """A whole file of process 0; whoever reads it, or restarts after a kill, sees the old text or the new, not half.

    StorageError if it cannot be written; the old text stays. Within an open `remote.outbox`, a file in a bucket is
    written as soon as that can be done, and raises nothing.
    """
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, data: bytes) -> None:
    """As `write_text`, of bytes."""
    import jax

    if jax.process_index():
        return
    if remote.is_remote(path):  # objects appear when they are complete, and cannot be renamed
        outbox.write(path, data)
        return
    with storage.writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def read_metrics(workdir: epath.PathLike) -> list[dict]:
    """The rows of metrics.jsonl; a last line cut short by a kill is left out."""
    return read_lines(workdir)[0]


def read_lines(workdir: epath.PathLike) -> tuple[list[dict], int]:
    """The rows of metrics.jsonl, and how many of its lines are not rows: cut short, broken, or without a step."""
    path, rows, unreadable = epath.Path(workdir) / METRICS, [], 0
    for line in (remote.read_text(path) or "").splitlines():
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            unreadable += bool(line.strip())
    return rows, unreadable


def read_object(path: epath.Path, missing: dict | None = None) -> dict:
    """The object in a JSON file; `missing` where there is no file.

    UserError, with the path, if it cannot be read or holds something else, or is not there and may not be.
    """
    try:
        text = remote.read_text(path)
        if text is None and missing is not None:
            return missing
        if text is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        value = json.loads(text)
    except UserError:
        raise
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
    return [folder / n for n in remote.names(folder) if n.endswith(".json") and n.removesuffix(".json").isdigit()]


def items_file(workdir: epath.PathLike, step: int) -> epath.Path:
    """Where the items behind the metrics of a step are kept: see `evals.items`."""
    return epath.Path(workdir) / EVALS / f"{step}.items.parquet"


def read_items(workdir: epath.PathLike, step: int) -> dict[str, items.Items]:
    """{metric: items} of a step; {} where none are kept. UserError for a file that cannot be read."""
    path = items_file(workdir, step)
    data = remote.read(path)
    try:
        return items.read(items.from_bytes(data)) if data else {}
    except ValueError as e:
        raise UserError(f"cannot read {str(path)!r}: {e}; delete it and evaluate again") from e


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
        if text := remote.read_text(folder / NAMES):
            return json.loads(text)
    return {}
