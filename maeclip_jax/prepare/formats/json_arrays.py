"""Rows of json files that hold one array of objects (LLaVA, ShareGPT4V), or the captions of COCO."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare.formats import remote

ARRAY, COCO = "[", "coco"
SYNTAXES = (ARRAY, COCO)
_HEAD = 1 << 16
_CHUNK = 1 << 20  # bytes of a read, and more where an object is longer
_LONGEST = 1 << 26  # bytes of one object
_SPACE = b" \t\r\n,"


def syntax(path: epath.Path) -> str:
    """ARRAY or COCO. UserError for other json."""
    with remote.opened(path, remote.SHORT) as file:
        head = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return ARRAY
    if head.startswith(b"{") and re.search(rb'"(images|annotations)"\s*:\s*\[', head):
        return COCO
    raise errors.UserError(
        f"{str(path)!r} is not a table; valid: an array of objects, or COCO's images and annotations"
    )


def rows(path: epath.Path, syntax: str, start: int, stop: int | None) -> Iterator[tuple]:
    """As `table_rows.rows`. Positions of COCO count pictures."""
    found = _elements(path, start) if syntax == ARRAY else _coco(path, start)
    for number, (begin, end, row) in enumerate(found):
        if stop is not None and begin >= stop:
            return
        yield number, begin, end, row


def _elements(path: epath.Path, start: int) -> Iterator[tuple[int, int, dict | str]]:
    """The objects of an array, each as soon as it is complete: memory holds one of them."""
    with remote.opened(path) as file:
        file.seek(start)
        buffer, offset = file.read(_CHUNK), start
        if not start:
            skipped = len(buffer) - len(buffer.removeprefix(b"\xef\xbb\xbf").lstrip()) + 1  # with the bracket
            buffer, offset = buffer[skipped:], offset + skipped
        while True:
            rest = buffer.lstrip(_SPACE)
            offset += len(buffer) - len(rest)
            buffer = rest
            end = _end(buffer)
            if end < 0:
                more = file.read(max(_CHUNK, len(buffer)))
                if not more or len(buffer) > _LONGEST:
                    if buffer:
                        yield offset, offset + len(buffer), "not JSON: the file ends, or the object is too long"
                    return
                buffer += more
                continue
            if not end:  # the bracket at the end
                return
            yield offset, offset + end, _parsed(buffer[:end])
            buffer, offset = buffer[end:], offset + end


# A text that has no end yet is a token too, lest brackets in it count as structure.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|(?P<open>\\?\Z))|[{}\[\]]', re.DOTALL)
_ATOM = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^",\]\s])[^,\]\s]*(?=[\s,\]])', re.DOTALL)


def _end(data: bytes) -> int:
    """Where the first element of `data` ends; 0 before the end of the array; -1 if it is not complete."""
    if data[:1] == b"]":
        return 0
    if not data or data[:1] not in b"{[":  # a number or a text among the objects
        found = _ATOM.match(data)
        return found.end() if found else -1
    depth = 0
    for token in _TOKEN.finditer(data):
        mark = token.group()
        if token["open"] is not None:
            return -1
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
            if not depth:
                return token.end()
    return -1


def _parsed(data: bytes) -> dict | str:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def _coco(path: epath.Path, start: int) -> Iterator[tuple[int, int, dict | str]]:
    """A row a picture, with its captions in the order of the file."""
    with remote.opened(path) as file:
        try:
            tree = json.load(file)
        except (ValueError, RecursionError) as error:
            raise errors.UserError(f"{str(path)!r} is not JSON ({error}); valid: the whole file") from None
    captions: dict[object, list[str]] = {}
    for note in tree.get("annotations", ()):
        if isinstance(note, dict) and isinstance(note.get("caption"), str):
            captions.setdefault(note.get("image_id"), []).append(note["caption"])
    for number, image in enumerate(tree.get("images", ())):
        if number >= start:
            row = {"image": image.get("file_name"), "captions": captions.get(image.get("id"), [])}
            yield number, number + 1, row
