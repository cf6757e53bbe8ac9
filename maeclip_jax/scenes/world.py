"""What a scene is: the tables of concepts, the knobs, and the drawing of lots that places the objects.

A scene is a pure function of (spec, seed, split, index). Lots come from the raw numbers of a Philox generator keyed
by (seed, split; index) and are turned into choices with integer arithmetic only: numpy promises the raw stream to
stay what it is, which it does not promise of its distributions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maeclip_jax.errors import UserError, unknown
from maeclip_jax.scenes import shapes

SHAPES = shapes.NAMES
TEXTURES = shapes.TEXTURE_NAMES
SIZES = ("small", "large")
# In the order in which they enter; the first eight are the easiest to tell apart. RGB.
COLOURS = {
    "red": (216, 36, 36), "green": (28, 148, 60), "blue": (38, 80, 218), "yellow": (246, 216, 40),
    "purple": (138, 54, 182), "cyan": (58, 208, 222), "white": (246, 246, 246), "black": (26, 26, 28),
    "orange": (246, 132, 26), "pink": (252, 150, 194), "brown": (118, 72, 36), "lime": (164, 228, 48),
}  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)
SPLITS = ("train", "val", "test", "classify", "heldout", "heldout_multi")

# Diameters in percent of the picture's side, (small, large), and percent of that for 1, 2, ... objects in the picture;
# where there are never more than three, there is room for larger ones. Any large object is larger than any small one,
# whatever else is in its picture, so "large" has one meaning in a data set.
ROOMY = ((40, 46), (60, 70)), (100, 90, 84)
DENSE = ((34, 38), (52, 64)), (100, 96, 92, 84, 78)
MOST_LARGE = (1, 2, 2, 2, 1)
APART = 88  # percent of the sum of two radii that must lie between two centres


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """The knobs of the data set. Raises UserError, naming the knob and its range, for values out of range.

    Attributes:
      resolution: side of the picture in pixels.
      objects: fewest and most objects in a picture, 1 to 5.
      scale: size of the objects; 1 is as large as so many of them allow, 0.5 half of that.
      shapes, colours, textures: how many concepts of each table occur; the first eight shapes and colours are
        the easiest to tell apart. Classes are the pairs "<colour> <shape>".
      heldout_pairs: how many of those pairs are kept for the splits `heldout` and `heldout_multi`, and occur in no
        other split but `classify`, which holds every class; nor do noisy captions and questions of training name them.
        Every concept still occurs in training, in other pairs.
      diversity: share of the remaining pairs that occur in `train` and `val`. Smaller sets are subsets of larger
        ones, and the other splits do not change with it.
      caption_noise: probability that a caption in training is wrong or poor: of another scene, with attributes
        swapped, or with things left out.
      captions: captions per picture.
      questions: questions per picture.
      rotation: largest turn of an object in degrees, in steps of 5.
    """

    resolution: int = 64
    objects: tuple[int, int] = (1, 3)
    scale: float = 1.0
    shapes: int = 8
    colours: int = 8
    textures: int = 4
    heldout_pairs: int = 0
    diversity: float = 1.0
    caption_noise: float = 0.0
    captions: int = 3
    questions: int = 4
    rotation: int = 10

    def __post_init__(self):
        object.__setattr__(self, "objects", tuple(self.objects))
        ranges = dict(
            resolution=(24, 1024), scale=(0.5, 1.0), rotation=(0, 20), captions=(1, 16), questions=(0, 16),
            shapes=(3, len(SHAPES)), colours=(3, len(COLOURS)), textures=(1, len(TEXTURES)),
            heldout_pairs=(0, self.shapes * self.colours - 1), diversity=(0.0, 1.0), caption_noise=(0.0, 1.0),
        )  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"scenes: {name}={getattr(self, name)!r}; valid: {low} to {high}")
        if len(self.objects) != 2 or not 1 <= self.objects[0] <= self.objects[1] <= 5:
            raise UserError(f"scenes: objects={self.objects!r}; valid: (fewest, most) with 1 <= fewest <= most <= 5")
        pairs(self)

    @classmethod
    def of(cls, **knobs) -> SceneSpec:
        """A spec from named knobs; an unknown name is a UserError that lists the valid ones."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in knobs:
            if name not in names:
                raise unknown("knob of scenes", name, names)
        return cls(**knobs)

    @property
    def classes(self) -> list[str]:
        """Names of all classes, "<colour> <shape>"; class number = colour * shapes + shape."""
        return [f"{c} {s}" for c in COLOUR_NAMES[: self.colours] for s in SHAPES[: self.shapes]]


class Pairs(NamedTuple):
    """(colour, shape) pairs by the part they play."""

    train: tuple[tuple[int, int], ...]  # what train and val are drawn from
    known: tuple[tuple[int, int], ...]  # everything that is not held out: what test is drawn from
    heldout: tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=64)
