"""Cases of a test that `make test-long` runs and `make test` does not (`long` in pyproject.toml)."""

from collections.abc import Container, Iterable

import pytest


def marked(cases: Iterable[str], long: Container[str]) -> list:
    """`cases` for `pytest.mark.parametrize`, those in `long` with the mark."""
    return [pytest.param(case, marks=pytest.mark.long) if case in long else case for case in cases]
