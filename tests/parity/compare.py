"""Comparing ours with a reference implementation, and the table of what was compared.

Differences are the worst of all values: absolute, and relative to the largest value of the same array. An array that is
next to nothing beside the largest of its tree (the gradient of a key's bias is 0 but for rounding) is taken relative to
SMALL times that largest one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RTOL = 1e-5  # float32; never loosened
SMALL = 1e-3
ROWS: list[dict] = []


def close(reference: str, what: str, ours, theirs, *, rtol: float = RTOL, kind: str = "forward") -> None:
    """Adds a row to the table; fails if an array, or one of a dict of arrays, is further off than `rtol`.

    `reference`: of what code, in which configuration; `kind`: forward | gradient.
    """
    ours, theirs = (x if isinstance(x, Mapping) else {"": x} for x in (ours, theirs))
    assert set(ours) == set(theirs), sorted(set(ours) ^ set(theirs))[:5]
    pairs = {k: (np.asarray(ours[k], np.float64), np.asarray(theirs[k], np.float64)) for k in theirs}
    largest = max((np.abs(b).max() for _, b in pairs.values() if b.size), default=0.0)
    worst_absolute, worst_relative, where = 0.0, 0.0, ""
    for name, (a, b) in pairs.items():
        assert a.shape == b.shape, (name, a.shape, b.shape)
        difference = np.abs(a - b).max() if b.size else 0.0
        scale = max(np.abs(b).max() if b.size else 0.0, SMALL * largest, np.finfo(np.float32).tiny)
        worst_absolute = max(worst_absolute, difference)
        if not difference / scale <= worst_relative:
            worst_relative, where = difference / scale, name
    ROWS.append(
        dict(reference=reference, what=what, kind=kind, absolute=worst_absolute, relative=worst_relative, rtol=rtol)
    )
    assert worst_relative <= rtol, f"{reference}, {what} {where}: {worst_relative:.2e} relative, {rtol:.0e} allowed"


def table() -> str:
    """ROWS as lines of a table."""
    lines = [f"{'reference':44} {'compared':40} {'':8} {'absolute':>9} {'relative':>9} {'allowed':>8}"]
    lines += [
        f"{r['reference']:44} {r['what']:40} {r['kind']:8} {r['absolute']:9.1e} {r['relative']:9.1e} {r['rtol']:8.0e}"
        for r in ROWS
    ]
    return "\n".join(lines)