def pairs(spec: SceneSpec) -> Pairs:
    """Divides the classes; raises UserError where a colour or a shape would never be seen in training.

    The pairs are put in the order of the diagonals of the colour x shape table, the diagonals in a fixed random
    order: held out are the first, trained on are the last, so both parts are balanced over colours and shapes.
    """
    size = max(spec.colours, spec.shapes)
    lots = np.random.Philox(key=size).random_raw(size).tolist()
    rank = {d: i for i, d in enumerate(sorted(range(size), key=lots.__getitem__))}
    table = [(c, s) for c in range(spec.colours) for s in range(spec.shapes)]
    table.sort(key=lambda pair: (rank[(pair[1] - pair[0]) % size], lots[pair[0]]))
    heldout, known = table[: spec.heldout_pairs], table[spec.heldout_pairs :]
    train = known[len(known) - round(spec.diversity * len(known)) :]
    for what, count, seen in (
        ("colours", spec.colours, {c for c, _ in train}),
        ("shapes", spec.shapes, {s for _, s in train}),
    ):
        if len(seen) < count:
            raise UserError(
                f"scenes: heldout_pairs={spec.heldout_pairs} and diversity={spec.diversity} leave {len(train)} of "
                f"{len(table)} pairs and {len(seen)} of {count} {what} in training; "
                "valid: fewer held out, or a diversity nearer to 1"
            )
    return Pairs(tuple(train), tuple(known), tuple(heldout))


AMONG = ("all", "seen", "unseen")


def combinations(spec: SceneSpec, among: str, split: str) -> tuple[int, ...]:
    """Numbers of the classes that `train` shows ("seen") or never shows ("unseen"), in order; () for "all".

    UserError for another word, for a split that is not balanced over classes, and for a class that does not exist.
    """
    if among not in AMONG:
        raise unknown("among of scenes", among, AMONG)
    if among == "all":
        return ()
    if split != "classify":
        raise UserError(f"scenes: among={among} is of split='classify', which shows all classes, not of {split!r}")
    shown = {colour * spec.shapes + shape for colour, shape in pairs(spec).train}
    found = tuple(k for k in range(len(spec.classes)) if (k in shown) == (among == "seen"))
    if not found:
        raise UserError("scenes: training shows every class; valid: heldout_pairs >= 1 or a diversity below 1")
    return found


