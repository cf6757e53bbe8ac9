"""What a compiled TPU program costs, counted from its own text: cycles, FLOPs, collectives, calls without an estimate.

The compiler writes its cost model's `estimated_cycles` beside most operations. A `while` (a scan over layers) stands
there once, so whatever is in its body counts times its number of turns, read from its condition.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator

# Of one element, by the name of its type.
BYTES = {"pred": 1} | {f"{kind}{n}": n / 8 for kind in ("s", "u", "f", "bf", "c") for n in (2, 4, 8, 16, 32, 64)}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SCATTER = "all-reduce-scatter"  # how libtpu names a reduce-scatter: a fusion of an all-reduce and of taking one's part
# Custom calls that are notes to the compiler or parts of something counted elsewhere, and take no time themselves.
FREE = ("AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "ConcatBitcast", "Sharding",
        "AsyncCollectiveStart", "AsyncCollectiveDone", "MoveToHost", "MoveToDevice", "SPMDFullToShardShape",
        "SPMDShardToFullShape")  # fmt: skip
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\]")
# What jax wraps around the names of modules.
_WRAPPERS = re.compile(
    r"^(jit|pjit|vmap|jvp|transpose|remat|checkpoint|custom_vjp)\(|^(while|body|cond|branch_\d+_fun|closed_call|"
    r"eval_jaxpr|checkpoint|rematted_computation|remat|core_call|shard_map|custom_vjp_call)$"
)


@dataclasses.dataclass(frozen=True)
class Op:
    """One line: `name = shape kind(operands), rest`."""

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
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """The traced path: `jit(_step)/transpose(jvp(Clip))/.../mlp/up/dot_general`."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A call of a Pallas kernel: its name, the shapes of its operands, and its author's cost estimate."""

    name: str
    shapes: tuple[str, ...]
    flops: float
    bytes: float


@dataclasses.dataclass
class Costs:
    """Of one device and one call. `collectives`: kind -> bytes of the whole arrays; `kernels`, without an estimate of
    the compiler's, -> calls; `uncosted`: other custom calls without one, target -> calls.
    """

    cycles: float = 0.0
    flops: float = 0.0
    collectives: Counter = dataclasses.field(default_factory=Counter)
    kernels: Counter = dataclasses.field(default_factory=Counter)
    uncosted: Counter = dataclasses.field(default_factory=Counter)
    modules: Counter = dataclasses.field(default_factory=Counter)  # module and kind of operation -> cycles
    unknown_loops: int = 0  # counted as one turn

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The dearest (module, cycles)."""
        return self.modules.most_common(n)


def costs(text: str) -> Costs:
    """The costs of a module given as optimised HLO text."""
    module, entry = computations(text)
    found, sent, loops = Costs(), {}, set()
    for op, inside, times, fused in walk(module, entry, 1, False, loops):
        here = module[inside]
        found.flops += times * _flops(op, here)
        kind = next((k for k in COLLECTIVES if op.kind in (k, f"{k}-start")), None)
        if kind:
            key = (kind, op.name)
            if inside.startswith(SCATTER):
                key = ("reduce-scatter", op.name)
            elif fused:  # an asynchronous one stands in several fusions, piece by piece
                key = (kind, op.attribute("channel_id") or op.name, op.source)
            sent[key] = max(sent.get(key, 0), times * _payload(op, here))
        if fused:  # its cycles are the fusion's
            continue
        found.cycles += times * op.cycles
        found.modules[module_of(op.source) or op.kind] += times * op.cycles
        target = re.search(r'custom_call_target="([^"]*)"', op.rest) if op.kind == "custom-call" else None
        if target and not op.cycles and target[1] not in FREE:
            kernel = _kernel(op, here)
            if kernel is None:
                found.uncosted[target[1]] += times
            else:
                found.kernels[kernel] += times
                found.flops += times * kernel.flops
    for (kind, *_), size in sent.items():
        found.collectives[kind] += size
    found.unknown_loops = len(loops)
    return found


def computations(text: str) -> tuple[dict[str, dict[str, Op]], str]:
    """({computation: {operation: Op}}, name of the entry)."""
    module, entry, here = {}, "", None
    for line in text.splitlines():
        if here is None:
            head = _HEAD.match(line)
            if head:
                here = module.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            here = None
        elif op := _parse(line):
            here[op.name] = op
    return module, entry


def _parse(line: str) -> Op | None:
    head = _NAME.match(line)
    if not head:
        return None
    at = head.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
    begin = line.index("(", end)
    close = _closing(line, begin)
    operands = tuple(re.findall(r"%([\w.\-#]+)", line[begin:close]))
    # What stands in the parentheses of a constant and a parameter is a number.
    rest = line[close + 1 :] if operands else line[begin:]
    return Op(head[2], line[at:end], line[end:begin].strip(), operands, rest, bool(head[1]))


def _closing(line: str, at: int) -> int:
    """Where the parenthesis that opens at `at` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, at):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(line) - 1


