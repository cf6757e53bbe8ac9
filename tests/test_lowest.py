"""The oldest versions that are allowed are all named, so that `make test-lowest` tries them."""

import configparser

from packaging.requirements import Requirement
from packaging.version import Version

from tests import lowest


def test_every_bound_of_setup_cfg_is_a_constraint():
    found = {line.partition("==")[0]: line.partition("==")[2] for line in lowest.lowest()}
    read = configparser.ConfigParser()
    read.read(lowest.SETUP)
    bounded = [Requirement(line) for line in read["options"]["install_requires"].split("\n") if ">=" in line]
    assert set(found) == {r.name for r in bounded} and {"jax", "numpy", "orbax-checkpoint"} <= set(found)
    assert all(r.specifier.contains(Version(found[r.name].replace("*", "99"))) for r in bounded)
