"""Command line; see `python -m maeclip_jax.export --help`."""

import sys

from maeclip_jax.export.command import main

if __name__ == "__main__":
    sys.exit(main())
