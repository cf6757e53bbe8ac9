"""Command line of the export; see `python -m maeclip_jax.api.export --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from maeclip_jax import cli
from maeclip_jax.api import export, interop
from maeclip_jax.errors import UserError


def run(argv: Sequence[str]) -> None:
    """Parses, writes the folder and prints what became of the parameters."""
    source, suite, settings, rest = cli.split_config(argv)
    if source or suite:
        raise UserError("--config is the run's own here; valid: --workdir, and --config.NAME=VALUE to change a setting")
    parser = cli.Parser("maeclip_jax.api.export", export.__doc__)
    parser.add_argument("--workdir", required=True, help="folder of a run, or one checkpoint in it")
    parser.add_argument("--format", required=True, help=f"one of {', '.join(interop.WRITTEN)}")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write over what is in --out")
    args = parser.parse_args(rest)
    cli.start_logging()
    report = export.write(args.workdir, args.format, args.out, overwrite=args.overwrite, settings=settings)
    print(report)
    print(f"written: {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 2 for what the user can put right, said in one line."""
    return cli.guarded(lambda: run(sys.argv[1:] if argv is None else argv))
