"""The table of the shipped experiments on the slices they are meant for, a row at a time; rows may be kept.

A row takes minutes of compiling. With a folder, each row's figures are left there as soon as they are known, and the
same command takes them from there as long as all that they depend on (`made_of`) is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maeclip_jax import workdir
from maeclip_jax.errors import UserError, unknown
from maeclip_jax.preflight import table, topology

# Experiments with the slices they are meant for. B/16 is the same program at both scales.
SHIPPED = (
    *(
        (f"experiments/{experiment}.py:scale={scale},size={size}", where, 1)
        for scale, size in (("low", "B/16"), ("high", "L/16"), ("high", "H/14"))
        for experiment in ("clip", "mae_clip", "m3ae", "mae")
        for where in ("v4-128", "v5litepod-256", "v5p-256", "v6e-256", "tpu7x-128")
    ),
    ("experiments/mae_clip.py:scale=low,size=B/16", "v5litepod-256", 2),
    *((f"experiments/{experiment}.py:scale=low,size=B/16", "v5litepod-256", 1) for experiment in ("silc", "tips")),
)
MADE_OF = "made of"  # in a kept row: what its figures depend on
# In each kept row, too. To be raised by whoever changes what a shipped step compiles to, or how its cost is counted:
# neither is in a config, and a row of before would be shown for one of now.
REVISION = 2
Of = Callable[[str, topology.Slice], str]  # (experiment, slice) -> a digest


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment on `count` slices of one kind."""

    config: str
    slice: str
    count: int

    def __str__(self) -> str:
        return f"{self.config} on {self.count} x {self.slice}"

    @property
    def short(self) -> str:
        """The experiment as the table prints it: clip:scale=low."""
        return _short(self.config)

    @property
    def file(self) -> str:
        """The name of a kept row's file."""
        return re.sub(r"[^\w.-]+", "-", f"{self.short}-{self.count}x{self.slice}") + ".json"


def _short(name: str) -> str:
    return re.sub(r"^experiments/|\.py", "", name)


def select(pattern: str) -> list[Row]:
    """The shipped rows whose name, as they are called or as they are printed, matches. UserError if none does."""
    named = {str(row): row for row in (Row(*of) for of in SHIPPED)}
    try:
        chosen = [row for name, row in named.items() if any(re.search(pattern, n) for n in (name, _short(name)))]
    except re.error as e:
        raise UserError(f"--select={pattern!r} is not a regular expression: {e}") from None
    if not chosen:
        raise unknown("--select", pattern, named)
    return chosen


def made_of(config: Any, *more: Any) -> str:
    """A digest of a resolved config, of REVISION and of all `more` that the figures of a row depend on."""
    text = json.dumps([config.to_dict(), REVISION, *more], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def figures(row: Row, folder: str, key: Of, one: Callable[[str, topology.Slice], dict]) -> dict:
    """The figures of a row: those kept in `folder` ("": none are) if they are of the same `key`, else new ones, kept.

    one: (experiment, slice) -> figures. A UserError becomes a row that says so and is not kept.
    """
    path = Path(folder) / row.file
    try:
        where = topology.parse(row.slice, row.count)
        made = {MADE_OF: key(row.config, where), "revision": REVISION} if folder else {}
        kept = read(path) if folder and path.exists() else {}
        if kept and kept.get(MADE_OF) == made[MADE_OF]:
            return kept
        found = {"config": row.config} | made | one(row.config, where)
    except UserError as e:
        return {"config": row.config, "fits": False, "error": " ".join(str(e).split())}
    if folder:
        workdir.write_text(path, json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found


def read(path: Path) -> dict:
    """A kept row. UserError for a file that is none."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as e:
        raise UserError(f"{path} is not a row of the pre-flight ({e}); delete it, and the row is made anew") from None
    return found if isinstance(found, dict) else {}


def cells(row: Row, found: dict) -> tuple[str, ...]:
    """A row of the table, or of what the experiment lacks."""
    if "error" in found:
        return (row.short, row.slice, *("-",) * (len(table.HEADER) - 3), found["error"])
    return table.line(row.short, found)


def text(rows: Sequence[tuple[Row, dict]]) -> str:
    """The table as Markdown with what its numbers are."""
    prices = sorted({found["price"] for _, found in rows if "price" in found})
    dollars = f" Dollars: at {'; '.join(prices)}." if prices else ""
    body = table.markdown([table.HEADER, *(cells(row, found) for row, found in rows)])
    return f"{body}\n\n{table.NOTE}{dollars}"


def every(
    pattern: str,
    folder: str,
    key: Of,
    one: Callable[[str, topology.Slice], dict],
    cost: Callable[[dict], dict],
    show: Callable[[list[dict]], None],
) -> list[tuple[Row, dict]]:
    """Rows with their figures and what they `cost`; each is told on stderr and shown with those before when done."""
    chosen, done = select(pattern), []
    if folder and os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"--rows={folder} is not a folder; valid: one in which rows are kept, or that can be made")
    for i, row in enumerate(chosen, 1):
        found = figures(row, folder, key, one)
        done.append((row, found if "error" in found else cost(found)))
        print(f"{i}/{len(chosen)} {row}: {cells(*done[-1])[-1]}", file=sys.stderr, flush=True)
        show([figures for _, figures in done])
    return done
