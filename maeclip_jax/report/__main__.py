"""Command line of the report; see `python -m maeclip_jax.report --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maeclip_jax import report
from maeclip_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """0 = written; 2 = something the user can put right, said in one line."""
    parser = argparse.ArgumentParser(prog="python -m maeclip_jax.report", description=report.__doc__.split("\n")[0])
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run (its --workdir)")
    parser.add_argument("--tables", action="store_true", help="write the paper's tables over all WORKDIRs to --out")
    parser.add_argument("--out", metavar="DIR", help="write one table over all WORKDIRs to DIR, instead of a page each")
    args = parser.parse_args(argv)
    try:
        if args.tables and not args.out:
            raise UserError("--tables needs a folder to write to; valid: --tables WORKDIR... --out DIR")
        if args.tables:
            print(report.collect(args.workdirs, args.out))
        elif args.out:
            print(report.compare(args.workdirs, args.out))
        else:
            for workdir in args.workdirs:
                print(report.write(workdir))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
