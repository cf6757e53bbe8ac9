"""Pre-flight of an experiment on a TPU slice, with no TPU: does it fit, how fast would it be, what would it cost?

    python -m maeclip_jax.preflight --config=experiments/mae_clip.py:scale=high,pool=max --topology=v5litepod-256
        [--config.x=y ...] [--num_slices=2] [--program=train|evaluate|embed|contrast] [--compare=OTHER_CONFIG]
        [--price=1.2] [--epoch_examples=11300000] [--record_bytes=10000] [--data_files=512] [--workdir=gs://...]
        [--json | --json=FILE] [--text=FILE]
    python -m maeclip_jax.preflight --all [--select=REGEX] [--rows=FOLDER] [--price=1.2] [--json | --json=FILE]
    python -m maeclip_jax.preflight --sweep --config=... [--slices=v5e-64,v6e-64] [--batches=...] [--computes=...]
        [--meshes=...] [--hours=24] [--dollars=1000] [--json=FILE]
    python -m maeclip_jax.preflight --calibrate=WORKDIR [--topology=... [--num_slices=2]] [--calibrations=FILE]

--topology is a slice as people name it (v4-128 counts cores, v5litepod-256 chips) or as libtpu does (v4:4x4x4).
--compare pre-flights a second config on the same slice, with the same overrides. --text leaves the compiled program's
text in FILE, that of the second in FILE.2. --all prints the table of the shipped experiments, those whose name and
slice match --select; --rows keeps each row as soon as it is known, so that the same command goes on after an
interruption. --price is that of a chip-hour; without it the list price of the chip, if one is known. No data
is read: the length of an epoch is --epoch_examples, or known by the set's name, or taken as 1,000,000. Ends with 1 if
something does not fit.

--sweep compiles the experiment on every one of --slices, with every one of --batches (a chip), --computes (layers and
remat: unroll+none, scan+full) and --meshes (fsdp, or fsdp x tensor: 8, 8x2), and names the cheapest that finishes
within --hours and the fastest within --dollars. --calibrate puts the measured steps of a run beside its estimate, and
keeps the ratio in --calibrations, where every later estimate finds the band of its chip.

Of --program=train it also says what requests to storage cost: data in a bucket (MAECLIP_DATA_DIR or
config.data.source.dir=gs://...) of --record_bytes a record in --data_files files, and a workdir in a bucket, unless
--workdir is on a disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from maeclip_jax import cli
from maeclip_jax import config as configs
from maeclip_jax.errors import UserError
from maeclip_jax.errors.storage import writing
from maeclip_jax.parallel import machine
from maeclip_jax.parallel.chips import NETWORK, PRICED, PRICES
from maeclip_jax.preflight import bands, calibration, shipped, storage, sweep, table, topology

# Examples of an epoch, by data set: CC12M as downloaded (paper), DataComp-1B.
EPOCHS = {"cc12m": 11_300_000, "datacomp_1b": 1_400_000_000}
ASSUMED = 1_000_000
NOT_WITH_ALL = ("source", "topology", "num_slices", "compare", "text", "calibrate", "sweep")


def epoch_of(config, asked: int) -> tuple[int, str]:
    """(examples of an epoch, where the number is from)."""
    if asked:
        return asked, "--epoch_examples"
    name = str((config.data.get("source") or {}).get("name", ""))
    if name in EPOCHS:
        return EPOCHS[name], f"known of {name}"
    return ASSUMED, "assumed; --epoch_examples=N to set it"


def at_least(least: float, kind: type) -> Callable[[str], float]:
    """An argparse type: a finite number of `kind`, `least` or more."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least and (value.is_integer() or kind is float)):
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r}; valid: a {whole}number, {least} or more")
        return kind(value)

    return number


