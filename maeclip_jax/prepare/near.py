"""Pictures of a training set that look like those of an evaluation set, by imagehash's 64-bit perceptual hash.

Two hashes that differ in at most `DISTANCE` bits are of pictures that look alike. Sizes, recompression and small
changes of colour do not matter. Mirrored, turned and strongly cropped pictures are not found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maeclip_jax.data import decode, source
from maeclip_jax.errors import BadRecord, UserError
from maeclip_jax.prepare.formats import folders, names

# Of 700 photographs of 256 pixels and their versions of JPEG quality 50, 99.6 % are within 8 bits, and all halved ones.
# Of the 244,650 pairs of different ones 1 is (two frames of one scene), and the next are at 14.
DISTANCE = 8
SIDE = 64  # pixels that a picture keeps on its shorter side at least when it is hashed


@dataclasses.dataclass(frozen=True)
class Near:
    """`hashes` uint64 [n] of the pictures that must not come, and their `names`. `drops`: whether likes are dropped."""

    hashes: np.ndarray
    names: tuple[str, ...]
    drops: bool = True
    side: int = SIDE

    def said(self, pixels_HxWx3: np.ndarray) -> str:
        """Which picture of the set this one looks like, and how much; "" if it looks like none."""
        differing = np.bitwise_count(self.hashes ^ _hash(pixels_HxWx3))
        best = int(differing.argmin())
        if differing[best] > DISTANCE:
            return ""
        return f"looks like {self.names[best]} ({differing[best]} of 64 bits differ)"

    def digest(self) -> str:
        """What must not change between a run and its continuation."""
        return hashlib.sha256(self.hashes.tobytes() + "\n".join(self.names).encode()).hexdigest()[:16]


def read(where: str, drops: bool) -> Near:
    """The pictures of `where`: a folder of pictures, or `DATA_DIR/NAME[/VERSION]:SPLIT` of a prepared data set.

    Pictures that do not decode are left out. UserError without imagehash, or where no picture is there.
    """
    try:
        import imagehash  # noqa: F401
    except ImportError:
        raise UserError("--not_in compares pictures by imagehash; valid: pip install 'maeclip_jax[pictures]'") from None
    hashes, found = [], []
    for name, data in _pictures(where):
        try:
            hashes.append(_hash(decode.decode(data, reduce_to=(SIDE, SIDE))))
        except BadRecord:
            continue
        found.append(name)
    if not found:
        raise UserError(f"not_in={where!r} holds no picture that decodes; valid: a folder of pictures, or FOLDER:SPLIT")
    return Near(np.array(hashes, np.uint64), tuple(found), drops)


def _pictures(where: str) -> Iterator[tuple[str, bytes]]:
    folder = Path(where).expanduser()
    if folder.is_dir() and not list(folder.glob("dataset_info.json")):
        for below, entries in folders.walk(folder, hidden=lambda _: False):
            for entry in filter(folders.is_file, entries):
                if names.key_and_extension(entry.name)[1] in names.PICTURES and not names.is_hidden(entry.name):
                    yield os.path.join(below, entry.name), Path(entry.path).read_bytes()
        return
    place, _, split = where.rpartition(":")
    if not place or "/" in split:
        raise UserError(f"not_in={where!r} is not a folder of pictures; valid: one, or FOLDER_OF_A_DATA_SET:SPLIT")
    records = source.make({"kind": "tfds", "dir": os.path.expanduser(place), "split": split})
    for number in range(len(records)):
        record = records[number]
        yield f"{split}/{record.get('key', number)}", record["image"]


def _hash(pixels_HxWx3: np.ndarray) -> np.uint64:
    import imagehash
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(np.ascontiguousarray(pixels_HxWx3))).hash
    return np.packbits(bits.reshape(-1)).view(">u8")[0].astype(np.uint64)
