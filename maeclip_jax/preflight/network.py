"""Time that a compiled program spends on the network between chips, and how much of it work hides.

A collective moves bytes over the links that its chips have among themselves: along an axis of the torus a chip has two
links, one at the end of a row that does not close to a ring, and none where the group is one chip wide. Groups that
interleave share their links, and what all devices send to all crosses the middle of each row. The text stands in the
order in which the operations run, so that a collective that starts in one place and ends in another is hidden by the
estimated time of what stands between; what is left is exposed. One that does neither blocks the core.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import numpy as np

from maeclip_jax.parallel.chips import NETWORK, Chip
from maeclip_jax.preflight import hlo
from maeclip_jax.preflight.program_text import Op
from maeclip_jax.preflight.topology import Slice

SLICES = "between slices"
START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
_GROUPS = re.compile(r"replica_groups=(\{\{[^}]*\}|mesh\[[^\]]*\]\s*\{[^}]*\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
# Bytes that leave a chip per byte of the whole array, of n chips: the others' parts arrive, or one's own leave.
TRAFFIC = {"all-reduce": 2.0}
OWN = ("all-to-all", "collective-permute")  # of which every device of a chip has its own to send


@dataclasses.dataclass
class Waits:
    """Seconds of one call: `exposed`, in which the core waits. `kinds`: kind -> [calls, of them asynchronous, bytes of
    the whole arrays, seconds]; `untimed`: those whose seconds nobody knows, which count as none.
    """

    exposed: float = 0.0
    kinds: dict = dataclasses.field(default_factory=lambda: defaultdict(lambda: [0, 0, 0.0, 0.0]))
    untimed: set = dataclasses.field(default_factory=set)

    @property
    def hidden(self) -> float:
        """Seconds of the links behind the core's work."""
        return sum(seconds for *_, seconds in self.kinds.values()) - self.exposed

    def add(self, other: Waits) -> None:
        """What else was waited for."""
        self.exposed += other.exposed
        self.untimed |= other.untimed
        for kind, calls in other.kinds.items():
            self.kinds[kind] = [mine + more for mine, more in zip(self.kinds[kind], calls)]

    def told(self) -> dict:
        """As figures by name."""
        names = "calls", "asynchronous", "bytes", "seconds"
        kinds = {kind: dict(zip(names, of)) for kind, of in self.kinds.items()}
        figures = {"exposed seconds": self.exposed, "hidden seconds": self.hidden, "kinds": kinds}
        return figures | {"without a data sheet": sorted(self.untimed)}


