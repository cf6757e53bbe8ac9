"""The oldest versions that setup.cfg allows, as constraints for pip: `make test-lowest` runs the tests with them.

python -m tests.lowest > constraints.txt
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parent.parent / "setup.cfg"


def lowest() -> list[str]:
    """`name==version` of every requirement with a lower bound, in the order of setup.cfg."""
    read = configparser.ConfigParser()
    read.read(SETUP)
    wanted = read["options"]["install_requires"].split("\n")
    found = [re.match(r"([\w.\-]+)(?:\[\w+\])?>=([\d.]+)", line) for line in wanted]
    return [f"{m[1]}=={m[2]}.*" for m in found if m]


if __name__ == "__main__":
    print("\n".join(lowest()))