def walk(module: dict, name: str, times: int, fused: bool, loops: set[str]) -> Iterator[tuple[Op, str, int, bool]]:
    """Every operation that runs: itself, the name of its computation, how often, and whether inside a fusion."""
    for op in module[name].values():
        yield op, name, times, fused
        if op.kind == "while":
            turns = _turns(op, module)
            if turns is None:
                loops.add(op.name)
            yield from walk(module, op.attribute("body"), times * (turns or 1), fused, loops)
        elif op.kind == "conditional":
            both = (op.attribute("true_computation"), op.attribute("false_computation"))
            listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
            branches = re.findall(r"[\w.\-]+", listed[1]) if listed else filter(None, both)
            ways = [list(walk(module, branch, times, fused, loops)) for branch in branches]
            yield from max(ways, key=lambda way: sum(o.cycles for o, *_, f in way if not f), default=[])  # the dearest
        elif op.kind in ("fusion", "call", "async-start"):
            called = op.attribute("calls") or op.attribute("to_apply")
            if called in module:
                yield from walk(module, called, times, fused or op.kind == "fusion", loops)


def _kernel(op: Op, here: dict) -> Kernel | None:
    """The Pallas kernel that a custom call is; None for other calls, and for kernels without a cost estimate."""
    name = re.search(r"(\w+)/pallas_call$", op.source)
    costs = dict(re.findall(r'"(flops|bytes_accessed)":"(\d+)"', op.rest))
    if not name or len(costs) < 2:
        return None
    shapes = tuple("{}[{}]".format(*_SHAPE.search(shape).groups()) for shape in _operand_shapes(op, here))
    return Kernel(name[1], shapes, float(costs["flops"]), float(costs["bytes_accessed"]))


def _turns(loop: Op, module: dict) -> int | None:
    """How often a while runs: what XLA notes of it, or the bound of a counter that starts at 0, by its step."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    ops = list(module.get(loop.attribute("condition"), {}).values())
    for op in list(ops):
        if op.kind == "fusion":
            ops += module.get(op.attribute("calls"), {}).values()
    bounds = [n for op in ops if (n := _number(op)) is not None]
    counts_up = any(op.kind == "compare" and "direction=LT" in op.rest for op in ops)
    if not counts_up or len(bounds) != 1:
        return None
    return math.ceil(bounds[0] / _step(loop, module))


def _step(loop: Op, module: dict) -> int:
    """What a turn adds to the counter; 1 if it is not added plainly. Products in windows of sharded arrays add 2."""
    condition, body = (module.get(loop.attribute(name), {}) for name in ("condition", "body"))
    counters = [op.attribute("index") for op in condition.values() if op.kind == "get-tuple-element"]
    result = next((op for op in body.values() if op.root), None)
    if len(counters) != 1 or result is None or int(counters[0]) >= len(result.operands):
        return 1
    added = body.get(result.operands[int(counters[0])])
    if added is None or added.kind != "add":
        return 1
    return next((n for name in added.operands if (n := _number(body[name]))), 1)


def _number(op: Op) -> int | None:
    """The value of an integer constant."""
    found = re.match(r"\((\d+)\)", op.rest) if op.kind == "constant" and op.shape[:3] in ("s32", "u32") else None
    return int(found[1]) if found else None


def _operand_shapes(op: Op, here: dict) -> list[str]:
    """Of the operands that stand in the same computation; `%fusion.3#1` is a part of a tuple."""
    found = []
    for operand in op.operands:
        name, _, part = operand.partition("#")
        if name in here:
            found.append(_parts(here[name].shape)[int(part)] if part else here[name].shape)
    return found


def _parts(shape: str) -> list[str]:
    """Of a tuple's text; the parts of one in it stay together."""
    parts, depth = [""], 0
    for mark in shape[1:-1]:
        depth += (mark in "([{") - (mark in ")]}")
        if mark == "," and not depth:
            parts.append("")
        else:
            parts[-1] += mark
    return parts