@dataclasses.dataclass(frozen=True)
class Links:
    """The torus of a slice, `grid` chips along its axes; `places` of each device of the mesh, in its order."""

    chip: Chip
    grid: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]
    outside: float | None = None  # bytes/s a chip to other slices; None: not known

    def seconds(self, kind: str, size: float, op: Op) -> float | None:
        """That a collective takes if nothing else is on its links; None if nothing is known of these.

        `size`: bytes of the whole arrays.
        """
        if kind == SLICES:
            return size * self.chip.devices / self.outside if self.outside else None
        group = group_of(op.rest, len(self.places))
        places = {self.places[i] for i in group}
        apart = len(places) if len(places) > 1 else len(group)  # chips, or the devices of one chip
        if apart < 2:
            return 0.0
        part = 1.0 if kind == "collective-permute" else TRAFFIC.get(kind, 1.0) * (apart - 1) / apart
        if len(places) < 2:
            return part * size / self.chip.ici
        # All devices of a chip send over its links: what is one's own, each; what all get, once for those of a group.
        senders = self.chip.devices / (1 if kind in OWN else len(group) / len(places))
        out = senders * part * size / self.speed(places)
        return max(out, self.over_the_middle(places, size)) if kind == "all-to-all" else out

    def speed(self, places: set[tuple[int, ...]]) -> float:
        """Bytes/s out of the worst placed of several chips, to the others."""
        return sum(speed for _, speed in self._rows(places))

    def over_the_middle(self, places: set[tuple[int, ...]], size: float) -> float:
        """Seconds in which devices of chips send each other parts of `size` bytes: the slowest axis's, cut in two.

        What a device sends beyond its neighbours takes links of others, which bytes out of a device do not tell.
        """
        sent = len(places) * self.chip.devices * size  # in this group and in those of the chips' other devices
        took = [0.0]
        for chips, speed in self._rows(places):
            crossing = sent * (chips // 2) * (chips - chips // 2) / chips**2
            took.append(crossing / (speed * len(places) / chips))
        return max(took)

    def _rows(self, places: set[tuple[int, ...]]) -> list[tuple[int, float]]:
        """(chips of a row, bytes/s out of its end) of the axes along which these places lie.

        Those of a ring go two ways. Rows of groups that interleave share their links.
        """
        link, found = self.chip.ici * self.chip.devices / (2 * len(self.grid)), []
        for axis, size in enumerate(self.grid):
            at = sorted({place[axis] for place in places})
            length = at[-1] - at[0] + 1
            if len(at) > 1:
                step = math.gcd(*(b - a for a, b in itertools.pairwise(at)))
                ring = len(at) * step == size and wraps(size, self.grid, self.chip)
                found.append((len(at), link * (2 if ring else 1) * (len(at) / (size if ring else length))))
        return found


def wraps(size: int, grid: Sequence[int], chip: Chip) -> bool:
    """Whether a row of so many chips, an axis of a slice, closes to a ring: of v5e and v6e, 16; else any of whole cubes
    of 4 x 4 x 4 chips (docs.cloud.google.com/tpu/docs/v5p, .../v4); what is smaller than a cube has no ring.
    """
    return size == 16 if chip.axes == 2 else all(n % 4 == 0 for n in grid)


def links(where: Slice, devices: Sequence) -> Links | None:
    """Of a slice, its devices in the order of the mesh; None if nothing is known of its network."""
    if not where.chip.ici or any(getattr(d, "coords", None) is None for d in devices):
        return None
    places = tuple(tuple(d.coords)[: len(where.grid)] for d in devices)
    return Links(where.chip, where.grid, places, NETWORK.get(where.kind))


@functools.lru_cache(maxsize=4096)
def _group(text: str, devices: int) -> tuple[int, ...]:
    if text.startswith("{{"):
        return tuple(map(int, re.findall(r"\d+", text[: text.index("}")])))
    named = re.match(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}", text)
    if named:  # mesh['replica'=2,'fsdp'=4] {'fsdp'}, perhaps with an order of the devices behind
        sizes = {axis: int(n) for axis, n in re.findall(r"'([^']*)'=(\d+)", named[1])}
        order = np.arange(devices).reshape(tuple(sizes.values()))
        mine = re.findall(r"'([^']*)'", named[2])
        return tuple(order[tuple(slice(None) if a in mine else 0 for a in sizes)].reshape(-1).tolist())
    listed = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if listed:  # [groups,size]<=[dims]T(permutation)
        shape, dims = (tuple(map(int, part.split(","))) for part in listed.groups()[:2])
        order = np.arange(math.prod(dims)).reshape(dims)
        if listed[3]:
            order = order.transpose(tuple(map(int, listed[3].split(","))))
        return tuple(order.reshape(shape)[0].tolist())
    return tuple(range(devices))


def group_of(rest: str, devices: int) -> tuple[int, ...]:
    """The devices that talk with the first one; all, if the text does not say."""
    found = _GROUPS.search(rest)
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
    if pairs:
        return (int(pairs[1]), int(pairs[2]))
    return _group(found[1], devices) if found else tuple(range(devices))


def waits(
    module: dict, entry: str, seconds: Callable[[Op, dict], float], net: Callable[[str, float, Op], float | None]
) -> Waits:
    """What the network costs a program. `seconds(op, computation)`: of the core; `net(kind, bytes, op)`: of links,
    None if that is not known.
    """
    found = Waits()
    _Clock(module, seconds, net, found).run(entry, 1)
    return found


class _Clock:
    """Goes through computations as they run: `now` of the core, `free` of the links, and what is on its way."""

    def __init__(self, module, seconds, net, found):
        self.module, self.seconds, self.net, self.found = module, seconds, net, found

    def run(self, name: str, times: int) -> float:
        """Seconds of one call of a computation, waits included; notes `times` of what it costs."""
        now, free, pending, meeting = 0.0, defaultdict(float), defaultdict(deque), {}
        here = self.module[name]

        def begin(kind: str, size: float, op: Op, key) -> None:
            took, net = self._note(kind, size, op, times, True), kind == SLICES
            free[net] = max(free[net], now) + took
            pending[key].append(free[net])

        def wait(until: float) -> None:
            nonlocal now
            self.found.exposed += times * max(0.0, until - now)
            now = max(now, until)

        def end(key) -> None:
            if pending[key]:
                wait(pending[key].popleft())

        def block(kind: str, size: float, op: Op) -> None:
            free[False] = max(now, free[False]) + self._note(kind, size, op, times, False)
            wait(free[False])

        for op in here.values():
            kind = hlo.collective(op)
            if op.kind == "while":
                turns = hlo.turns_of(op, self.module) or 1
                now += turns * self.run(op.attribute("body"), times * turns)
            elif op.kind == "conditional":
                ways = [self._apart(branch, times) for branch in op.computations()]
                took, cost = max(ways, key=lambda way: way[0], default=(0.0, Waits()))
                self.found.add(cost)
                now += took
            elif op.kind == "call":
                now += sum(self.run(called, times) for called in op.calls())
            elif op.kind.endswith("-start") and (kind or op.kind == "async-start"):
                for inner, size, what, _ in [(op, hlo.payload(op, here), kind, "")] if kind else self._inside(op):
                    begin(what, size, inner, op.name)
                now += self.seconds(op, here)
            elif op.kind in ("send", "recv"):  # between slices: a pair that meets under a name
                at = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', op.rest)
                if at and op.kind == "send":
                    begin(SLICES, hlo.sent(op, here), op, at[1])
                elif at:
                    meeting[op.name] = at[1]
            elif op.kind == "recv-done":
                end(meeting.get(op.operands[0], ""))
            elif op.kind == "async-update":
                pending[op.name] = pending.pop(op.operands[0], deque())
            elif op.kind.endswith("-done"):
                while pending[op.operands[0]]:
                    end(op.operands[0])
                now += self.seconds(op, here)
            elif kind:
                block(kind, hlo.payload(op, here), op)
                now += self.seconds(op, here)
            elif op.kind == "fusion":
                for inner, size, what, role in self._inside(op):
                    chain = re.search(r'chain_id="(\d+)"', inner.rest)
                    key = (what, inner.attribute("channel_id"), chain and chain[1])
                    if role == START:
                        begin(what, size, inner, key)
                    elif role == DONE:
                        end(key)
                    elif role != hlo.PIECE:
                        block(what, size, inner)
                now += self.seconds(op, here)
            else:
                now += self.seconds(op, here)
        for left in list(pending):
            while pending[left]:
                end(left)
        return now

    def _apart(self, name: str, times: int) -> tuple[float, Waits]:
        """(seconds of one call of a computation, what it waits for), which may be one of several that does not run."""
        clock = _Clock(self.module, self.seconds, self.net, Waits())
        return clock.run(name, times), clock.found

    def _note(self, kind: str, size: float, op: Op, times: int, hidden: bool) -> float:
        """Seconds of the links of one call; 0 if that is not known."""
        calls, took = self.found.kinds[kind], self.net(kind, size, op)
        if took is None:
            self.found.untimed.add(kind)
        for i, value in enumerate((1, int(hidden), size, took or 0.0)):
            calls[i] += times * value
        return took or 0.0

    def _inside(self, op: Op) -> list[tuple[Op, float, str, str]]:
        """(collective, bytes, kind, role) of all in a fusion's or an asynchronous call's computation.

        Of one that runs under several fusions, the role in this one: START, DONE or a PIECE between.
        """
        found = []
        for name in op.calls():
            here = self.module[name]
            roles = {o: mark.target for mark in here.values() if mark.target in (START, DONE) for o in mark.operands}
            for inner in here.values():
                if kind := hlo.collective(inner, name):
                    role = roles.get(inner.name, hlo.PIECE if hlo.PIECE in inner.rest else "")
                    found.append((inner, hlo.payload(inner, here), kind, role))
                found += self._inside(inner)
        return found
