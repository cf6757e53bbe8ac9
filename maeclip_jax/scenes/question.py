"""Questions about a scene with one-word answers: does it exist, how many, which attribute, how do two compare.

Every kind aims at an answer first and then looks for a question that has it, so that no kind can be answered well
without looking: half of the yes-or-no questions are true, wrong descriptions are made of what the scene does show
("is there a red star?" beside a red circle and a blue star), and counts spread over what the scene allows.
"""

from __future__ import annotations

import itertools

from maeclip_jax.scenes.caption import NUMBERS, with_article
from maeclip_jax.scenes.world import COLOUR_NAMES, SHAPES, SIZES, TEXTURES, SceneSpec, Tape, Thing, pairs, relation

KINDS = ("exist", "count", "query", "compare")
PLURALS = tuple(s + "es" if s.endswith("s") else s + "s" for s in SHAPES)
ATTRIBUTES = ("shape", "colour", "size", "texture")
TABLES = {"shape": SHAPES, "colour": COLOUR_NAMES, "size": SIZES, "texture": TEXTURES}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

EXIST = (("colour", "shape"), ("colour", "shape"), ("colour",), ("shape",), ("size", "shape"), ("texture", "colour"))


def questions(spec: SceneSpec, things: list[Thing], tape: Tape, split: str = "train") -> list[dict]:
    """`spec.questions` of them, the kinds in turn: dicts of `question`, `answer` and `kind`.

    Those of `train` and `val` name colour and shape of pairs that occur there, lest a pair that does not be learnt as
    one whose answer is "no"; others only where a picture shows all of the former.
    """
    avoided = frozenset()
    if split in ("train", "val"):
        avoided = frozenset(itertools.product(range(spec.colours), range(spec.shapes))) - set(pairs(spec).train)
    found = []
    for i in range(spec.questions):
        kind = KINDS[i % len(KINDS)]
        question, answer = ASK[kind](spec, things, tape, avoided)
        found.append({"question": question, "answer": answer, "kind": kind})
    return found


def described(parts: dict[str, int], noun: str = "object", plural: bool = False) -> str:
    """A noun phrase from attributes: dict(colour=0, shape=1) -> "red triangle"; no shape -> "object"."""
    words = [TABLES[k][parts[k]] for k in ("size", "texture", "colour") if k in parts]
    if "shape" in parts:
        noun = (PLURALS if plural else SHAPES)[parts["shape"]]
    elif plural:
        noun += "s"
    return " ".join([*words, noun])


def matching(things: list[Thing], parts: dict[str, int]) -> list[Thing]:
    return [t for t in things if all(getattr(t, k) == v for k, v in parts.items())]


def _limit(spec: SceneSpec, attribute: str) -> int:
    return {"shape": spec.shapes, "colour": spec.colours, "size": 2, "texture": spec.textures}[attribute]


def _exist(spec, things, tape, avoided):
    wanted = tape.chance(50)
    keys = tape.pick(EXIST)
    thing = tape.pick(things)
    parts = {k: getattr(thing, k) for k in keys}
    if not wanted:
        parts = _absent(spec, things, tape, keys, parts, avoided)
    return f"is there {with_article(described(parts))}?", "yes" if wanted else "no"


def _absent(spec, things, tape, keys, parts, avoided):
    """A description that fits nothing: of attributes of different objects if there is one, else with a wrong one."""

    def fits_nothing(parts):
        return not matching(things, parts) and (parts.get("colour"), parts.get("shape")) not in avoided

    if len(keys) == 2:
        for a in tape.shuffled(things):
            for b in things:
                mixed = {keys[0]: getattr(a, keys[0]), keys[1]: getattr(b, keys[1])}
                if fits_nothing(mixed):
                    return mixed
    for key in tape.shuffled(keys):
        for value in tape.shuffled(range(_limit(spec, key))):
            wrong = {**parts, key: value}
            if fits_nothing(wrong):
                return wrong
    # Every such description fits something (few textures, two sizes); of colour and shape there are always others.
    free = [{"colour": c, "shape": s} for c in range(spec.colours) for s in range(spec.shapes)]
    free = [parts for parts in free if not matching(things, parts)]
    return tape.pick([parts for parts in free if fits_nothing(parts)] or free)


