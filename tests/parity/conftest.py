"""`make test-parity` ends with the table of what was compared."""

from tests.parity import compare


def pytest_terminal_summary(terminalreporter):
    if compare.ROWS:
        terminalreporter.section("parity: worst differences, float32")
        terminalreporter.write_line(compare.table())
