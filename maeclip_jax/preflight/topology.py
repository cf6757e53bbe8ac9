"""TPU slices by the names people and libtpu use, and their devices for compilation, with no TPU at hand."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator

from maeclip_jax.errors import UserError, unknown
from maeclip_jax.parallel.chips import CHIPS, Chip

# Before libtpu is loaded: ask no metadata server, and let several processes compile at a time.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
INSTALL = "pip install -e '.[tpu-compile]'"


# All the shapes of slices that there are of v5e and v6e (the same pages).
SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "v7x": "tpu7x", "ironwood": "tpu7x"}
EXAMPLES = "v4-128, v5litepod-256, v5p-256, v6e-256, tpu7x-128, or libtpu's v4:4x4x4, v5e:16x16"


@dataclasses.dataclass(frozen=True)
class Slice:
    """`count` slices of one kind, joined over the data centre's network."""

    kind: str
    grid: tuple[int, ...]
    count: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return self.count * math.prod(self.grid)

    @property
    def name(self) -> str:
        """As libtpu has it: v5e:16x16."""
        return f"{self.kind}:{'x'.join(map(str, self.grid))}"

    def __str__(self) -> str:
        cores = f", {self.chips * 2} cores" if self.chip.cores_in_name else ""
        return f"{f'{self.count} slices of ' if self.count > 1 else ''}{self.name} ({self.chips} chips{cores})"

    def devices(self) -> list:
        """Devices to compile for, in the order of processes. UserError without libtpu, or for a grid it has not."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from jax.experimental import topologies

        more = {"chip_config_name": self.chip.config} if self.chip.config else {}
        more |= {"num_slices": self.count} if self.count > 1 else {}
        if not installed():
            raise UserError(f"pre-flight needs libtpu, the TPU compiler (no TPU): {INSTALL}")
        try:
            with _quiet():
                found = topologies.get_topology_desc(topology_name=self.name, platform="tpu", **more).devices
        except Exception as e:
            raise UserError(f"libtpu has no topology {self.name}: {' '.join(str(e).split())[:160]}") from None
        return sorted(found, key=lambda d: (getattr(d, "slice_index", None) or 0, d.process_index, d.id))


def installed() -> bool:
    """Whether libtpu is."""
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None


def compiler() -> str:
    """The compiler here, and the one that a pod takes which installs the extra `tpu` with this jax."""
    from importlib.metadata import requires, version

    from packaging.requirements import Requirement

    here, jax = version("libtpu"), version("jax")
    wanted = [r for r in map(Requirement, requires("jax") or ()) if r.name == "libtpu" and r.marker]
    pinned = [r.specifier for r in wanted if r.marker.evaluate({"extra": "tpu"})]
    used = f"libtpu {here}, jax {jax}"
    if not pinned:
        return f"{used}; which libtpu a pod with jax[tpu] {jax} has is unknown"
    if all(here in specifier for specifier in pinned):
        return f"{used}, as a pod with jax[tpu] {jax} has"
    pod = ",".join(str(specifier).removeprefix("==") for specifier in pinned)
    return f"{used}; a pod with jax[tpu] {jax} has libtpu {pod}, which may differ"


def parse(name: str, count: int = 1) -> Slice:
    """A slice by its name: `v5litepod-256`, `v4-128` (cores: 64 chips), `v4:4x4x4` (chips along the torus)."""
    found = re.fullmatch(r"([a-z0-9]+?)(?:-(\d+)|:(\d+(?:x\d+)*))", name.strip().lower())
    if not found:
        raise UserError(f"--topology={name!r} is not a slice; valid: {EXAMPLES}")
    kind = ALIASES.get(found[1], found[1])
    if kind not in CHIPS:
        raise unknown("TPU", found[1], [*CHIPS, *ALIASES])
    if count < 1:
        raise UserError(f"--num_slices={count}: at least 1")
    chip = CHIPS[kind]
    if found[3]:
        grid = tuple(map(int, found[3].split("x")))
        if len(grid) != chip.axes:
            raise UserError(f"--topology={name}: a {kind} slice has {chip.axes} axes; valid: {EXAMPLES}")
        _check_size(name, kind, math.prod(grid))
    else:
        _check_size(name, kind, int(found[2]) // (1 + chip.cores_in_name))
        grid = _grid(name, kind, int(found[2]))
    if kind in ("v5e", "v6e") and grid not in SHAPES:
        shapes = ", ".join(Slice(kind, shape).name for shape in SHAPES)
        raise UserError(f"--topology={name}: no such slice exists; valid: {shapes}")
    return Slice(kind, grid, count)


def _check_size(name: str, kind: str, chips: int) -> None:
    """UserError for more chips than a slice has."""
    chip = CHIPS[kind]
    if chips > chip.most:
        cores = f", {2 * chip.most} cores" if chip.cores_in_name else ""
        raise UserError(
            f"--topology={name}: a {kind} slice has up to {chip.most} chips{cores}; for more, --num_slices of that size"
        )


def _grid(name: str, kind: str, number: int) -> tuple[int, ...]:
    """Chips along each axis of the slice that a number names: as even as powers of two allow, smallest first."""
    chip = CHIPS[kind]
    chips, odd = divmod(number, 2) if chip.cores_in_name else (number, 0)
    power = chips.bit_length() - 1
    smallest = 4 if chip.cores_in_name else 1
    if odd or chips < smallest or chips != 2**power:
        raise UserError(
            f"--topology={name}: the number counts {'cores (two a chip)' if chip.cores_in_name else 'chips'}, a power "
            f"of two from {smallest * (1 + chip.cores_in_name)}"
            + (f"; other grids as libtpu names them, such as {kind}:4x4x12" if chip.axes == 3 else "")
        )
    if chip.axes == 3 and power == 2:
        return (2, 2, 1)
    return tuple(2 ** ((power + i) // chip.axes) for i in range(chip.axes))


def mesh_text(shape: dict[str, int]) -> str:
    """`replica=256 fsdp=1 tensor=1`."""
    return " ".join(f"{axis}={n}" for axis, n in shape.items())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps libtpu's warnings off stderr: that it finds no TPU, no host names and no accelerator type is the point."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