def parser() -> cli.ExperimentParser:
    """The flags."""
    made = cli.ExperimentParser("maeclip_jax.preflight", __doc__)
    add = made.add_argument
    add("--topology", default="", help=f"the slice: {topology.EXAMPLES}")
    add("--num_slices", type=at_least(1, int), default=1, help="how many such slices (%(default)s)")
    add("--program", default="train", help="train, evaluate, embed or contrast (%(default)s)")
    add("--compare", default="", metavar="CONFIG", help="a second config for the same slice")
    add("--price", type=at_least(0, float), help="of a chip-hour (default: its list price)")
    add("--epoch_examples", type=at_least(1, int), default=0, help="examples of an epoch")
    add("--record_bytes", type=at_least(1, int), default=storage.RECORD, help="mean size of a record (%(default)s)")
    add("--data_files", type=at_least(1, int), default=0, help="files of the data set (default: one for 256 MB)")
    add("--workdir", default="", help="where the run will be (default: somewhere in a bucket)")
    add("--json", nargs="?", const="yes", default="", metavar="FILE", help="figures as JSON, here or in FILE")
    add("--text", default="", metavar="FILE", help="leave the compiled program's text in FILE")
    add("--all", action="store_true", help="the table of the shipped experiments")
    add("--select", default="", metavar="REGEX", help="of --all, those whose name and slice match")
    add("--rows", default="", metavar="FOLDER", help="of --all: keep each row there, and go on from those that are")
    add("--calibrate", default="", metavar="WORKDIR", help="put a run's steps beside its estimate")
    add("--calibrations", default=bands.FILE, metavar="FILE", help="the ratios that were found (%(default)s)")
    sweep.add_flags(made, at_least)
    cli.add_machine(made)
    made.set_defaults(platform="cpu", cache="")  # no cache: jax cannot read programs for absent devices back from it
    return made


def check(args: argparse.Namespace) -> None:
    """UserError, before minutes of compiling, for flags that exclude each other and files that cannot be written."""
    made = parser()
    flags = [name for name in vars(args) if made.get_default(name) is not None]
    wrong = [n for n in NOT_WITH_ALL if getattr(args, n) not in (made.get_default(n), "")]
    if args.all and wrong:
        valid = ", ".join(f"--{n}" for n in flags if n not in (*NOT_WITH_ALL, *sweep.FLAGS, "all"))
        name = wrong[0].replace("source", "config")
        raise UserError(f"--{name} does not go with --all, the shipped experiments on their slices; valid: {valid}")
    for name in ("select", "rows"):
        if getattr(args, name) and not args.all:
            raise UserError(f"--{name} goes with --all only")
    sweep.check(args, made)
    if args.price is not None and args.program != "train":
        raise UserError(f"--price is that of a whole run; valid with it: --program=train, not {args.program}")
    for name, path in ((n, getattr(args, n)) for n in ("json", "text") if getattr(args, n) not in ("", "yes")):
        folder = os.path.dirname(path) or "."
        here = path if os.path.exists(path) else folder
        if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(here, os.W_OK):
            raise UserError(f"--{name}={path} cannot be written; valid: a file in a folder that is there")


def preflight(source: str, args: argparse.Namespace, where: topology.Slice, text: str = "") -> dict:
    """Figures of the experiment `source` under the settings of the command line."""
    config = configs.load(source, args.settings, args.suite)
    from maeclip_jax.preflight import estimate

    epoch, known = epoch_of(config, args.epoch_examples)
    found = estimate.estimate(
        config, where, epoch=epoch, kind=args.program, text_file=text, calibrations=args.calibrations,
        advise=not args.sweep,
    )  # fmt: skip
    if args.program == "train":
        found["storage"] = storage.figures(config, args, found, epoch)
    return found | {"epoch": f"{epoch:,} examples ({known})"}


def with_cost(found: dict, asked: float | None) -> dict:
    """Figures and, of a run whose price is known, its cost in dollars: as estimated, and the band's ends."""
    price = PRICES.get(found["chip"]) if asked is None else asked
    if price is None or not found["fits"] or found["program"] != "train":
        return found
    said = f"{price:g} a chip-hour, {'--price' if asked is not None else PRICED}"
    ends = {f"cost {end}": price * found["chips"] * found[f"hours {end}"] for end in ("low", "high")}
    return found | {"price": said, "cost": price * found["chip-hours"]} | ends


