"""Command line; see `python -m maeclip_jax.preflight --help`."""

import sys

from maeclip_jax.preflight.command import main

if __name__ == "__main__":
    sys.exit(main())
