"""Compiles programs for chips that this machine lacks, and reads what the compiler says of those that have no room."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

UNITS = {"": 2**-30, "K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}


def compiled_with_text(lowered: Any) -> tuple[Any, str]:
    """(the compiled program, its text with the costs, as the compiler writes it to a file).

    jaxlib 0.10.2 cannot read large v6e programs of libtpu 0.0.52 back, so the program itself is asked only if nothing
    was written.
    """
    with tempfile.TemporaryDirectory() as folder, _without_cache():
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = list(Path(folder).glob("*.after_codegen.txt"))
        return compiled, written[0].read_text() if len(written) == 1 else compiled.as_text()


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """jax 0.10.2 keeps programs for a topology in its cache, and cannot read them again where that chip is missing.

    Every pre-flight would leave megabytes there, and the second one of a program would warn.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax decides once, at its first program, whether there is a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def needed_gib(message: str) -> float | None:
    """The memory that a program would need if it does not fit, as far as the compiler's message gives it."""
    number = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (rf"\({number}\) exceeds available", rf"[Uu]sed {number} of", rf"total hbm usage >= {number}"):
        found = re.search(pattern, message)
        if found:
            return float(found[1]) * UNITS[found[2]]
    return None