def run(argv: Sequence[str]) -> int:
    """The command line; returns whether something does not fit."""
    source, suite, settings, rest = cli.split_config(argv)
    args = parser().parse_args(rest)
    args.source, args.suite, args.settings = source, suite, settings
    check(args)
    machine.configure_jax(args.platform, args.cpu_devices, args.cache)
    if args.all:
        configs.shipped()
        return every(args)
    if args.calibrate:
        return calibrated(args)
    if not source:
        raise UserError("--config is missing: name an experiment file, such as --config=experiments/clip.py:scale=low")
    if args.sweep:
        return swept(source, args)
    if not args.topology:
        raise UserError(f"--topology is missing; valid: {topology.EXAMPLES}")
    where, columns = topology.parse(args.topology, args.num_slices), []
    for i, config in enumerate(filter(None, (source, args.compare)), 1):
        text = f"{args.text}.{i}" if args.text and i > 1 else args.text
        columns.append((config, with_cost(preflight(config, args, where, text), args.price)))
    if args.json != "yes":
        print(table.full(columns))
        for name, found in columns:
            print(f"epoch{f' of {name}' if args.compare else ''}: {found['epoch']}", flush=True)
    write(args.json, [{"config": name} | found for name, found in columns] if args.compare else columns[0][1])
    return int(not all(found["fits"] for _, found in columns))


def every(args: argparse.Namespace) -> int:
    """The table of the shipped experiments, printed as they are done; whether one does not fit or cannot be built."""
    asked = [args.program, args.epoch_examples, args.record_bytes, args.data_files, args.workdir]
    known = Path(args.calibrations)

    def key(source: str, where: topology.Slice) -> str:
        made_by = topology.compiler() if topology.installed() else "", importlib.metadata.version("maeclip_jax")
        config = configs.load(source, args.settings, args.suite)
        of_chip = dataclasses.asdict(where.chip), NETWORK.get(where.kind)  # figures, kernels chosen on it, network
        return shipped.made_of(config, *asked, *made_by, *of_chip, known.exists() and known.read_text())

    rows = shipped.every(
        args.select, args.rows, key, lambda source, where: preflight(source, args, where),
        lambda found: with_cost(found, args.price), lambda found: write("" if args.json == "yes" else args.json, found),
    )  # fmt: skip
    print(json.dumps([found for _, found in rows]) if args.json == "yes" else shipped.text(rows))
    return int(any(not found["fits"] for _, found in rows))


def calibrated(args: argparse.Namespace) -> int:
    """A run beside its estimate, printed and kept."""
    source = os.path.join(args.calibrate, "config.json")
    line = calibration.calibrate(
        args.calibrate, lambda where: preflight(source, args, where), args.topology, args.num_slices, args.calibrations
    )
    write(args.json, line)
    if args.json != "yes":
        print(calibration.text(line, args.calibrations))
    return 0


def swept(source: str, args: argparse.Namespace) -> int:
    """The table of a sweep, printed as it is done; 1 if nothing of it fits or is within the limits."""

    def one(settings: dict[str, str], where: topology.Slice) -> dict:
        asked = argparse.Namespace(**vars(args) | {"settings": args.settings | settings})
        return with_cost(preflight(source, asked, where), args.price)

    found = sweep.run(args, configs.load(source, args.settings, args.suite), one)
    write(args.json, found)
    if args.json != "yes":
        print(sweep.text(found, args))
    return int(not all(sweep.within(found, args)))


def write(to: str, what) -> None:
    """JSON into a file, or on stdout for "yes"."""
    if to == "yes":
        print(json.dumps(what))
    elif to:
        with writing(to), open(to, "w") as f:
            json.dump(what, f, indent=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 fits, 1 does not, 2 for a mistake of the user's."""
    return cli.guarded(lambda: run(sys.argv[1:] if argv is None else argv))
