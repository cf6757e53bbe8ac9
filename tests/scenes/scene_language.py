"""Reads captions and questions back, from their text alone, and checks them against the objects of a record.

Written apart from the code that makes them: it knows the words, not the styles.
"""

import re

NUMBERS = ["zero", "one", "two", "three", "four", "five"]
SHAPES = ["square", "triangle", "star", "cross", "ring", "bar", "crescent", "hourglass"]
SHAPES += ["circle", "heart", "diamond", "arrow", "bolt", "clover", "drop", "house"]
COLOURS = ["red", "green", "blue", "yellow", "purple", "cyan", "white", "black", "orange", "pink", "brown", "lime"]
TEXTURES = ["plain", "striped", "dotted", "checked", "wavy", "netted"]
SIZES = ["small", "large"]
SINGULAR = {(s + "es" if s.endswith("s") else s + "s"): s for s in SHAPES} | {"objects": "object"}
RELATIONS = ["left of", "right of", "above", "below"]
PLACES = ["in the top left", "in the top right", "in the bottom left", "in the bottom right", "at the top",
          "at the bottom", "on the left", "on the right", "in the middle"]  # fmt: skip

_nouns = "|".join([*SHAPES, *SINGULAR, "object"])
_adjectives = "|".join([*COLOURS, *TEXTURES, *SIZES])
NP = rf"((?:(?:{_adjectives}) )*(?:{_nouns}))\b"
_where = "|".join(PLACES)


def parts(phrase):
    """{"colour": "red", "shape": "star", ...} of a noun phrase."""
    found = {}
    for word in phrase.split():
        word = SINGULAR.get(word, word)
        for key, table in (("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("size", SIZES)):
            if word in table:
                assert key not in found, phrase
                found[key] = word
    return found


def fits(thing, phrase):
    return all(thing[k] == v for k, v in parts(phrase).items())


def matching(objects, phrase):
    return [t for t in objects if fits(t, phrase)]


def related(a, b, how):
    """By the centres; clearly so, that is, more this way than across."""
    dx, dy = a["center"][0] - b["center"][0], a["center"][1] - b["center"][1]
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[how]
    return along > abs(across)


def placed(thing, place, side):
    x, y = (c / side for c in thing["center"])
    words = place.split()[2:]
    for word, value in (("left", x), ("right", 1 - x), ("top", y), ("bottom", 1 - y)):
        if word in words and not value < 0.45:
            return False
    return words != ["middle"] or (0.4 < x < 0.6 and 0.4 < y < 0.6)


def assigned(objects, phrases):
    """Whether the phrases can name that many different objects."""
    if not phrases:
        return True
    return any(assigned(objects[:i] + objects[i + 1 :], phrases[1:]) for i in range(len(objects))
               if fits(objects[i], phrases[0]))  # fmt: skip


def faults(text, objects, side):
    """What is untrue in a caption, as a list of strings."""
    found = []
    phrases = re.findall(NP, text)
    phrases = [p for p in phrases if not p.endswith(("object", "objects"))]
    if not phrases:
        found.append("names nothing")
    if not assigned(list(objects), phrases):
        found.append("names objects that are not there")
    for number in re.findall(rf"\b({'|'.join(NUMBERS)}) objects?\b", text):
        if NUMBERS.index(number) != len(objects):
            found.append(f"counts {number}")
    for a, how, b in re.findall(rf"{NP} (?:is )?({'|'.join(RELATIONS)}) (?:an?|the) {NP}", text):
        pairs = [(x, y) for x in matching(objects, a) for y in matching(objects, b) if x is not y]
        if not any(related(x, y, how) for x, y in pairs):
            found.append(f"{a} is not {how} {b}")
    for a, place in re.findall(rf"{NP} (?:is )?({_where})", text):
        if not any(placed(t, place, side) for t in matching(objects, a)):
            found.append(f"{a} is not {place}")
    return found


def _only(objects, phrase):
    found = matching(objects, phrase)
    assert len(found) == 1, f"{phrase!r} fits {len(found)} objects"
    return found[0]


def answer(question, objects):
    """The answer, worked out from the words of the question."""
    yes = {True: "yes", False: "no"}
    rel = "|".join(RELATIONS)
    if m := re.fullmatch(rf"is there an? {NP}\?", question):
        return yes[bool(matching(objects, m[1]))]
    if m := re.fullmatch(rf"how many {NP} are there\?", question):
        return NUMBERS[len(matching(objects, m[1]))]
    if m := re.fullmatch(rf"(?:what (shape|colour|texture)|how large) is the (?:object ({rel}) the )?{NP}\?", question):
        thing = _only(objects, m[3])
        if m[2]:
            there = [t for t in objects if t is not thing and related(t, thing, m[2])]
            assert len(there) == 1
            thing = there[0]
        return thing[m[1] or "size"]
    if m := re.fullmatch(rf"are there more {NP} than {NP}\?", question):
        return yes[len(matching(objects, m[1])) > len(matching(objects, m[2]))]
    if m := re.fullmatch(rf"is the {NP} the same (shape|colour|size|texture) as the {NP}\?", question):
        return yes[_only(objects, m[1])[m[2]] == _only(objects, m[3])[m[2]]]
    if m := re.fullmatch(rf"is the {NP} (larger|smaller) than the {NP}\?", question):
        a, b = SIZES.index(_only(objects, m[1])["size"]), SIZES.index(_only(objects, m[3])["size"])
        assert a != b
        return yes[a > b if m[2] == "larger" else a < b]
    if m := re.fullmatch(rf"is the {NP} ({rel}) the {NP}\?", question):
        return yes[related(_only(objects, m[1]), _only(objects, m[3]), m[2])]
    raise AssertionError(f"cannot read {question!r}")
