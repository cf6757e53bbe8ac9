"""Command line; see `python -m maeclip_jax.bench --help`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from maeclip_jax import bench, cli
from maeclip_jax.errors import UserError, choose

NAMES = ("step", "input", "storage", "probe", "startup", "scenes", "sweep", "microbatches")


def run(argv: Sequence[str]) -> int | None:
    """Runs the benchmark that the first argument names, on the other arguments."""
    if argv[:1] in (["--help"], ["-h"]):
        print(bench.__doc__)
        return 0
    if not argv or argv[0].startswith("-"):
        raise UserError(f"name a benchmark first; valid: {', '.join(NAMES)}")
    name = choose("benchmark", argv[0], {name: name for name in NAMES})
    return importlib.import_module(f"maeclip_jax.bench.{name}").run(argv[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 for what the user can put right."""
    return cli.guarded(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
