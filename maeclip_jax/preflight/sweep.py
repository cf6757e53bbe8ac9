"""One experiment on many slices, with other batches, layers and shardings: the cheapest and the fastest of them."""

from __future__ import annotations

import argparse
import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maeclip_jax.config import in_steps, to_steps
from maeclip_jax.errors import UserError
from maeclip_jax.preflight import table, topology

FLAGS = ("slices", "batches", "computes", "meshes", "hours", "dollars")
SLICES = "v5e-64,v5e-256,v6e-64,v6e-256"
LAYERS, REMAT = ("unroll", "scan"), ("none", "full")


def add_flags(parser: argparse.ArgumentParser, at_least: Callable) -> None:
    """Those that go with --sweep."""
    add = parser.add_argument
    add("--sweep", action="store_true", help="try many ways to run --config")
    add("--slices", default="", help=f"of --sweep, comma-separated ({SLICES})")
    add("--batches", default="", help="of --sweep: pictures a chip (those that the experiment's batch makes)")
    add("--computes", default="", help="of --sweep: layers+remat, such as unroll+none,scan+full (the experiment's)")
    add("--meshes", default="", help="of --sweep: fsdp or fsdp x tensor, such as 8,8x2 (the experiment's)")
    add("--hours", type=at_least(0, float), default=0.0, help="of --sweep: the cheapest that takes no longer")
    add("--dollars", type=at_least(0, float), default=0.0, help="of --sweep: the fastest that costs no more")


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """UserError for flags of a sweep without one, and the other way round, before anything is compiled."""
    if not args.sweep:
        given = [name for name in FLAGS if getattr(args, name) != parser.get_default(name)]
        if given:
            raise UserError(f"--{given[0]} goes with --sweep only")
        return
    for name in ("topology", "compare", "text", "calibrate"):
        if getattr(args, name):
            raise UserError(f"--{name} does not go with --sweep; valid: {', '.join(f'--{n}' for n in FLAGS)}, --price")
    if args.program != "train":
        raise UserError(f"--sweep is about whole runs; valid with it: --program=train, not {args.program}")
    slices(args)
    ways(args)


def slices(args: argparse.Namespace) -> list[topology.Slice]:
    return [topology.parse(name, args.num_slices) for name in _listed(args.slices or SLICES)]


def ways(args: argparse.Namespace) -> list[tuple[int | None, dict[str, str]]]:
    """(pictures a chip or None, settings) of every combination but the slice."""
    batches: list[int | None] = []
    for text in _listed(args.batches):
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"--batches={args.batches}: {text!r} is not a number of pictures a chip; valid: 32,64,128")
        batches.append(int(text))
    computes: list[dict[str, str]] = []
    for text in _listed(args.computes):
        layers, _, remat = text.partition("+")
        if layers not in LAYERS or remat not in REMAT:
            valid = ", ".join(f"{a}+{b}" for a, b in itertools.product(LAYERS, REMAT))
            raise UserError(f"--computes={args.computes}: unknown {text!r}; valid: {valid}")
        computes.append({"model.compute.layers": layers, "model.compute.remat": remat})
    meshes: list[dict[str, str]] = []
    for text in _listed(args.meshes):
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
        if not found or 0 in map(int, filter(None, found.groups())):
            raise UserError(f"--meshes={args.meshes}: {text!r} is neither fsdp nor fsdp x tensor; valid: 1,8,8x2")
        meshes.append({"mesh.fsdp": found[1], "mesh.tensor": found[2] or "1", "mesh.replica": "-1"})
    return [
        (batch, compute | mesh)
        for batch, compute, mesh in itertools.product(batches or [None], computes or [{}], meshes or [{}])
    ]


def run(
    args: argparse.Namespace, config: Any, estimate: Callable[[dict[str, str], topology.Slice], dict]
) -> list[dict]:
    """Figures of every way on every slice; `error` for those that cannot be built. Progress goes to stderr.

    With --batches the global batch follows the slice, and the run sees as many examples as the experiment's: a `total`
    in steps becomes one in examples.
    """
    same = {}
    if in_steps(config.total):
        steps = to_steps(config.total, "total", batch_size=config.batch_size)
        same = {"total": f"{steps * config.batch_size} examples"}
    found = []
    todo = [(where, *way) for where in slices(args) for way in ways(args)]
    for i, (where, batch, more) in enumerate(todo, 1):
        asked = more | ({"batch_size": str(batch * where.chips)} | same if batch else {})
        try:
            figures = estimate(asked, where)
        except UserError as e:
            figures = {"fits": False, "error": " ".join(str(e).split())}
        words = [f"{name}={value}" for name, value in asked.items()]
        figures |= {"settings": words, "slice name": where.name}
        found.append(figures)
        said = figures.get("error") or table.verdict(figures)
        print(f"{i}/{len(todo)} {where.name} {' '.join(words)}: {said}", file=sys.stderr, flush=True)
    return found


def within(found: Sequence[Mapping], args: argparse.Namespace) -> tuple[list[Mapping], list[Mapping]]:
    """Those that fit and finish within --hours, and those within --dollars; by the upper ends of the bands."""
    fit = [f for f in found if f["fits"]]
    quick = [f for f in fit if not args.hours or f["hours high"] <= args.hours]
    return quick, [f for f in fit if not args.dollars or f.get("cost high", math.inf) <= args.dollars]


def chosen(found: Sequence[Mapping], args: argparse.Namespace) -> dict[str, Mapping | None]:
    """{what was asked for: its figures}, by the upper ends of the bands; None for what nothing is known to satisfy."""
    quick, cheap = within(found, args)
    finishing = f" that finishes within {args.hours:g} hours" if args.hours else ""
    below = f" within {args.dollars:g} dollars" if args.dollars else ""
    priced = [f for f in quick if "cost high" in f]
    return {
        f"cheapest{finishing}": min(priced, key=lambda f: f["cost high"], default=None),
        f"fastest{below}": min(cheap, key=lambda f: f["hours high"], default=None),
    }


def text(found: Sequence[Mapping], args: argparse.Namespace) -> str:
    """The table of all, and what was chosen."""
    cells = [table.HEADER]
    for figures in found:
        name = " ".join(figures["settings"]) or "as the experiment has it"
        if "error" in figures:
            cells.append((name, figures["slice name"], *("-",) * (len(table.HEADER) - 3), figures["error"]))
        else:
            cells.append(table.line(name, figures))
    lines, known = [table.markdown(cells), ""], chosen(found, args)
    fit = [f for f in found if f["fits"]]
    unpriced = ", ".join(dict.fromkeys(f["chip"] for f in fit if "cost high" not in f))
    for (what, figures), of in zip(known.items(), (within(found, args)[0], fit)):
        if figures is None and any("cost high" not in f for f in of):
            lines.append(
                f"{what}: not known, as the price of {unpriced} is not; --price=DOLLARS sets that of a chip-hour"
            )
            continue
        if figures is None:
            lines.append(f"{what}: none of those that were tried")
            continue
        cost = f", {figures['cost low']:,.2f} to {figures['cost high']:,.2f} dollars" if "cost" in figures else ""
        lines.append(
            f"{what}: {figures['slice']} {' '.join(f'--config.{s}' for s in figures['settings'])}: "
            f"{figures['hours low']:,.2f} to {figures['hours high']:,.2f} hours{cost}"
        )
    if unpriced and None not in known.values():
        lines.append(f"in no choice by dollars, for want of a price: {unpriced}")
    return "\n".join([*lines, "", table.NOTE])


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
