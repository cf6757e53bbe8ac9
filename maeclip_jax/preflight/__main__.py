"""Pre-flight of an experiment on a TPU slice, with no TPU: does it fit, how fast would it be, what would it cost?

    python -m maeclip_jax.preflight --config=experiments/mae_clip.py:scale=high,pool=max --topology=v5litepod-256
        [--config.x=y ...] [--num_slices=2] [--program=train|evaluate|embed] [--compare=OTHER_CONFIG] [--price=1.2]
        [--epoch_examples=11300000] [--json | --json=FILE] [--text=FILE]
    python -m maeclip_jax.preflight --all [--select=REGEX] [--json=FILE]

--topology is a slice as people name it (v4-128 counts cores, v5litepod-256 chips) or as libtpu does (v4:4x4x4).
--compare pre-flights a second config on the same slice, with the same overrides. --text leaves the compiled program's
text. --all prints the table of the shipped experiments, those whose name and slice match --select. No data is read:
the length of an epoch is --epoch_examples, or known by the set's name, or taken as 1,000,000. Ends with 1 if something
does not fit.
"""

from __future__ import annotations

import json
import re
import sys

from maeclip_jax import main
from maeclip_jax.errors import UserError, unknown
from maeclip_jax.preflight import table, topology

# Examples of an epoch, by data set: CC12M as downloaded (paper), DataComp-1B.
EPOCHS = {"cc12m": 11_300_000, "datacomp_1b": 1_400_000_000}
ASSUMED = 1_000_000
OWN = {
    "config": "", "topology": "", "num_slices": "1", "program": "train", "compare": "", "price": "0",
    "epoch_examples": "", "json": "", "text": "", "all": "", "select": "",
}  # fmt: skip
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
        return int(number(own, "epoch_examples")), "--epoch_examples"
    name = str((config.data.get("source") or {}).get("name", ""))
    if name in EPOCHS:
        return EPOCHS[name], f"known of {name}"
    return ASSUMED, "assumed; --epoch_examples=N to set it"


def number(own: dict, name: str) -> float:
    """The value of a flag of ours; UserError if it is none."""
    try:
        return float(own[name])
    except ValueError:
        raise UserError(f"--{name}={own[name]!r} is no number") from None


def split(argv: list[str]) -> tuple[dict, list[str]]:
    """(flags of ours, the rest, which is an experiment's); a flag without a value says "yes"."""
    own, rest = dict(OWN), []
    for arg in argv[1:]:
        name, equals, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name in own:
            own[name] = value if equals else "yes"
        else:
            rest.append(arg)
    return own, [*argv[:1], *rest]


def preflight(argv: list[str], own: dict, where: topology.Slice) -> dict:
    """Figures of the experiment that `argv` names."""
    values = main.parse([*argv, "--platform=cpu", "--workdir=unused"])
    main.start_jax(values)
    from maeclip_jax.preflight import estimate

    epoch, source = epoch_of(values.config, own)
    found = estimate.estimate(values.config, where, epoch=epoch, kind=own["program"], text_file=own["text"])
    return found | {"epoch": f"{epoch:,} examples ({source})"}


def run(argv: list[str]) -> int:
    """The command line; returns whether something does not fit."""
    own, rest = split(argv)
    if own["all"]:
        return every(own, rest)
    if not own["config"]:
        raise UserError("--config is missing: name an experiment file, such as --config=experiments/clip.py:scale=low")
    if not own["topology"]:
        raise UserError(f"--topology is missing; valid: {topology.EXAMPLES}")
    where = topology.parse(own["topology"], int(number(own, "num_slices")))
    price = number(own, "price")
    configs = filter(None, (own["config"], own["compare"]))
    columns = [(config, preflight([*rest, f"--config={config}"], own, where)) for config in configs]
    write(own["json"], [{"config": name} | found for name, found in columns] if own["compare"] else columns[0][1])
    if own["json"] != "yes":
        print(table.full(columns, price))
        print(f"epoch: {columns[0][1]['epoch']}")
    return int(not all(found["fits"] for _, found in columns))


def every(own: dict, rest: list[str]) -> int:
    """The table of the shipped experiments, told of as they are done; whether one does not fit or cannot be built."""
    named = {
        f"{config} on {count} x {slice_name}": (config, slice_name, count) for config, slice_name, count in SHIPPED
    }
    chosen = [name for name in named if re.search(own["select"], name)]
    if not chosen:
        raise unknown("--select", own["select"], named)
    found, cells, bad = [], [table.HEADER], 0
    for i, name in enumerate(chosen, 1):
        config, slice_name, count = named[name]
        short = re.sub(r"^experiments/|\.py", "", config)
        try:
            figures = preflight([*rest, f"--config={config}"], own, topology.parse(slice_name, count))
            cells.append(table.line(short, figures))
        except UserError as e:
            figures = {"fits": False, "error": " ".join(str(e).split())}
            cells.append((short, slice_name, *("-",) * (len(table.HEADER) - 3), figures["error"]))
        bad += not figures["fits"]
        found.append({"config": config} | figures)
        print(f"{i}/{len(chosen)} {name}: {cells[-1][-1]}", file=sys.stderr, flush=True)
        write(own["json"] if own["json"] != "yes" else "", found)
    print(json.dumps(found) if own["json"] == "yes" else f"{table.markdown(cells)}\n\n{table.NOTE}")
    return int(bad > 0)


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
