"""Which run a folder holds: what is compared when a run is resumed, and the files that are kept with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from maeclip_jax.config import FILES, KEPT, by_content, digest, has_usual_table, leaves, named_files, plain, with_leaves
from maeclip_jax.errors import UserError, differences
from maeclip_jax.parallel.terminal import say, warn
from maeclip_jax.workdir import CONFIG, DATA, read_config, read_object, write_bytes, write_text
from maeclip_jax.workdir.identity import LENGTH, ORIGIN, classify, identity

MOST_KEPT = 256 * 2**20  # bytes of a file that is kept with a run
_CHECKED_WITH_STATE = ("batch_size",)  # on resume compared with the checkpoint's own, which says what to do


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


def claim(config, workdir: epath.Path, before: Mapping) -> str:
    """What config.json is to say: `config`, and where the run began, if it is continued.

    `before`: what config.json says of a run that is continued; {} of a new one.

    The files that `config` names are kept in `workdir` as `files/STEM-DIGEST.SUFFIX`, and `config` names the copies
    from then on. UserError if the run in `workdir` is another: in a setting both have, in the content of a file, or in
    any of its data; and if the command says another origin than the run has. Names that one of them lacks elsewhere
    came or went with the code.
    """
    files = _files(config)
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
    path, before = workdir / DATA, {}
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
    if account and account != before:
        write_text(path, json.dumps(account, indent=1))


def _fixed(config: Mapping) -> dict[str, Any]:
    """What may not change when a run is continued: its identity without its length and its origin."""
    kept = identity(config)
    return {n: x for n, x in kept.items() if classify(n) not in (LENGTH, ORIGIN) and n not in _CHECKED_WITH_STATE}
