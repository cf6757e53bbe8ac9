"""Captions of a scene in several styles: terse and long, with counts, places and relations.

What a caption says is true unless it is marked noisy. In training some captions leave out sizes and textures, as
people do; in the other splits every caption names every object with all that can be said of it.
"""

from __future__ import annotations

from collections.abc import Callable

from maeclip_jax.scenes.world import (
    COLOUR_NAMES,
    SHAPES,
    SIZES,
    TEXTURES,
    SceneSpec,
    Tape,
    Thing,
    layout,
    pairs,
    region,
    relation,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five")
PLACES = {
    ("top", "left"): "in the top left", ("top", "middle"): "at the top", ("top", "right"): "in the top right",
    ("middle", "left"): "on the left", ("middle", "middle"): "in the middle", ("middle", "right"): "on the right",
    ("bottom", "left"): "in the bottom left", ("bottom", "middle"): "at the bottom",
    ("bottom", "right"): "in the bottom right",
}  # fmt: skip
OPENINGS = ("a picture of", "a photo of", "an image of", "a drawing of")


def captions(spec: SceneSpec, things: list[Thing], tape: Tape, split: str = "train") -> tuple[list[str], list[bool]]:
    """`spec.captions` captions, and which of them are noisy. Noise is for `train` only."""
    noise = round(spec.caption_noise * 10**6) if split == "train" else 0
    texts, noisy = [], []
    for _ in range(spec.captions):
        bad = bool(noise) and tape.below(10**6) < noise
        told = tape.pick(NOISES)(spec, things, tape) if bad else things
        text = caption(spec, told, tape, complete=split != "train")
        if text in texts:  # once more: styles are few where there is one object
            text = caption(spec, told, tape, complete=split != "train")
        texts.append(text)
        noisy.append(bad)
    return texts, noisy


def caption(spec: SceneSpec, things: list[Thing], tape: Tape, *, complete: bool) -> str:
    """One caption; `complete` names every size and texture."""
    if not things:
        return tape.pick(OPENINGS) + " something"
    size = complete or tape.chance(50)
    texture = complete or tape.chance(60)
    style = tape.pick(STYLES if len(things) > 1 else STYLES_OF_ONE)
    return style(tape.shuffled(things), Wording(size, texture), tape, spec.resolution)


class Wording:
    """Noun phrases of one caption, which mention sizes and textures or not."""

    __slots__ = ("size", "texture")

    def __init__(self, size: bool, texture: bool):
        self.size, self.texture = size, texture

    def bare(self, thing: Thing) -> str:
        """ "red circle", "small striped red circle" """
        phrase = COLOUR_NAMES[thing.colour] + " " + SHAPES[thing.shape]
        if self.texture and thing.texture:
            phrase = TEXTURES[thing.texture] + " " + phrase
        return SIZES[thing.size] + " " + phrase if self.size else phrase

    def a(self, thing: Thing) -> str:
        return with_article(self.bare(thing))

    def listed(self, things: list[Thing]) -> str:
        return join([self.a(t) for t in things])


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeio" or phrase.startswith("hour") else "a ") + phrase


def join(phrases: list[str]) -> str:
    """ "x", "x and y", "x, y and z" """
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _related(things: list[Thing]) -> tuple[Thing, str, Thing, list[Thing]] | None:
    """A pair with a clear relation, and the rest."""
    for i, a in enumerate(things):
        for j, b in enumerate(things):
            if i != j and (how := relation(a, b)):
                return a, how, b, [t for k, t in enumerate(things) if k not in (i, j)]
    return None


def _list(things, wording, tape, side):
    return wording.listed(things)


def _opened(things, wording, tape, side):
    return f"{tape.pick(OPENINGS)} {wording.listed(things)}"


def _terse(things, wording, tape, side):
    return ", ".join(wording.bare(t) for t in things)


def _counted(things, wording, tape, side):
    n = len(things)
    return f"{NUMBERS[n]} object{'s' if n > 1 else ''}: {', '.join(wording.a(t) for t in things)}"


def _there(things, wording, tape, side):
    found = _related(things)
    if not found:
        return f"there is {wording.listed(things)}"
    a, how, b, rest = found
    return f"there is {wording.a(a)} {how} {wording.a(b)}" + (f", and {wording.listed(rest)}" if rest else "")


def _relation(things, wording, tape, side):
    found = _related(things)
    if not found:
        return wording.listed(things)
    a, how, b, rest = found
    return f"{wording.a(a)} {how} {wording.a(b)}" + (f", with {wording.listed(rest)}" if rest else "")


def _placed(things, wording, tape, side):
    return join([f"{wording.a(t)} {PLACES[region(t, side)]}" for t in things])


def _long(things, wording, tape, side):
    n = len(things)
    head = f"{tape.pick(OPENINGS)} {NUMBERS[n]} object{'s' if n > 1 else ''}."
    if n == 1:
        return f"{head} it is {wording.a(things[0])} {PLACES[region(things[0], side)]}."
    said, todo = [], list(things)
    while len(todo) > 1 and (found := _related(todo)):
        a, how, b, todo = found
        said.append(f"the {wording.bare(a)} is {how} the {wording.bare(b)}.")
    said += [f"the {wording.bare(t)} is {PLACES[region(t, side)]}." for t in todo]
    return " ".join([head, *said])


Style = Callable[[list[Thing], Wording, Tape, int], str]
STYLES: tuple[Style, ...] = (_list, _opened, _terse, _counted, _there, _relation, _relation, _placed, _long)
STYLES_OF_ONE: tuple[Style, ...] = (_list, _opened, _opened, _terse, _there, _placed, _long)


def _other(spec: SceneSpec, things: list[Thing], tape: Tape) -> list[Thing]:
    return layout(spec, tape)


def _swapped(spec: SceneSpec, things: list[Thing], tape: Tape) -> list[Thing]:
    """Two objects exchange their colours; where that changes nothing, one object gets a wrong colour.

    What is named then is a pair of training, too. Where no other colour makes one, an object becomes another one.
    """
    shown, things = pairs(spec).train, tape.shuffled(things)
    for i, a in enumerate(things):
        for j in range(i):
            b = things[j]
            known = (b.colour, a.shape) in shown and (a.colour, b.shape) in shown
            if known and a.colour != b.colour and a.shape != b.shape:
                things[i], things[j] = a._replace(colour=b.colour), b._replace(colour=a.colour)
                return things
    for i, a in enumerate(things):
        wrong = [(a.colour + k) % spec.colours for k in range(1, spec.colours)]
        if wrong := [colour for colour in wrong if (colour, a.shape) in shown]:
            things[i] = a._replace(colour=tape.pick(wrong))
            return things
    colour, shape = tape.pick([pair for pair in shown if pair != (things[0].colour, things[0].shape)])
    return [things[0]._replace(colour=colour, shape=shape), *things[1:]]


def _dropped(spec: SceneSpec, things: list[Thing], tape: Tape) -> list[Thing]:
    return tape.shuffled(things)[: len(things) // 2]


NOISES = (_other, _swapped, _dropped)
