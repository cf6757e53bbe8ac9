"""Answers to questions about pictures: their normal form, how right one is, soft targets, vocabularies of answers.

Text rules and accuracy are those published with VQA (Antol et al. 2015; Goyal et al. 2017; visualqa.org, Evaluation):
an answer is as right as a third of the annotators who gave it, at most 1, averaged over all ways to leave one
annotator out. Two things differ from the published program, both without effect on its own released annotations:
the normal form is taken of every reference (the program leaves unanimous ones as they are), and a single reference
asks for an exact match (the program would give 0).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from maeclip_jax.errors import UserError, storage

ENOUGH = 3  # annotators who must agree for full marks

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(n) for n, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")  # a point before a digit is a decimal point

# Each may be written with one apostrophe missing. Those that are other words then (she'd, we'd, he'll) are not here.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()  # noqa: SIM905
_SPELLED = {word[: m.start()] + word[m.end() :]: word for word in _CONTRACTIONS for m in re.finditer("'", word)} | {
    "somebody'd": "somebodyd"
}  # as published: the other way round


@functools.lru_cache(1 << 16)  # annotators give the same few answers again and again
def normalise(text: str) -> str:
    """The normal form in which answers are compared: "Two dogs." -> "2 dogs", "the 1,000" -> "1000".

    Small letters, no articles, number words up to ten as digits, apostrophes of contractions put back. Punctuation
    goes away beside a space (or if the text has a number such as 1,000 in it) and becomes a space elsewhere
    ("black-white" -> "black white"); full stops go away, decimal points stay.
    """
    text = " ".join(text.split("\n")).replace("\t", " ").strip()
    number = _THOUSANDS.search(text)
    marks = {ord(m): "" if number or f"{m} " in text or f" {m}" in text else " " for m in _MARKS}
    words = _FULL_STOP.sub("", text.translate(marks)).lower().split()
    words = [w for w in (_DIGITS.get(w, w) for w in words) if w not in _ARTICLES]
    return " ".join(_SPELLED.get(w, w) for w in words)


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """How right an answer is, 0 to 1: the mean over references left out of min(matches among the others / 3, 1).

    A single reference asks for an exact match. Everything is compared in its normal form. The rule is made for ten
    annotators; with two or three, even a unanimous answer scores less than 1. ValueError without references.
    """
    if not references:
        raise ValueError("an answer without references cannot be judged")
    said, count = normalise(prediction), len(references)
    matches = sum(normalise(r) == said for r in references)
    if count == 1:
        return float(matches)
    # Leaving out one of the matching references leaves matches - 1, any other one leaves all.
    thirds = matches * min(matches - 1, ENOUGH) + (count - matches) * min(matches, ENOUGH)
    return thirds / (ENOUGH * count)


def soft_scores(references: Sequence[str]) -> dict[str, float]:
    """Normal form -> min(n / 3, 1) of the n annotators who gave it (1 for a single reference), the commonest first.

    Equally common ones in alphabetical order. An answer of only punctuation and articles has no normal form and is
    left out.
    """
    counts = Counter(normalise(r) for r in references)
    ordered = sorted((-n, said) for said, n in counts.items() if said)
    return {said: 1.0 if len(references) == 1 else min(-n / ENOUGH, 1.0) for n, said in ordered}


def vocabulary(counts: Mapping[str, int], min_count: int = 1, top: int = 0) -> dict[str, int]:
    """The answers given at least `min_count` times, the commonest first (then alphabetically); `top` > 0: no more."""
    ordered = sorted((-n, answer) for answer, n in counts.items() if n >= min_count)
    return {answer: -n for n, answer in (ordered[:top] if top else ordered)}


def write(path: epath.PathLike, counts: Mapping[str, int]) -> None:
    """A vocabulary as text: an answer a line, a tab, its count."""
    with storage.writing(path):
        epath.Path(path).write_text("".join(f"{answer}\t{n}\n" for answer, n in counts.items()))


def read(path: epath.PathLike) -> dict[str, int]:
    """A vocabulary from text, in the order of its lines: answer, or answer, tab, count (0 if it is missing).

    Answers are normalised; of those that become equal, the first stays, with the sum of their counts.
    Raises UserError if the file is missing, holds no answer, or has a count that is not a number.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"no answers at {path}; valid: a text file with an answer a line (answer, or answer TAB count)")
    counts: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        answer, _, count = line.removesuffix("\r").partition("\t")
        if not (count.strip() or "0").isdigit():
            raise UserError(f"{path}, line {number}: {count!r} is not a count; valid: answer, or answer TAB count")
        if answer := normalise(answer):
            counts[answer] = counts.get(answer, 0) + int(count.strip() or 0)
    if not counts:
        raise UserError(f"{path} holds no answer; valid: a text file with an answer a line")
    return counts


def join(references: Iterable[str]) -> str:
    """References as one text, a line each: how data sets and batches hold them."""
    return "\n".join(" ".join(r.splitlines()) for r in references)


def split(references: str) -> list[str]:
    """The inverse of `join`; "" is not a reference."""
    return references.split("\n") if references else []
