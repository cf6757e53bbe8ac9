"""Captions from the rows and json members of sources: which field holds them, and what its value means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from maeclip_jax import errors
from maeclip_jax.errors import BadRecord

FIELDS = ("captions", "caption", "texts", "text", "txt", "sentences", "sentence", "title", "comment", "description",
          "prompt", "alt_text", "alt", "conversations")  # fmt: skip
_INNER = ("raw", "caption", "text", "value", "sentence")  # of the objects in a list
_ANSWERS = ("gpt", "assistant")  # who speaks the caption in a conversation


def pick(row: object, path: str) -> object:
    """The value at a path such as `caption`, `caption.en` or `captions[].text`; None if there is none.

    A name that holds a dot is found before its parts are.
    """
    if isinstance(row, Mapping) and path in row:
        return row[path]
    name, _, rest = path.partition(".")
    each = name.endswith("[]")
    value = row.get(name.removesuffix("[]")) if isinstance(row, Mapping) else None
    if each:
        return [pick(v, rest) if rest else v for v in value] if isinstance(value, list | tuple) else None
    return pick(value, rest) if rest else value


def holds(row: Mapping, path: str) -> bool:
    """Whether a row has the field at which a path starts, whatever its value."""
    return path in row or re.split(r"\[\]|\.", path)[0] in row


def usual(names: Iterable[str]) -> str:
    """The first usual field among `names`, in any case of letters; "" if there is none."""
    by_small: dict[str, str] = {}
    for name in names:
        by_small.setdefault(name.lower(), name)
    return next((by_small[f] for f in FIELDS if f in by_small), "")


def of_row(row: Mapping, path: str = "") -> object:
    """The value at `path`, or of the first usual field that has one; an empty one only where no other has any."""
    if path:
        return pick(row, path)
    found = [row[n] for f in FIELDS for n in row if n.lower() == f and row[n] is not None]
    return next((value for value in found if not _is_empty(value)), found[0] if found else None)


def _is_empty(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_empty, value))
    return value is None or (isinstance(value, str) and not value.strip())


def of_cell(value: object) -> object:
    """The value of a csv cell: a list of texts, if the whole cell is one in JSON (Hugging Face's Flickr30k)."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) and all(isinstance(v, str) for v in found) else value


def texts(value: object) -> tuple[str, ...]:
    """The captions from one text, a list of texts, a list of objects with a text, or a conversation.

    A mark of byte order at the beginning is left out; all else stays as it is. What is null beside texts is an empty
    text. BadRecord(no_caption) for what is none.
    """
    if isinstance(value, str):
        return (value.removeprefix("\ufeff"),)
    if isinstance(value, list | tuple) and value:
        if all(v is None or isinstance(v, Mapping) for v in value):
            value = _of_objects([v or {} for v in value])
        if any(v is not None for v in value) and all(v is None or isinstance(v, str) for v in value):
            return tuple((v or "").removeprefix("\ufeff") for v in value)
        value = value if any(v is not None for v in value) else None
    raise BadRecord("no_caption", "none given" if value is None or value == [] else f"{value!r:.60} is not text")


def _of_objects(values: list[Mapping]) -> list:
    if any("from" in v or "role" in v for v in values):
        spoken = [v.get("value", v.get("content")) for v in values if v.get("from", v.get("role")) in _ANSWERS]
        return spoken[:1]  # further answers are about questions
    return [next((v[n] for n in _INNER if isinstance(v.get(n), str)), None) for v in values]


def described(row: Mapping) -> str:
    """The fields of a row that hold text, as paths with an example each."""
    found = [f"{path} ({text!r:.40})" for path, text in _leaves(row, "")]
    return ", ".join(found[:20]) or "none: it has no text"


def check(path: str, row: Mapping, where: str, flag: str = "caption_column") -> None:
    """Raises UserError with the fields that are there if the row has nothing at `path`."""
    if holds(row, path):
        return
    paths = [p for p, _ in _leaves(row, "")]
    wrong = errors.unknown(flag, path, paths or list(row) or ["none: it has no fields"])
    raise errors.UserError(f"{where}: {wrong}")


def _leaves(value: object, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, str) and value.strip():
        yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple) and value:
        yield from _leaves(value[0], f"{path}[]")
