"""Pre-flight of an experiment on a TPU slice, with no TPU: does it fit, how fast would it be, what would it cost?

    python -m maeclip_jax.preflight --config=experiments/mae_clip.py:scale=high,pool=max --topology=v5litepod-256
        [--config.x=y ...] [--num_slices=2] [--program=train|evaluate|embed] [--compare=OTHER_CONFIG] [--price=1.2]
        [--epoch_examples=11300000] [--json | --json=FILE] [--text=FILE]
    python -m maeclip_jax.preflight --all [--select=REGEX] [--price=1.2] [--json | --json=FILE]

--topology is a slice as people name it (v4-128 counts cores, v5litepod-256 chips) or as libtpu does (v4:4x4x4).
--compare pre-flights a second config on the same slice, with the same overrides. --text leaves the compiled program's
text in FILE, that of the second in FILE.2. --all prints the table of the shipped experiments, those whose name and
slice match --select. --price is that of a chip-hour. No data is read: the length of an epoch is --epoch_examples, or
known by the set's name, or taken as 1,000,000. Ends with 1 if something does not fit.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys

from absl import flags
from ml_collections import ConfigDict

from maeclip_jax import main
from maeclip_jax.errors import UserError, unknown
from maeclip_jax.preflight import table, topology

# Examples of an epoch, by data set: CC12M as downloaded (paper), DataComp-1B.
EPOCHS = {"cc12m": 11_300_000, "datacomp_1b": 1_400_000_000}
ASSUMED = 1_000_000
OWN = {
    "config": "", "topology": "", "num_slices": 1, "program": "train", "compare": "", "price": 0.0,
    "epoch_examples": 0, "json": "", "text": "", "all": "", "select": "",
}  # fmt: skip
LEAST = {"num_slices": 1, "epoch_examples": 1, "price": 0}  # of the numbers among them
NOT_WITH_ALL = ("config", "topology", "num_slices", "compare", "text")
# What --all pre-flights: experiments with the slices they are meant for. B/16 is the same program at both scales.
SHIPPED = (
    *(
        (f"experiments/{experiment}.py:scale={scale},size={size}", where, 1)
        for scale, size in (("low", "B/16"), ("high", "L/16"), ("high", "H/14"))
        for experiment in ("clip", "mae_clip", "m3ae", "mae")
        for where in ("v4-128", "v5litepod-256", "v5p-256", "v6e-256")
    ),
    ("experiments/mae_clip.py:scale=low,size=B/16", "v5litepod-256", 2),
)


def epoch_of(config, own: dict) -> tuple[int, str]:
    """(examples of an epoch, where the number is from)."""
    if own["epoch_examples"]:
        return own["epoch_examples"], "--epoch_examples"
    name = str((config.data.get("source") or {}).get("name", ""))
    if name in EPOCHS:
        return EPOCHS[name], f"known of {name}"
    return ASSUMED, "assumed; --epoch_examples=N to set it"


def number(name: str, text: str) -> float:
    """The value of a flag of ours, whole if its default is; UserError if it is none."""
    whole, least = isinstance(OWN[name], int), LEAST[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least and (value.is_integer() or not whole)):
        raise UserError(f"--{name}={text!r}; valid: a {'whole ' if whole else ''}number, {least} or more")
    return int(value) if whole else value


def split(argv: list[str]) -> tuple[dict, list[str]]:
    """(flags of ours, the rest, which is an experiment's): --flag=value, --flag value, and --all and --json alone.

    Raises UserError for a value that is wrong or missing, and for a flag that nobody knows.
    """
    own, rest, args = dict(OWN), [], iter(argv[1:])
    for arg in args:
        name, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in own:
            rest.append(arg)
            continue
        if name == "all" and equals:
            raise UserError(f"{arg}: --all takes no value")
        if not equals:
            value = "yes" if name in ("all", "json") else next(args, "--")
            if value.startswith("--"):
                raise UserError(f"--{name} needs a value")
        own[name] = number(name, value) if name in LEAST else value
    values = flags.FlagValues()
    main.define_flags(values, ConfigDict(), argv[:1])
    valid = [*OWN, *(name for name in values if name not in OWN)]
    for name in (arg[2:].partition("=")[0] for arg in rest if arg.startswith("--")):
        if name not in valid and not name.startswith("config."):
            raise unknown("flag", f"--{name}", [*(f"--{v}" for v in valid), "--config.<name>"])
    return own, [*argv[:1], *rest]


def check(own: dict) -> None:
    """UserError, before minutes of compiling, for flags that go not together and files that cannot be written."""
    wrong = [name for name in NOT_WITH_ALL if own[name] != OWN[name]]
    if own["all"] and wrong:
        valid = ", ".join(f"--{name}" for name in OWN if name not in (*NOT_WITH_ALL, "all"))
        raise UserError(f"--{wrong[0]} does not go with --all, the shipped experiments on their slices; valid: {valid}")
    if own["select"] and not own["all"]:
        raise UserError("--select goes with --all only")
    if own["price"] and own["program"] != "train":
        raise UserError(f"--price is that of a whole run; valid with it: --program=train, not {own['program']}")
    for name, path in ((name, own[name]) for name in ("json", "text") if own[name] not in ("", "yes")):
        folder = os.path.dirname(path) or "."
        here = path if os.path.exists(path) else folder
        if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(here, os.W_OK):
            raise UserError(f"--{name}={path} cannot be written; valid: a file in a folder that is there")


def preflight(argv: list[str], own: dict, where: topology.Slice) -> dict:
    """Figures of the experiment that `argv` names."""
    # No cache: jax cannot read programs for absent devices back from it.
    values = main.parse([*argv, "--platform=cpu", "--workdir=unused", "--cache="])
    main.start_jax(values)
    from maeclip_jax.preflight import estimate

    epoch, source = epoch_of(values.config, own)
    found = estimate.estimate(values.config, where, epoch=epoch, kind=own["program"], text_file=own["text"])
    return found | {"epoch": f"{epoch:,} examples ({source})"}


def with_cost(found: dict, price: float) -> dict:
    """Figures and, of a run whose price is known, its cost."""
    return found | ({"cost": price * found["chip-hours"]} if price and found["fits"] else {})


def run(argv: list[str]) -> int:
    """The command line; returns whether something does not fit."""
    own, rest = split(argv)
    check(own)
    if own["all"]:
        return every(own, rest)
    if not own["config"]:
        raise UserError("--config is missing: name an experiment file, such as --config=experiments/clip.py:scale=low")
    if not own["topology"]:
        raise UserError(f"--topology is missing; valid: {topology.EXAMPLES}")
    where, columns = topology.parse(own["topology"], own["num_slices"]), []
    for i, config in enumerate(filter(None, (own["config"], own["compare"])), 1):
        text = f"{own['text']}.{i}" if own["text"] and i > 1 else own["text"]
        found = preflight([*rest, f"--config={config}"], own | {"text": text}, where)
        columns.append((config, with_cost(found, own["price"])))
    if own["json"] != "yes":
        print(table.full(columns, own["price"]))
        for name, found in columns:
            print(f"epoch{f' of {name}' if own['compare'] else ''}: {found['epoch']}", flush=True)
    write(own["json"], [{"config": name} | found for name, found in columns] if own["compare"] else columns[0][1])
    return int(not all(found["fits"] for _, found in columns))


def every(own: dict, rest: list[str]) -> int:
    """The table of the shipped experiments, told of as they are done; whether one does not fit or cannot be built."""
    named = {
        f"{config} on {count} x {slice_name}": (config, slice_name, count) for config, slice_name, count in SHIPPED
    }
    try:
        chosen = [name for name in named if any(re.search(own["select"], n) for n in (name, short(name)))]
    except re.error as e:
        raise UserError(f"--select={own['select']!r} is no regular expression: {e}") from None
    if not chosen:
        raise unknown("--select", own["select"], named)
    found, cells, bad = [], [table.HEADER], 0
    for i, name in enumerate(chosen, 1):
        config, slice_name, count = named[name]
        try:
            figures = preflight([*rest, f"--config={config}"], own, topology.parse(slice_name, count))
            figures = with_cost(figures, own["price"])
            cells.append(table.line(short(config), figures))
        except UserError as e:
            figures = {"fits": False, "error": " ".join(str(e).split())}
            cells.append((short(config), slice_name, *("-",) * (len(table.HEADER) - 3), figures["error"]))
        bad += not figures["fits"]
        found.append({"config": config} | figures)
        print(f"{i}/{len(chosen)} {name}: {cells[-1][-1]}", file=sys.stderr, flush=True)
        write(own["json"] if own["json"] != "yes" else "", found)
    brackets = f" In brackets: at {own['price']:g} a chip-hour." if own["price"] else ""
    print(json.dumps(found) if own["json"] == "yes" else f"{table.markdown(cells)}\n\n{table.NOTE}{brackets}")
    return int(bad > 0)


def short(name: str) -> str:
    """An experiment as the table prints it: clip:scale=low."""
    return re.sub(r"^experiments/|\.py", "", name)


def write(to: str, what) -> None:
    """JSON into a file, or on stdout for "yes"."""
    if to == "yes":
        print(json.dumps(what))
    elif to:
        with open(to, "w") as f:
            json.dump(what, f, indent=1)


def command(argv: list[str] | None = None) -> int:
    """Exit code: 0 fits, 1 does not, 2 for a mistake of the user's."""
    argv = sys.argv if argv is None else argv
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    fits = []
    return main.guarded(lambda: fits.append(run(argv))) or fits[0]


if __name__ == "__main__":
    sys.exit(command())