def _count(spec, things, tape, _):
    options: dict[int, list[dict]] = {}
    if len(things) < spec.objects[1] or tape.chance(25):
        options[len(things)] = [{}]
    for key in ("colour", "shape", "texture", "size"):
        for value in range(_limit(spec, key)):
            options.setdefault(len(matching(things, {key: value})), []).append({key: value})
    answer = tape.pick(sorted(options))
    parts = tape.pick(options[answer])
    return f"how many {described(parts, plural=True)} are there?", NUMBERS[answer]


def _reference(things, tape, thing, hidden):
    """A description that fits `thing` alone and does not mention `hidden`; None if there is none."""
    for keys in (*tape.shuffled([("shape",), ("colour",)]), ("colour", "shape"), ("size", "shape"), ("size", "colour"),
                 ("size", "colour", "shape"), ("size", "texture", "colour", "shape")):  # fmt: skip
        if hidden not in keys:
            parts = {k: getattr(thing, k) for k in keys}
            if len(matching(things, parts)) == 1:
                return described(parts)
    return None


def _beyond(a: Thing, b: Thing, how: str) -> bool:
    """Whether `a` might be said to lie `how` of `b`, however far to the side."""
    return {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[how]


def _query(spec, things, tape, avoided):
    keys = [k for k in ATTRIBUTES if _limit(spec, k) > 1]
    for key in tape.shuffled(keys):
        verb = "how large" if key == "size" else f"what {key}"
        for thing in tape.shuffled(things):
            answer = TABLES[key][getattr(thing, key)]
            if tape.chance(35):
                for other in things:
                    how = other is not thing and relation(thing, other)
                    if how and sum(_beyond(t, other, how) for t in things) == 1:
                        name = _reference(things, tape, other, "")
                        if name:
                            return f"{verb} is the object {how} the {name}?", answer
            name = "object" if len(things) == 1 else _reference(things, tape, thing, key)
            if name:
                return f"{verb} is the {name}?", answer
    return _exist(spec, things, tape, avoided)  # objects that differ in nothing


def _compare(spec, things, tape, _):
    wanted = tape.chance(50)
    ways = tape.shuffled((_same, _larger, _where)) if len(things) > 1 and tape.chance(70) else []
    for way in ways:
        if question := way(things, tape, wanted):
            return question, "yes" if wanted else "no"
    return _more(spec, things, tape, wanted)


def _named_pairs(things, tape, hidden):
    for a in tape.shuffled(things):
        for b in things:
            if a is not b:
                first, second = _reference(things, tape, a, hidden), _reference(things, tape, b, hidden)
                if first and second:
                    yield a, first, b, second


def _same(things, tape, wanted):
    for key in tape.shuffled(("colour", "shape", "size", "texture")):
        for a, first, b, second in _named_pairs(things, tape, key):
            if (getattr(a, key) == getattr(b, key)) == wanted:
                return f"is the {first} the same {key} as the {second}?"
    return None


def _larger(things, tape, wanted):
    for a, first, b, second in _named_pairs(things, tape, "size"):
        if a.size != b.size:
            word = "larger" if (a.size > b.size) == wanted else "smaller"
            return f"is the {first} {word} than the {second}?"
    return None


def _where(things, tape, wanted):
    for a, first, b, second in _named_pairs(things, tape, ""):
        if how := relation(a, b):
            return f"is the {first} {how if wanted else OPPOSITE[how]} the {second}?"
    return None


def _more(spec, things, tape, wanted):
    """ "are there more red objects than blue objects?": of two values of a colour or shape that differ in number."""
    key = tape.pick(("colour", "shape"))
    counts = [len(matching(things, {key: v})) for v in range(_limit(spec, key))]
    present = [v for v, n in enumerate(counts) if n]
    first = tape.pick(present)
    # Against another one of the scene where that decides, else against one that is not there.
    rivals = [v for v in present if counts[v] != counts[first]] or [v for v, n in enumerate(counts) if not n]
    second = tape.pick(rivals or [v for v in present if v != first])
    if (counts[first] > counts[second]) != wanted:
        first, second = second, first
    question = f"are there more {described({key: first}, plural=True)} than {described({key: second}, plural=True)}?"
    return question, "yes" if counts[first] > counts[second] else "no"


ASK = {"exist": _exist, "count": _count, "query": _query, "compare": _compare}
