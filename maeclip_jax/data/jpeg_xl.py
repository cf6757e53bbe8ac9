"""The size of a JPEG XL picture by its header: the plug-in of Pillow decodes a picture as soon as it opens it."""

from __future__ import annotations

from maeclip_jax.errors import BadRecord

_CODESTREAM = b"\xff\x0a"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_BITS = (9, 13, 18, 30)  # of a side, by its selector


def is_jxl(data: bytes) -> bool:
    return data[:2] == _CODESTREAM or data[4:8] == b"JXL "


def size(data: bytes) -> tuple[int, int]:
    """(width, height) as stored, in pixels (ISO/IEC 18181-1, SizeHeader). BadRecord(corrupt) without a header.

    The least significant bit of a byte comes first.
    """
    begin = _begin(data)
    bits = int.from_bytes(data[begin + 2 : begin + 18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take(_BITS[take(2)]) + 1

    height, ratio = side(), take(3)
    if not ratio:
        return side(), height
    by, of = _RATIOS[ratio]
    return height * by // of, height


def _begin(data: bytes) -> int:
    """Where the codestream begins: at once, or in the box `jxlc`, or in the first `jxlp` behind its number."""
    if data[:2] == _CODESTREAM:
        return 0
    at = 0
    while at + 8 <= len(data):
        length, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        start = at + head + (4 if kind == b"jxlp" else 0)
        if kind in (b"jxlc", b"jxlp") and data[start : start + 2] == _CODESTREAM:
            return start
        if length < head:
            break
        at += length
    raise BadRecord("corrupt", "a JPEG XL signature, but no codestream")
