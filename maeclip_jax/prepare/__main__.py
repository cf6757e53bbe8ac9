"""Command line; see `python -m maeclip_jax.prepare --help`."""

import sys

from maeclip_jax.prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
