"""Pixels of a scene: a muted background, clutter without a name, then the objects. Integer arithmetic throughout.

The canvas is int16 [3, H, W] while painting: channels first, so that one plane of a stamp serves all three.
The one use of floating point, the upsampling of the background, multiplies small integers by powers of two and is
exact in float32, in whatever order a BLAS adds.
"""

from __future__ import annotations

import functools

import numpy as np

from maeclip_jax.scenes import shapes
from maeclip_jax.scenes.world import COLOUR_NAMES, COLOURS, SceneSpec, Tape, Thing

NOISE_SIDE = 1024
CLUTTER = 48  # kinds of clutter
# The second tone of a texture is a lighter shade of these and a darker one of the others: red goes dark lest it be
# taken for pink, orange goes light lest it be taken for brown.
LIGHTENED = ("green", "blue", "purple", "black", "orange", "brown")


def image(spec: SceneSpec, things: list[Thing], tape: Tape) -> np.ndarray:
    """The picture, uint8 [H, W, 3] RGB."""
    canvas = _background(spec.resolution, tape)
    for thing in things:
        _paint(canvas, thing, tape)
    picture = np.empty((spec.resolution, spec.resolution, 3), np.uint8)
    for k in range(3):
        picture[..., k] = canvas[k]
    return picture


def masks(spec: SceneSpec, things: list[Thing]) -> np.ndarray:
    """Which object shows at each pixel, uint8 [H, W]: 0 background, i + 1 for object i."""
    index = np.zeros((spec.resolution, spec.resolution), np.uint8)
    for i, thing in enumerate(things):
        solid = shapes.stamp(thing.shape, thing.diameter, thing.degrees).solid
        (y, x), (u, v) = _window(thing.x, thing.y, len(solid), spec.resolution)
        index[y, x][solid[u, v]] = i + 1
    return index


def box(index: np.ndarray, i: int) -> tuple[int, int, int, int]:
    """Tight box (top, left, bottom, right) of what shows of object `i`, in pixels, bottom and right excluded."""
    rows, columns = np.nonzero((index == i + 1).any(1))[0], np.nonzero((index == i + 1).any(0))[0]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _window(x: int, y: int, w: int, side: int):
    """Slices of the canvas and of a w x w stamp centred on (x, y), cut at the borders."""
    left, top = x - w // 2, y - w // 2
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, side), min(top + w, side)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _blend(canvas: np.ndarray, x: int, y: int, alpha: np.ndarray, colour: np.ndarray):
    """Lays `colour` (int16, broadcast to [3, w, w]) over the canvas around (x, y)."""
    (rows, columns), inner = _window(x, y, len(alpha), canvas.shape[1])
    under = canvas[:, rows, columns]
    if colour.shape[-1] > 1:
        colour = colour[:, inner[0], inner[1]]
    change = colour - under
    change *= alpha[inner]
    change >>= 7
    under += change


def _bytes(tape: Tape, n: int) -> list[int]:
    """`n` lots in 0 .. 255."""
    return list(b"".join(tape.number().to_bytes(8, "little") for _ in range((n + 7) // 8))[:n])


@functools.lru_cache(maxsize=64)
def _upsampling(cells: int, side: int) -> np.ndarray:
    """Weights of linear upsampling, float32 [side, cells], multiples of 1/64."""
    place = (2 * np.arange(side) + 1) * (cells - 1) * 64 // (2 * side)  # 1/64 of a cell
    weights = np.maximum(0, 64 - abs(place[:, None] - 64 * np.arange(cells)[None])).astype(np.float32) / 64
    weights.setflags(write=False)
    return weights


@functools.lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """A sheet of grain of which pictures take windows, int16 [4, NOISE_SIDE, NOISE_SIDE]: one layer a strength."""
    raw = np.random.Philox(key=0x9A1F).random_raw(NOISE_SIDE**2 // 4).astype("<u8").view(np.uint8)
    pair = raw.reshape(2, NOISE_SIDE, NOISE_SIDE).astype(np.int16)
    grain = (pair[0] + pair[1]) // 2 - 128  # a triangle, -128 .. 127
    return np.stack([grain >> 6, grain >> 5, grain >> 4, grain >> 3])


def _background(side: int, tape: Tape) -> np.ndarray:
    """Greyish and calm: no colour here has a name of the tables, and nothing is as bright or dark as an object."""
    kind, grain, base, tint_r, tint_b, clutter, *_ = _bytes(tape, 8)
    cells = 2 if kind < 100 else 4
    base = 92 + base % 64
    tint_r, tint_b = tint_r % 21 - 10, tint_b % 21 - 10
    reach = 49 if cells == 2 else 37
    lots = _bytes(tape, cells * cells * 2)
    grid: list[list[int]] = [[], [], []]
    for level, shift in zip(lots[::2], lots[1::2]):
        level = base + level % reach - reach // 2
        grid[0].append(level + tint_r + shift % 13 - 6)
        grid[1].append(level)
        grid[2].append(level + tint_b + (shift >> 4) % 13 - 6)
    weights = _upsampling(cells, side)
    # One channel at a time, which is also too small a product for a BLAS to start threads.
    canvas = (weights @ np.array(grid, np.float32).reshape(3, cells, cells) @ weights.T).astype(np.int16)
    for _ in range(2 + clutter % 5):
        _clutter(canvas, base, tape)
    if grain >= 64:
        number, room = tape.number(), max(1, NOISE_SIDE - side)
        sheet = _noise()[grain % 4]
        y, x = (number & 0xFFFF) % room, (number >> 16 & 0xFFFF) % room
        window = sheet[y : y + side, x : x + side]
        window = window[:: -1 if number >> 40 & 1 else 1, :: -1 if number >> 41 & 1 else 1]
        canvas += window.T if number >> 42 & 1 else window
    return canvas


def _clutter(canvas: np.ndarray, base: int, tape: Tape):
    side = canvas.shape[1]
    kind, size, x, y, level, r, b, _ = _bytes(tape, 8)
    alpha = shapes.clutter(kind % CLUTTER, side * (9 + 3 * (size % 4)) // 24)
    level = base + (level % 36 + 12) * (1 if level & 64 else -1)
    colour = np.array([[[level + r % 25 - 12]], [[level]], [[level + b % 25 - 12]]], np.int16)
    _blend(canvas, x * side >> 8, y * side >> 8, alpha, colour)


def _paint(canvas: np.ndarray, thing: Thing, tape: Tape):
    shape = shapes.stamp(thing.shape, thing.diameter, thing.degrees)
    r, g, b, phase, *_ = _bytes(tape, 8)
    colour = COLOUR_NAMES[thing.colour]
    tone = [min(255, max(0, c + lot % 17 - 8)) for c, lot in zip(COLOURS[colour], (r, g, b))]
    paint = np.array(tone, np.int16).reshape(3, 1, 1) + shape.shade
    if thing.texture:
        pattern = shapes.texture(thing.texture, len(shape.alpha), thing.diameter, phase % 4)
        paint += (_second(colour, tone) * pattern) >> 7
    np.maximum(paint, 0, out=paint)
    np.minimum(paint, 255, out=paint)
    _blend(canvas, thing.x, thing.y, shape.alpha, paint)


def _second(colour: str, tone: list[int]) -> np.ndarray:
    """What turns a colour into the second tone of a texture, int16 [3, 1, 1]."""
    if colour in LIGHTENED:
        change = [(255 - c) * 42 // 100 for c in tone]
    else:
        change = [-(c * 40 // 100) for c in tone]
    return np.array(change, np.int16).reshape(3, 1, 1)
