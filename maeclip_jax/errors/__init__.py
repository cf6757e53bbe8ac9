"""Errors that a user can cause or encounter, each reported in one line with the valid choices."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping

_MOST_DIFFERENCES = 4  # that one message names


class UserError(ValueError):
    """Something the user can put right: printed as one line, exit code 2, no traceback."""


class BadRecord(Exception):
    """A record that cannot be used: skipped, counted under `kind`, named with `detail`."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail

    def __reduce__(self):  # exceptions cross process borders in parallel preparation
        return BadRecord, (self.kind, self.detail)


def unknown(what: str, name: object, choices: Iterable[object]) -> UserError:
    """The standard message for a name that is not among `choices`, with the nearest one if there is any."""
    names = [str(c) for c in choices]
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {what} {name!r}{hint}; valid: {', '.join(names)}")


def choose(what: str, name: str, table: dict):
    """`table[name]`, or a UserError that lists the valid names."""
    if name not in table:
        raise unknown(what, name, sorted(table))
    return table[name]


@contextlib.contextmanager
def from_modules() -> Iterator[None]:
    """Turns a ValueError that `maeclip_jax.nn` or an objective raised itself (a bad word in a config) into a UserError.

    Those modules import nothing of the project, so that they can be used alone; anything else passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as e:
        where = traceback.extract_tb(e.__traceback__)[-1].filename.replace("\\", "/")
        if "maeclip_jax/nn/" in where or "maeclip_jax/objectives/" in where:
            raise UserError(str(e)) from None
        raise


def differences(runs: Mapping[str, object], other: Mapping[str, object]) -> str:
    """How `runs` differs from the `other` process's, in words; empty where it does not."""
    names = [n for n in {**runs, **other} if runs.get(n, "absent") != other.get(n, "absent")]
    said = [f"{n} is {runs.get(n, 'absent')}, not {other.get(n, 'absent')}" for n in names[:_MOST_DIFFERENCES]]
    return "; ".join(
        [*said, *([f"and {len(names) - _MOST_DIFFERENCES} more"] if len(names) > _MOST_DIFFERENCES else [])]
    )


def class_elsewhere(what: str, name: str, known: Iterable[str], wanted: Callable[[type], bool]) -> type:
    """The class of "module:Class" in a person's own module, among those that are `wanted`.

    Raises UserError where the module cannot be imported or has no such class. `what`: objective, evaluator; `known`:
    the names that need no module.
    """
    where, _, of = name.partition(":")
    try:
        module = importlib.import_module(where)
    except Exception as e:
        raise UserError(
            f"{what} {name!r}: cannot import {where!r} ({type(e).__name__}: {' '.join(str(e).split())}); valid: "
            f"module:Class with the module on PYTHONPATH, or one of {', '.join(sorted(known))}"
        ) from e
    found = {k: v for k, v in vars(module).items() if isinstance(v, type) and wanted(v)}
    return choose(f"{what} of module {where!r}:", of, found)
