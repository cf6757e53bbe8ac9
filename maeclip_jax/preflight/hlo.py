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

from maeclip_jax.preflight.program_text import Op, computations

# Of one element, by the name of its type.
BYTES = {"pred": 1} | {f"{kind}{n}": n / 8 for kind in ("s", "u", "f", "bf", "c") for n in (2, 4, 8, 16, 32, 64)}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PIECE = "async_collective_fusion_config"  # in a collective that runs under several fusions
MOVING = {"gather", "scatter", "sort"}  # of rows; libtpu gives some of them no cycles, or 2^63 - 1
SCATTER = "all-reduce-scatter"  # how libtpu names a reduce-scatter: a fusion of an all-reduce and of taking one's part
# Custom calls that are notes to the compiler or parts of something counted elsewhere, and take no time themselves.
FREE = ("AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "ConcatBitcast", "Sharding",
        "AsyncCollectiveStart", "AsyncCollectiveDone", "MoveToHost", "MoveToDevice", "SPMDFullToShardShape",
        "SPMDShardToFullShape", "SliceId", "PrepareAsyncCallStart", "PrepareAsyncCallDone")  # fmt: skip
KERNEL = re.compile(r"(\w+)/pallas_call$")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\]")
# What jax wraps around the names of modules.
_WRAPPERS = re.compile(
    r"^(jit|pjit|vmap|jvp|transpose|remat|checkpoint|custom_vjp)\(|^(while|body|cond|branch_\d+_fun|closed_call|"
    r"eval_jaxpr|checkpoint|rematted_computation|remat|core_call|shard_map|custom_vjp_call)$"
)


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
    the compiler's, -> calls; `uncosted`: other custom calls without one, target -> calls; `unpriced`: of
    operations without one, those that move or sort rows, or are fusions that hold such an operation, kind -> calls.
    """

    cycles: float = 0.0
    flops: float = 0.0
    collectives: Counter = dataclasses.field(default_factory=Counter)
    kernels: Counter = dataclasses.field(default_factory=Counter)
    uncosted: Counter = dataclasses.field(default_factory=Counter)
    unpriced: Counter = dataclasses.field(default_factory=Counter)
    modules: Counter = dataclasses.field(default_factory=Counter)  # module and kind of operation -> cycles
    unknown_loops: int = 0  # counted as one turn

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The dearest (module, cycles)."""
        return self.modules.most_common(n)


def costs(text: str) -> Costs:
    """The costs of a module given as optimised HLO text."""
    return count(*computations(text))


def collective(op: Op, inside: str = "") -> str:
    """Its kind; empty for other operations and for the end of one. `inside`: the computation that it stands in."""
    kind = next((k for k in COLLECTIVES if op.kind in (k, f"{k}-start")), "")
    return "reduce-scatter" if kind and inside.startswith(SCATTER) else kind


def count(module: dict[str, dict[str, Op]], entry: str) -> Costs:
    """The costs of a module as computations, from its entry."""
    found, sent, loops = Costs(), {}, set()
    for op, inside, times, fused in walk(module, entry, 1, False, loops):
        here = module[inside]
        found.flops += times * _flops(op, here)
        kind = collective(op, inside)
        if kind:
            key = (kind, op.name)
            if fused and PIECE in op.rest:  # stands in several fusions, which hide it bit by bit
                key = (kind, op.attribute("channel_id") or op.name, op.source)
            size = times * payload(op, here)
            sent[key] = max(sent.get(key, 0), size) if fused else sent.get(key, 0) + size
        moving = moves(op, module) if op.unestimated or not (fused or op.cycles) else set()
        found.unpriced.update(dict.fromkeys(moving, times))
        if op.unestimated and op.kind != "custom-call" and not moving:
            found.uncosted[f"{op.kind} without an estimate"] += times
        if fused:  # its cycles are the fusion's
            continue
        found.cycles += times * op.cycles
        found.modules[module_of(op.source) or op.kind] += times * op.cycles
        if op.target and not op.cycles and op.target not in FREE and not op.calls():
            kernel = kernel_of(op, here)
            if kernel is None:
                named = KERNEL.search(op.source)
                found.uncosted[f"{op.target} {named[1]}" if named else op.target] += times
            else:
                found.kernels[kernel] += times
                found.flops += times * kernel.flops
    for (kind, *_), size in sent.items():
        found.collectives[kind] += size
    found.unknown_loops = len(loops)
    return found


def walk(module: dict, name: str, times: int, fused: bool, loops: set[str]) -> Iterator[tuple[Op, str, int, bool]]:
    """Every operation that runs: itself, the name of its computation, how often, and whether inside a fusion."""
    for op in module[name].values():
        yield op, name, times, fused
        if op.kind == "while":
            turns = turns_of(op, module)
            if turns is None:
                loops.add(op.name)
            yield from walk(module, op.attribute("body"), times * (turns or 1), fused, loops)
        elif op.kind == "conditional":
            both = (op.attribute("true_computation"), op.attribute("false_computation"))
            listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
            branches = re.findall(r"[\w.\-]+", listed[1]) if listed else filter(None, both)
            ways = [list(walk(module, branch, times, fused, loops)) for branch in branches]
            # The dearest.
            yield from max(ways, key=lambda way: sum(n * o.cycles for o, _, n, f in way if not f), default=[])
        for called in op.calls():
            yield from walk(module, called, times, fused or op.kind != "call", loops)


def moves(op: Op, module: dict) -> set[str]:
    """The kinds in MOVING that an operation is or, as a fusion, holds."""
    held = {op.kind} & MOVING
    for called in op.calls() if op.kind == "fusion" else ():
        for inner in module[called].values():
            held |= moves(inner, module)
    return held


def kernel_of(op: Op, here: dict) -> Kernel | None:
    """The Pallas kernel that a custom call is; None for other calls, and for kernels without a cost estimate."""
    name = KERNEL.search(op.source)
    costs = dict(re.findall(r'"(flops|bytes_accessed)":"(\d+)"', op.rest))
    if not name or len(costs) < 2:
        return None
    shapes = tuple("{}[{}]".format(*_SHAPE.search(shape).groups()) for shape in _operand_shapes(op, here))
    return Kernel(name[1], shapes, float(costs["flops"]), float(costs["bytes_accessed"]))


def turns_of(loop: Op, module: dict) -> int | None:
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


def sent(op: Op, here: dict) -> float:
    """Bytes of the first operand."""
    return _bytes((_operand_shapes(op, here) or [""])[0])


def payload(op: Op, here: dict) -> float:
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
