"""The one JSON form of all benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from maeclip_jax.errors import UserError
from maeclip_jax.parallel.machine import commit, versions


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag --json."""
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures to FILE; -: as the last line")


def write(benchmark: str, figures: Any, path: str) -> None:
    """{"benchmark", "machine", "versions", "commit", "figures"} to `path`; "-" prints one line, "" does nothing."""
    made = {
        "benchmark": benchmark, "machine": f"{processor()}, {os.cpu_count()} cores", "versions": versions(),
        "commit": commit(), "figures": figures,
    }  # fmt: skip
    if path == "-":
        print(json.dumps(made))
    elif path:
        try:
            Path(path).write_text(json.dumps(made, indent=1))
        except OSError as e:
            raise UserError(f"--json={path} cannot be written: {e.strerror}") from e


def processor() -> str:
    """The processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
