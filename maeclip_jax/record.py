"""Which run a workdir holds: what its config.json records, and which settings may change when the run is continued."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from etils import epath

from maeclip_jax import log, pod
from maeclip_jax.errors import UserError

BEGAN = ("resume", "init_from", "init_rules", "init_adopted")  # where a run began, which no later command changes
# Settings that make no other run of one: how long, how it is computed and read, what is kept and looked at. Batch size
# and seed are compared with the checkpoint's own.
FREE = re.compile(
    rf"total|arg\.epochs|batch_size|seed|max_skipped_in_row|(evals|log|checkpoint|mesh)\..*|sharding_rules"
    rf"|model\.(compute\..*|contrast_mib)|data\.(num_threads|num_workers|prefetch|max_bad)|{'|'.join(BEGAN)}"
)


def of_run(config, workdir: epath.Path, *, continued: bool) -> str:
    """What config.json is to say: `config`, and where the run began, if it is `continued`.

    UserError if the run in `workdir` is another: in a setting both have, or in any of its data. Names that one of them
    lacks elsewhere came or went with the code.
    """
    made, path = json.loads(config.to_json_best_effort()), workdir / log.CONFIG
    if continued and path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as e:
            raise UserError(f"cannot read {path}: {e}; put it right, or move it away to continue without it") from e
        mine, theirs = settings(made), settings(before)
        differ = {n for n in mine.keys() ^ theirs.keys() if n.startswith("data.")}
        differ |= {n for n in mine.keys() & theirs.keys() if mine[n] != theirs[n]}
        if differ:
            said = pod.differences(*({n: x for n, x in one.items() if n in differ} for one in (mine, theirs)))
            raise UserError(
                f"{workdir} holds another run: {said}; continue that one (--config={path}), or start a new --workdir, "
                f"with config.resume={workdir} to go on from its state, or config.init_from={workdir} from its "
                "parameters"
            )
        made |= {name: before[name] for name in BEGAN if name in before}
    return json.dumps(made, indent=1)


def settings(config: Mapping) -> dict:
    """{name: value} of what makes a run what it is: all but `FREE`, and but the folder in which named data lies."""
    found = dict(pod.flat(config))
    named = {f"{n.removesuffix('name')}dir" for n, value in found.items() if n.endswith(".name") and value}
    # Objects that a notebook put into its config are written with their address.
    return {
        n: re.sub(r" at 0x\w+", "", x) if isinstance(x, str) else x
        for n, x in found.items()
        if n not in named and not FREE.fullmatch(n)
    }
