"""Command line; see `python -m maeclip_jax.api.export --help`."""

import sys

from maeclip_jax.api.export.command import main

if __name__ == "__main__":
    sys.exit(main())