def _dims(shape: str) -> tuple[int, ...]:
    """Of the first array in a shape's text."""
    found = _SHAPE.search(shape)
    return tuple(map(int, filter(None, found[2].split(",")))) if found else ()


def _bytes(shape: str) -> float:
    """Of all arrays in a shape's text."""
    return sum(
        BYTES.get(kind, 1) * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in _SHAPE.findall(shape)
    )


def _payload(op: Op, here: dict) -> float:
    """Bytes of the whole arrays that a collective works on: the larger of what goes in and what comes out."""
    given = sum(map(_bytes, _operand_shapes(op, here)))
    made = _bytes(op.shape)
    if op.kind.endswith("-start") and op.shape.startswith("(") and op.kind != "all-reduce-start":
        made -= given  # the operands stand in the shape once more
    return max(given, made)


def _flops(op: Op, here: dict) -> float:
    """2 per multiply-add of a matrix product; the TPU compiler writes most as convolutions."""
    given = _operand_shapes(op, here) if op.kind in ("dot", "convolution") else []
    if len(given) < 2:
        return 0.0
    lhs, rhs = map(_dims, given[:2])
    if op.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
        axes = map(int, filter(None, contracted[1].split(","))) if contracted else ()
        return 2.0 * math.prod(_dims(op.shape)) * math.prod(lhs[i] for i in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
    if not labels:
        return 0.0
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", op.rest) or ["", ""])[1]))
    out = _dims(op.shape)
    total = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")] * rhs[labels[2].index("i")]
    for axis in filter(str.isdigit, labels[3]):
        sizes = (lhs[labels[1].index(axis)], rhs[labels[2].index(axis)], out[labels[3].index(axis)])
        total *= _taps(
            *sizes, *(_window(window, name, int(axis)) for name in ("stride", "pad", "lhs_dilate", "rhs_dilate"))
        )
    return total


def _window(window: dict, name: str, axis: int) -> int:
    """A number of a convolution's window along one axis; of the padding, that in front."""
    if name not in window:
        return 0 if name == "pad" else 1
    return int(window[name].split("x")[axis].split("_")[0])


@functools.cache
def _taps(given: int, kernel: int, made: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Pairs of output and kernel positions that meet a real input along one axis; batched products have one each."""
    count = 0
    for tap in range(kernel):
        for i in range(made):
            at = i * stride + tap * rhs_dilate - pad
            count += at % lhs_dilate == 0 and 0 <= at // lhs_dilate < given
    return count


def module_of(source: str) -> str:
    """`jit(_step)/transpose(jvp(Clip))/Clip._contrast/text/trunk/while/body/checkpoint/blocks/mlp/up/dot_general` ->
    `text/trunk/blocks/mlp/up dot_general, backward`.
    """
    parts = [p for p in source.split("/") if p and not _WRAPPERS.search(p)]
    parts = [p for p in parts if not re.match(r"[A-Z]\w*\.\w", p)]  # methods of the objective
    when = ", recomputed" if "rematted_computation" in source else ", backward" if "transpose(" in source else ""
    return ("/".join(parts[:-1]) + " " + parts[-1]).strip() + when if parts else ""
