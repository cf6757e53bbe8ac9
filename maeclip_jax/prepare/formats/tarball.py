"""The members of a tar by their headers alone, and the samples that they make; memory and time are bounded.

The headers are read by seeking, so the whole of a shard is known before any picture is: members of a sample need not be
neighbours. Nothing is unpacked into files of their names. What a header claims is compared with the file first.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from maeclip_jax.prepare.formats import names
from maeclip_jax.prepare.formats.raw import LARGEST

BLOCK = 512
MOST_MEMBERS = 2_000_000  # of pictures and texts in one shard; about 0.8 GB of memory
LARGEST_TEXT = 1 << 24  # bytes of a text or json
_LONGEST_NAME = 1 << 20  # bytes of an extended header
_ZEROS = bytes(BLOCK)
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
          b"S": "a sparse file"}  # fmt: skip


@dataclasses.dataclass(slots=True)
class Member:
    name: str
    start: int  # of its bytes
    size: int


@dataclasses.dataclass
class Index:
    """`refused`: (name, why) of members that must not be read. `problem`: damage at byte `where`, or ""."""

    members: list[Member] = dataclasses.field(default_factory=list)
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    others: set[str] = dataclasses.field(default_factory=set)  # extensions of members that are neither picture nor text
    problem: str = ""
    where: int = 0


def index(file: int, size: int, most: int = 0) -> Index:
    """The pictures and texts of a tar. `file`: a descriptor of a file of `size` bytes. `most`: stop after so many."""
    found, offset, extended = Index(), 0, {}
    while True:
        found.where = offset
        header = os.pread(file, BLOCK, offset)
        if len(header) < BLOCK:
            found.problem = "ends without an end-of-archive mark (cut short, or still being written)"
            return found
        if header == _ZEROS:
            found.problem = _after_the_end(file, offset)
            return found
        length = _size(header)
        if length < 0 or not _sum_is_right(header):
            found.problem = "damaged header, or data behind the end-of-archive mark"
            return found
        kind, start = header[156:157], offset + BLOCK
        name = extended.get("path") or _name(header)
        if kind not in b"Lxgk":
            length = int(extended.get("size", length))
        if start + length > size:
            found.problem = f"ends early: member {name!r:.100} claims {length:,} bytes where {size - start:,} are left"
            return found
        offset = start + (length + BLOCK - 1) // BLOCK * BLOCK
        if kind in b"Lx":
            if length > _LONGEST_NAME:
                found.problem = f"damaged header: an extended header of {length:,} bytes"
                return found
            extended |= _extended(kind, os.pread(file, length, start))
            continue
        if kind in b"gK":
            continue
        extended = {}
        if kind == b"5" or not name:
            continue
        _sort_in(found, name, kind, start, length)
        if most and len(found.members) >= most:
            return found
        if len(found.members) + len(found.refused) > MOST_MEMBERS:
            found.problem = f"holds more than {MOST_MEMBERS:,} pictures and texts; split it into shards"
            return found


def _sort_in(found: Index, name: str, kind: bytes, start: int, length: int) -> None:
    extension = names.key_and_extension(name)[1]
    if extension not in names.MEMBERS:
        if len(found.others) < 20:
            found.others.add(extension)
        return
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if names.is_hidden("/".join(parts)):
        return
    if kind not in (b"0", b"\0", b"7"):
        found.refused.append((name, f"is {_KINDS.get(kind, 'of an unknown kind')} in the archive"))
    elif ".." in parts:
        found.refused.append((name, "has a name that leads out of the archive"))
    elif length > (most := LARGEST if extension in names.PICTURES else LARGEST_TEXT):
        found.refused.append((name, f"has {length:,} bytes; at most {most:,} are read"))
    else:
        found.members.append(Member("/".join(parts), start, length))


def _size(header: bytes) -> int:
    """The size field; -1 if it is none."""
    field = header[124:136]
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _sum_is_right(header: bytes) -> bool:
    try:
        claimed = int(header[148:156].split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return False
    rest = header[:148] + header[156:]
    total = sum(rest) + 256
    return claimed == total or claimed == total - 256 * sum(byte > 127 for byte in rest)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:262] == b"ustar" and header[345] and header[257:265] != b"ustar  \0":
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", errors="surrogateescape")


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """Name and size from GNU's long name or the records "LENGTH KEY=VALUE\\n" of POSIX."""
    if kind == b"L":
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", errors="surrogateescape")}
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path" or (key == b"size" and value.isdigit() and len(value) < 20):
            found[key.decode()] = value.decode("utf-8", errors="surrogateescape")
        data = data[int(length) :]
    return found


