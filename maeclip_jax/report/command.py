"""Command line of the report; see `python -m maeclip_jax.report --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from maeclip_jax import cli, report
from maeclip_jax.errors import UserError


def run(argv: Sequence[str]) -> None:
    """Parses, writes the pages and prints where they are."""
    parser = cli.Parser("maeclip_jax.report", report.__doc__)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run (its --workdir)")
    parser.add_argument("--tables", action="store_true", help="write the paper's tables over all WORKDIRs to --out")
    parser.add_argument("--out", metavar="DIR", help="write one table over all WORKDIRs to DIR, instead of a page each")
    parser.add_argument("--compare", action="store_true", help="test the numbers of two WORKDIRs on the same items")
    args = parser.parse_args(argv)
    if args.compare and (len(args.workdirs) != 2 or args.tables or args.out):
        raise UserError(f"--compare takes two workdirs and got {len(args.workdirs)}; valid: --compare FIRST SECOND")
    if args.tables and not args.out:
        raise UserError("--tables needs a folder to write to; valid: --tables WORKDIR... --out DIR")
    if args.compare:
        print(report.differences(*args.workdirs))
    elif args.tables:
        print(report.collect(args.workdirs, args.out))
    elif args.out:
        print(report.compare(args.workdirs, args.out))
    else:
        for workdir in args.workdirs:
            print(report.write(workdir))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 2 for what the user can put right, said in one line."""
    return cli.guarded(lambda: run(sys.argv[1:] if argv is None else argv))
