"""A compiled program's text as computations of operations, read whole or not at all.

The text is a header and tables, then computations: a head that opens a brace, operations, and a line that closes it.
An operation is mostly a line, but attributes may go on over several (a kernel's metadata does), so that it ends where
its brackets and quotes are closed. Whatever is not understood is an error: a line left out is time that is not counted.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

from maeclip_jax.errors import UserError

NO_ESTIMATE = 2**63 - 1  # what the compiler writes for cycles that it cannot tell
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$", re.DOTALL)
_END = re.compile(r"\}(, \w+=.*)?$", re.DOTALL)
_NAME = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[()]")
# What stands between the header and the computations: tables of source files.
_TABLE = re.compile(r"(FileNames|FunctionNames|FileLocations|StackFrames|\d+ .*)\s*$")
# Attributes that name a computation.
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation: `name = shape kind(operands), rest`."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def attribute(self, name: str) -> str:
        """`calls` -> the computation named there; empty without."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @functools.cached_property
    def cycles(self) -> int:
        """The compiler's estimate; 0 without one."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found and int(found[1]) < NO_ESTIMATE else 0

    @property
    def unestimated(self) -> bool:
        """Whether the compiler notes that it has no estimate."""
        return f'"estimated_cycles":"{NO_ESTIMATE}"' in self.rest

    @property
    def target(self) -> str:
        """Of a custom call; empty for anything else."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest) if self.kind == "custom-call" else None
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """The traced path: `jit(_step)/transpose(jvp(Clip))/.../mlp/up/dot_general`."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def computations(self) -> list[str]:
        """All that it names."""
        lists = re.findall(r"(?:branch|called)_computations=\{([^}]*)\}", self.rest)
        return _CALLED.findall(self.rest) + [name for listed in lists for name in re.findall(r"[\w.\-]+", listed)]

    def calls(self) -> list[str]:
        """Those it runs once, in its own time: the body of a fusion, of a call, of an asynchronous start."""
        return self.computations() if self.kind in ("fusion", "call", "async-start", "custom-call") else []


def computations(text: str) -> tuple[dict[str, dict[str, Op]], str]:
    """({computation: {operation: Op}}, name of the entry). Raises UserError for a text that is not read to its end."""
    module, entry, name, here = {}, "", "", None
    for number, line in _logical(text):
        if here is None:
            head = _HEAD.match(line)
            if head:
                name, here = head[2], {}
                entry = head[2] if head[1] else entry
            elif line.strip() and not line.startswith("HloModule") and not _TABLE.match(line):
                raise _unread(number, line, "it is in no computation")
        elif _END.match(line):
            if name in module or not any(op.root for op in here.values()):
                raise _unread(number, line, f"it ends {name}, which has no result or stands twice")
            module[name], here = here, None
        elif line.strip():
            op = parse(line)
            if op is None:
                raise _unread(number, line, f"it is not an operation of {name}")
            here[op.name] = op
    if here is not None or not entry:
        raise _unread(number, "the end", f"{name} is not closed" if here is not None else "there is no ENTRY")
    for name, ops in module.items():
        for op in ops.values():
            gone = [c for c in op.computations() if c not in module] + [
                o for o in op.operands if o.partition("#")[0] not in ops
            ]
            if gone:
                raise _unread(number, op.name, f"{op.kind} of {name} names {gone[0]}, which was not read")
    return module, entry


def _unread(number: int, line: str, why: str) -> UserError:
    said = " ".join(line.split())[:80]
    return UserError(f"the compiled program's text was not understood at line {number}, {said!r}: {why}; no estimate")


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of a text, with lines joined until quotes and brackets are closed.

    Heads open a brace that a line of its own closes.
    """
    parts, first, open_, quoted = [], 1, 0, False
    for number, line in enumerate(text.splitlines(), 1):
        if not parts:
            first, open_ = number, -1 if _HEAD.match(line) and not line[0].isspace() else 0
        parts.append(line)
        bare = _STRING.sub("", '"' + line if quoted else line) if quoted or '"' in line else line
        bare, quote, _ = bare.partition('"')
        quoted = bool(quote)
        open_ += sum(map(bare.count, "{(")) - sum(map(bare.count, "})"))
        if not quoted and open_ <= 0:
            yield first, "\n".join(parts)
            parts = []
    if parts:
        yield first, "\n".join(parts)


def parse(line: str) -> Op | None:
    """The operation on a line; None if there is none."""
    head = _NAME.match(line)
    if not head:
        return None
    at = head.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.find(" ", at)
    begin = line.find("(", end)
    if end < 0 or begin < 0:
        return None
    close = _closing(line, begin)
    operands = tuple(re.findall(r"%([\w.\-#]+)", line[begin:close]))
    # What stands in the parentheses of a constant and a parameter is a number.
    rest = line[close + 1 :] if operands else line[begin:]
    return Op(head[2], line[at:end], line[end:begin].strip(), operands, rest, bool(head[1]))


def _closing(line: str, at: int) -> int:
    """Where the parenthesis that opens at `at` closes."""
    depth = 0
    for found in _BRACKET.finditer(line, at):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(line) - 1
