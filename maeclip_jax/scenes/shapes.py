"""Stamps: anti-aliased shapes, textures and clutter, drawn with integers only.

A shape is a predicate on integer coordinates; a stamp is that predicate on a grid of 4 x 4 samples a pixel (3 x 3
for large ones). No floating point and no drawing library take part, so a stamp has the same bits on every machine and
under every version of numpy. Stamps are few (shape x diameter x angle): they are drawn once and cached.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

UNIT = 4096  # coordinates of a shape run from about -UNIT to UNIT
FULL = 128  # alpha of a covered pixel: 255 * 128 still fits int16


def _disc(u, v, x, y, radius):
    u, v, radius = u - round(x * UNIT), v - round(y * UNIT), round(radius * UNIT)
    return u * u + v * v <= radius * radius


def _box(u, v, half_width, half_height):
    return (abs(u) <= round(half_width * UNIT)) & (abs(v) <= round(half_height * UNIT))


def _polygon(u, v, *points):
    """Even-odd rule with exact cross products; `points` in units, x to the right, y down."""
    inside = np.zeros(u.shape, bool)
    corners = [(round(x * UNIT), round(y * UNIT)) for x, y in points]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if y0 == y1:
            continue
        crosses = (y0 <= v) != (y1 <= v)
        side = (u - x0) * (y1 - y0) - (v - y0) * (x1 - x0)
        inside ^= crosses & ((side < 0) if y1 > y0 else (side > 0))
    return inside


def _star(u, v):
    turn = [math.pi * k / 5 for k in range(10)]
    radii = [1.03 if k % 2 == 0 else 0.43 for k in range(10)]
    return _polygon(u, v, *[(r * math.sin(t), 0.06 - r * math.cos(t)) for r, t in zip(radii, turn)])


def _heart(u, v):
    lobes = _disc(u, v, -0.46, -0.36, 0.52) | _disc(u, v, 0.46, -0.36, 0.52)
    return lobes | _polygon(u, v, (-0.93, -0.13), (0, -0.45), (0.93, -0.13), (0, 0.98))


def _clover(u, v):
    return functools.reduce(
        lambda a, b: a | b, [_disc(u, v, x, y, 0.45) for x, y in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    )


def _drop(u, v):
    return _disc(u, v, 0, 0.38, 0.6) | _polygon(u, v, (0, -1.0), (0.54, 0.12), (-0.54, 0.12))


# In the order in which they enter when a data set asks for more concepts: the first eight overlap each other least
# (at most 58 % intersection over union; circle and square, at 85 %, are the hardest pair of the table).
SHAPES = {
    "square": lambda u, v: _box(u, v, 0.84, 0.84),
    "triangle": lambda u, v: _polygon(u, v, (0, -0.98), (1.0, 0.78), (-1.0, 0.78)),
    "star": _star,
    "cross": lambda u, v: _box(u, v, 0.3, 0.96) | _box(u, v, 0.96, 0.3),
    "ring": lambda u, v: _disc(u, v, 0, 0, 0.98) & ~_disc(u, v, 0, 0, 0.55),
    "bar": lambda u, v: _box(u, v, 1.0, 0.3),
    "crescent": lambda u, v: _disc(u, v, 0, 0, 1.0) & ~_disc(u, v, 0.5, -0.14, 0.8),
    "hourglass": lambda u, v: (abs(v) <= round(0.86 * UNIT)) & (abs(u) * 10 <= abs(v) * 9 + UNIT),
    "circle": lambda u, v: _disc(u, v, 0, 0, 0.95),
    "heart": _heart,
    "diamond": lambda u, v: abs(u) * 100 + abs(v) * 58 <= 58 * UNIT,
    "arrow": lambda u, v: _polygon(u, v, (-1.0, -0.3), (0.05, -0.3), (0.05, -0.8), (1.0, 0), (0.05, 0.8),
                                   (0.05, 0.3), (-1.0, 0.3)),
    "bolt": lambda u, v: _polygon(u, v, (0.15, -1.0), (-0.7, 0.2), (-0.12, 0.2), (-0.3, 1.0), (0.7, -0.28),
                                  (0.08, -0.28), (0.5, -1.0)),
    "clover": _clover,
    "drop": _drop,
    "house": lambda u, v: _polygon(u, v, (0, -1.0), (1.02, -0.08), (0.72, -0.08), (0.72, 0.9), (-0.72, 0.9),
                                   (-0.72, -0.08), (-1.02, -0.08)),
}  # fmt: skip
NAMES = tuple(SHAPES)


class Stamp(NamedTuple):
    """A shape in a window of w x w pixels, for compositing in int16."""

    alpha: np.ndarray  # int16 [w, w], 0 .. FULL
    shade: np.ndarray  # int16 [w, w], added to the colour: light from above, a dark rim
    solid: np.ndarray  # bool [w, w], at least half covered


def _samples(diameter: int) -> int:
    """Samples a pixel and axis."""
    return 4 if diameter < 64 else 3


def _grid(window: int, diameter: int):
    """Coordinates u, v of the samples of a window, in UNIT = half the diameter; int32 [S*w, S*w]."""
    n = _samples(diameter)
    odd = 2 * np.arange(n * window, dtype=np.int64) + 1 - n * window
    line = (np.sign(odd) * (abs(odd) * UNIT // (n * diameter))).astype(np.int32)  # products of two still fit
    return np.broadcast_arrays(line[None, :], line[:, None])


def _turn(u, v, degrees: int):
    cos, sin = round(math.cos(math.radians(degrees)) * 16384), round(math.sin(math.radians(degrees)) * 16384)
    return (u * cos + v * sin) >> 14, (v * cos - u * sin) >> 14


def _coverage(inside: np.ndarray, n: int) -> np.ndarray:
    """Share of covered samples of each pixel, int16 0 .. FULL; `n` samples a pixel and axis."""
    window = len(inside) // n
    counts = inside.reshape(window, n, window, n).sum((1, 3))
    return (counts * FULL // n**2).astype(np.int16)


def _frozen(plane: np.ndarray, dtype=np.int16) -> np.ndarray:
    plane = np.ascontiguousarray(plane, dtype)
    plane.setflags(write=False)  # cached and shared between threads
    return plane


def _eroded(alpha: np.ndarray) -> np.ndarray:
    wide = np.pad(alpha, 1)
    return np.minimum.reduce([alpha, wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]])


@functools.lru_cache(maxsize=8192)
def stamp(shape: int, diameter: int, degrees: int) -> Stamp:
    """The stamp of shape number `shape`, `diameter` pixels across its unit disc, turned by `degrees`."""
    window = diameter + diameter // 8 + 2
    alpha = _coverage(SHAPES[NAMES[shape]](*_turn(*_grid(window, diameter), degrees)), _samples(diameter))
    inner = alpha
    for _ in range(max(1, diameter // 40)):
        inner = _eroded(inner)
    light = ((window - 1 - 2 * np.arange(window)) * 16 // window)[:, None]
    shade = light - ((alpha - inner) * 70 // FULL)

    return Stamp(_frozen(alpha), _frozen(shade), _frozen(alpha * 2 >= FULL, bool))


def _striped(u, v, p):
    return (u + v) % p < p * 45 // 100


def _dotted(u, v, p):
    row = v // p
    x, y = (u + (row % 2) * (p // 2)) % p - p // 2, v % p - p // 2
    return x * x + y * y <= (p * 30 // 100) ** 2


def _checked(u, v, p):
    return (u // (p * 2 // 3) + v // (p * 2 // 3)) % 2 == 0


def _wavy(u, v, p):
    return (v + abs(u % p - p // 2) * 7 // 10) % p < p * 45 // 100


def _netted(u, v, p):
    return (u % p < p * 30 // 100) | (v % p < p * 30 // 100)


TEXTURES = {"plain": None, "striped": _striped, "dotted": _dotted, "checked": _checked, "wavy": _wavy,
            "netted": _netted}  # fmt: skip
TEXTURE_NAMES = tuple(TEXTURES)


@functools.lru_cache(maxsize=1024)
def texture(kind: int, window: int, diameter: int, phase: int) -> np.ndarray:
    """How much of the second tone shows, int16 [w, w] 0 .. FULL; `phase` 0 .. 3 moves the pattern."""
    sub = 64  # 1/64 pixel
    period = max(6 * sub, diameter * sub // 5)
    n = _samples(diameter)
    line = (2 * np.arange(n * window, dtype=np.int64) + 1) * sub // (2 * n)
    u, v = np.broadcast_arrays(line[None, :] + phase * period // 4, line[:, None] + phase * period // 3)
    plane = _coverage(TEXTURES[TEXTURE_NAMES[kind]](u, v, period), n)
    return _frozen(plane)


@functools.lru_cache(maxsize=512)
def clutter(kind: int, diameter: int) -> np.ndarray:
    """A distractor with no name, int16 [w, w] alpha: even kinds are curved strokes, odd ones are lumps."""
    numbers = np.random.Philox(key=(kind << 64) | 0x5CE9E).random_raw(8)
    points = [(int(w % 1400) - 700, int((w >> np.uint64(20)) % 1400) - 700) for w in numbers]
    u, v = _grid(diameter, diameter)
    if kind % 2 == 0:
        (x0, y0), (x1, y1), (x2, y2) = points[:3]
        steps = 24
        curve = [
            (
                (x0 * (steps - t) ** 2 + 2 * x1 * t * (steps - t) + x2 * t * t) // steps**2,
                (y0 * (steps - t) ** 2 + 2 * y1 * t * (steps - t) + y2 * t * t) // steps**2,
            )
            for t in range(steps + 1)
        ]
        discs = [(x, y, 90) for x, y in curve]
    else:
        discs = [(x * 2 // 3, y * 2 // 5, 200 + abs(x) // 4) for x, y in points[:4]]
        u, v = _turn(u, v, points[4][0] // 8)
        v = v * (14 + points[4][1] % 8) // 10  # flattened and turned, so that no lump looks like a circle
    inside = np.zeros(u.shape, bool)
    for x, y, radius in discs:
        inside |= _disc(u, v, x / 1000, y / 1000, radius / 1000)
    return _frozen(_coverage(inside, _samples(diameter)))
