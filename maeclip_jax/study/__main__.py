"""Command line; see `python -m maeclip_jax.study --help`."""

import sys

from maeclip_jax.study.command import main

if __name__ == "__main__":
    sys.exit(main())