class Tape:
    """Lots for one purpose: integers read off the raw numbers of a Philox generator.

    Streams differ in the generator's counter, so that, say, the pixels of a scene do not depend on how many lots
    its captions used up.
    """

    __slots__ = ("_key", "_numbers", "_round", "_stream")

    def __init__(self, numbers: list[int], key: int, stream: int):
        self._numbers, self._key, self._stream, self._round = numbers, key, stream, 0

    def number(self) -> int:
        if not self._numbers:
            self._round += 1
            counter = (self._stream << 192) | (self._round << 128)
            self._numbers = np.random.Philox(key=self._key, counter=counter).random_raw(64).tolist()
        return self._numbers.pop()

    def below(self, n: int) -> int:
        """Uniform over 0 .. n - 1."""
        return (self.number() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """Uniform over low .. high, both included."""
        return low + ((self.number() * (high - low + 1)) >> 64)

    def chance(self, percent: int) -> bool:
        return self.number() * 100 >> 64 < percent

    def pick(self, options: Sequence):
        return options[(self.number() * len(options)) >> 64]

    def shuffled(self, items: Sequence) -> list:
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = (self.number() * (i + 1)) >> 64
            items[i], items[j] = items[j], items[i]
        return items


STREAMS = (("layout", 64), ("paint", 64), ("caption", 64), ("question", 64))  # and how many numbers are made at once


def tapes(seed: int, split: str, index: int) -> tuple[Tape, Tape, Tape, Tape]:
    """The lots for layout, paint, captions and questions of one scene.

    Raises UserError for an unknown split and for a seed outside 0 .. 2**56 - 1.
    """
    if split not in SPLITS:
        raise unknown("split of scenes", split, SPLITS)
    if not 0 <= seed < 2**56:
        raise UserError(f"scenes: seed={seed}; valid: 0 to 2**56 - 1")
    key = (index << 64) | (seed << 8) | SPLITS.index(split)
    numbers = np.random.Philox(key=key).random_raw(sum(n for _, n in STREAMS)).tolist()
    made, start = [], 0
    for stream, (_, n) in enumerate(STREAMS):
        made.append(Tape(numbers[start : start + n], key, stream + 1))
        start += n
    return tuple(made)


class Thing(NamedTuple):
    """One object: numbers into the tables, and its place in pixels."""

    shape: int
    colour: int
    size: int
    texture: int
    x: int  # of the centre, to the right
    y: int  # of the centre, down
    diameter: int
    degrees: int

    @property
    def label(self) -> tuple[int, int, int, int]:
        """What can be said of the thing without its place."""
        return self.shape, self.colour, self.size, self.texture


def layout(spec: SceneSpec, tape: Tape, split: str = "train", index: int = 0) -> list[Thing]:
    """The objects of a scene, the largest first (they are painted in this order).

    `index` matters only where the split is balanced: class number `index` modulo the number of classes.
    """
    single = split in ("classify", "heldout")
    n = 1 if single else tape.between(*spec.objects)
    if split == "heldout_multi":
        n = max(n, min(2, spec.objects[1]))
    chosen = _concepts(spec, tape, split, index, n)
    sizes = [tape.below(2) for _ in range(n)]
    for i in range(n):
        if sum(sizes) > MOST_LARGE[n - 1]:
            sizes[i] = 0
    step = max(1, spec.resolution // 56)  # few diameters, so that few stamps are ever drawn
    diameters, crowd = ROOMY if spec.objects[1] <= len(ROOMY[1]) else DENSE
    scale = round(spec.scale * 1000) * crowd[n - 1]
    drawn = []
    for (colour, shape), size in zip(chosen, sizes):
        small, large = (spec.resolution * percent * scale for percent in diameters[size])
        low, high = -(-small // (step * 10**7)), large // (step * 10**7)
        diameter = step * tape.between(low, max(low, high))
        turn = 5 * tape.between(-(spec.rotation // 5), spec.rotation // 5)
        drawn.append((diameter, shape, colour, size, tape.below(spec.textures), turn))
    drawn.sort(key=lambda d: -d[0])
    places = _places(spec.resolution, tape, [d[0] for d in drawn])
    return [
        Thing(shape, colour, size, texture, x, y, diameter, turn)
        for (diameter, shape, colour, size, texture, turn), (x, y) in zip(drawn, places)
    ]


def _concepts(spec: SceneSpec, tape: Tape, split: str, index: int, n: int) -> list[tuple[int, int]]:
    parts = pairs(spec)
    if split == "classify":
        return [divmod(index % (spec.colours * spec.shapes), spec.shapes)]
    if split.startswith("heldout") and not parts.heldout:
        raise UserError(f"scenes: split {split!r} is empty because heldout_pairs=0; valid: heldout_pairs >= 1")
    if split == "heldout":
        return [parts.heldout[index % len(parts.heldout)]]
    common = parts.train if split in ("train", "val") else parts.known
    chosen = []
    for i in range(n):
        pool = parts.heldout if split == "heldout_multi" and (i == 0 or tape.chance(50)) else common
        pair = tape.pick(pool)
        # Half of the later objects share a colour or a shape with an earlier one: only then are counting, comparing
        # and telling who has which attribute worth asking.
        if i and tape.chance(50):
            axis, (like) = tape.below(2), tape.pick(chosen)
            alike = [p for p in pool if p[axis] == like[axis]]
            pair = tape.pick(alike) if alike else pair
        chosen.append(pair)
    return chosen


def _places(side: int, tape: Tape, diameters: list[int]) -> list[tuple[int, int]]:
    """Centres that keep every object inside and mostly visible; `diameters` in falling order."""
    for _ in range(4):
        places: list[tuple[int, int]] = []
        for i, d in enumerate(diameters):
            edge = d // 2 + 1
            for _ in range(10):
                x, y = tape.between(edge, side - edge), tape.between(edge, side - edge)
                if all(_apart(x - u, y - v, d + diameters[j]) for j, (u, v) in enumerate(places)):
                    places.append((x, y))
                    break
            else:
                break
            if i == len(diameters) - 1:
                return places
    # No luck: a lattice on which the largest two lie on a diagonal.
    if len(diameters) <= 4:
        cells = [(1, 1, 4), (3, 3, 4), (3, 1, 4), (1, 3, 4)]
    else:
        cells = [(1, 1, 4), (5, 3, 4), (5, 1, 4), (1, 3, 4), (3, 3, 4)]
    columns = 4 if len(diameters) <= 4 else 6
    flip_x, flip_y = tape.below(2), tape.below(2)
    places = []
    for d, (column, row, rows) in zip(diameters, cells):
        edge = d // 2 + 1
        x = min(max(side * column // columns, edge), side - edge)
        y = min(max(side * row // rows, edge), side - edge)
        places.append((side - x if flip_x else x, side - y if flip_y else y))
    return places


def _apart(dx: int, dy: int, diameters: int) -> bool:
    return (dx * dx + dy * dy) * 40000 >= (diameters * APART) ** 2


def relation(a: Thing, b: Thing) -> str | None:
    """Where `a` is as seen from `b`: "left of", "right of", "above", "below", or None where it is not clear."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) * 4 >= abs(dy) * 5:
        return "left of" if dx < 0 else "right of"
    if abs(dy) * 4 >= abs(dx) * 5:
        return "above" if dy < 0 else "below"
    return None


def region(thing: Thing, side: int) -> tuple[str, str]:
    """Vertical and horizontal part of the picture: ("top"|"middle"|"bottom", "left"|"middle"|"right")."""

    def third(p, names):
        return names[0] if p * 100 < side * 42 else names[2] if p * 100 > side * 58 else names[1]

    return third(thing.y, ("top", "middle", "bottom")), third(thing.x, ("left", "middle", "right"))
