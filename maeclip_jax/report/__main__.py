"""Command line; see `python -m maeclip_jax.report --help`."""

import sys

from maeclip_jax.report.command import main

if __name__ == "__main__":
    sys.exit(main())
