"""Small labelled and masked data in official layouts, and how it reads back once it is built."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from maeclip_jax.data import source

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [7] * 759  # VOC's begins so; the rest does not matter


def png(ids, mode: str = "L") -> bytes:
    """A mask as VOC (mode P) or others (mode L) store it."""
    image = Image.fromarray(np.asarray(ids, np.uint8))
    if mode == "P":
        image.putpalette(PALETTE)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def raw_png(depth: int, kind: int, rows: list[bytes], width: int, **chunks: bytes) -> bytes:
    """A PNG of packed samples. kind: its type of colour, 0 grey, 2 RGB, 3 palette. chunks: before the pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *((k.encode(), v) for k, v in chunks.items()), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def write_tree(root: Path, files: dict[str, bytes | str]) -> Path:
    """Files below `root` by their path."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def opened(folder, split: str, **kwargs):
    """The source of a version's folder."""
    return source.make({"kind": "tfds", "dir": str(folder), "split": split, **kwargs})


def records(folder, split: str, **kwargs) -> dict[str, dict]:
    """key -> record of a split."""
    found = opened(folder, split, **kwargs)
    return {r["key"]: r for r in (found[i] for i in range(len(found)))}