def _after_the_end(file: int, offset: int) -> str:
    """The damage after the last member, if any."""
    while rest := os.pread(file, 1 << 20, offset):
        if rest.count(0) != len(rest):
            return "damaged header, or data behind the end-of-archive mark"
        offset += len(rest)
    return ""


@dataclasses.dataclass
class Sample:
    """`parts`: extension -> member. `texts`: several texts. `extras`: further pictures and texts, left out."""

    key: str
    parts: dict[str, Member]
    texts: tuple[Member, ...] = ()
    extras: int = 0
    problem: str = ""


def samples(members: list[Member]) -> Iterator[Sample]:
    """The samples in the order of their first members.

    A key ends at the first dot of the base name, as webdataset has it. Where that would put several pictures under one
    key, the longer keys that have a picture and a text each are samples of their own.
    """
    latest: dict[str, dict[str, Member]] = {}
    groups: list[tuple[str, dict[str, Member]]] = []
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = folder + slash + stem, "." + extension.lower()
        group = latest.get(key)
        if group is None or extension in group:  # a name that comes twice begins another sample
            group = latest[key] = {}
            groups.append((key, group))
        group[extension] = member
    for key, group in groups:
        if len(group) == 1 or not any("." in extension[1:] for extension in group):
            yield from _plain(key, group)
        else:
            yield from _dotted(key, group)


def _plain(key: str, group: dict[str, Member]) -> Iterator[Sample]:
    (extension, member), *more = group.items()
    if not more and "." in extension[1:]:
        longer, extension = names.key_and_extension(extension)
        yield Sample(key + longer, {extension: member})
        return
    yield Sample(key, group, extras=max(0, sum(e in names.PICTURES for e in group) - 1))


def _dotted(key: str, group: dict[str, Member]) -> Iterator[Sample]:
    plain = {e: m for e, m in group.items() if "." not in e[1:]}
    longer: dict[str, dict[str, Member]] = {}
    for extension, member in group.items():
        if extension not in plain:
            rest, last = names.key_and_extension(extension)
            longer.setdefault(rest, {})[last] = member
    whole = {rest: found for rest, found in longer.items() if _is_whole(found)}
    for rest, found in whole.items():
        yield Sample(key + rest, found)
    halves = [(e, m) for rest, found in longer.items() if rest not in whole for e, m in found.items()]
    if not plain and whole:
        for extension, member in halves:
            yield Sample(names.key_and_extension(member.name)[0], {extension: member})
    elif plain or halves:
        yield _completed(key, plain, halves)


def _is_whole(found: dict[str, Member]) -> bool:
    return any(e in names.PICTURES for e in found) and any(e in names.TEXTS for e in found)


def _completed(key: str, plain: dict[str, Member], halves: list[tuple[str, Member]]) -> Sample:
    """A sample whose missing picture or text stands under a longer name, such as `7.image.jpg` and `7.text.txt`."""
    sample = Sample(key, dict(plain))
    pictures = [(e, m) for e, m in halves if e in names.PICTURES]
    texts = [m for e, m in halves if e == ".txt"]
    if any(e in names.PICTURES for e in plain):
        sample.extras += len(pictures)
    elif len(pictures) > 1:
        sample.problem = f"{len(pictures)} pictures: {', '.join(m.name for _, m in pictures[:4])}"
    else:
        sample.parts.update(pictures)
    if ".txt" in plain:
        sample.extras += len(texts)
    else:
        sample.texts = tuple(texts)
    jsons = [(e, m) for e, m in halves if e == ".json"]
    if ".json" not in plain and len(jsons) == 1:
        sample.parts.update(jsons)
    else:
        sample.extras += len(jsons)
    return sample
