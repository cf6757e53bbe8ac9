"""Every requirement has a lower bound: without one, `make test-lowest` would install the first version ever made."""

import configparser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SETUP = Path(__file__).parent.parent / "setup.cfg"


@pytest.mark.parametrize("group", ["install_requires", "tpu", "tpu-compile", "test"])
def test_every_requirement_has_a_lower_bound(group):
    read = configparser.ConfigParser()
    read.read(SETUP)
    lines = (read["options"] if group == "install_requires" else read["options.extras_require"])[group].split("\n")
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert wanted and not [str(r) for r in wanted if not any(s.operator in (">=", "==") for s in r.specifier)]
