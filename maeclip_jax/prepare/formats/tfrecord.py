"""TFRecord files of tf.train.Example, as img2dataset and others write them; no TensorFlow is needed."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import struct
import zlib
from collections.abc import Iterator

from etils import epath

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.formats import columnar, img2dataset, pictures, remote
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import Raw, lost_records
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit

NAME = "tfrecord"
SAID = "tf.train.Example with encoded pictures"

_SUFFIXES = (".tfrecord", ".tfrecords")
_LARGEST = 1 << 28  # bytes of a record
_PICTURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM")


class _Damaged(Exception):
    pass


_DAMAGE = (_Damaged, OSError, EOFError, zlib.error)


def find(look: Listing, wanted: dict, forced: bool) -> list[str]:
    del wanted, forced
    return sorted(p for p in look.files if p.lower().endswith(_SUFFIXES) or ".tfrecord-" in p.lower())


def described(look: Listing, plan: Plan) -> str:
    return img2dataset.described(look, list(plan.files), NAME)


def divide(reading: Reading, look: Listing, paths: list[str], wanted: dict, unit_records: int) -> Plan:
    del unit_records  # a file is one unit
    row = next(filter(None, (_first(look.root / path) for path in paths)), None)
    if row is None:
        raise UserError(f"no tfrecord file in {reading.root!r} has a whole record; valid: files that are not empty")
    encoded = [name for name, value in row.items() if isinstance(value, bytes) and value.startswith(_PICTURES)]
    if not encoded:
        raise UserError(f"{paths[0]} has no feature with an encoded picture; valid: other files (features: "
                        f"{', '.join(row)})")  # fmt: skip
    first = _texts(row, encoded)
    reading = dataclasses.replace(reading, **columnar.columns(wanted, list(row), encoded, [], first, paths[0]))
    return img2dataset.whole_shards(reading, look, paths, wanted)


def _first(path: epath.Path) -> dict | None:
    try:
        return next(map(_features, _examples(path)), None)
    except _DAMAGE:
        return None


def fields(reading: Reading, unit: Unit) -> dict:
    row = _texts(_first(epath.Path(reading.root) / unit.path) or {}, [reading.image_column])
    return {name: value for name, value in row.items() if name != reading.image_column}


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    path = epath.Path(reading.root) / unit.path
    done, problem, folders = 0, "", pictures.folders(reading, unit)
    try:
        for data in _examples(path):
            row = _texts(_features(data), [reading.image_column])
            yield from pictures.filled([columnar.raw(row, done, reading, unit)], folders)
            done += 1
    except _DAMAGE as error:
        problem = str(error)
    expected = img2dataset.upstream(path).get("successes", 0)
    if problem or expected > done:
        problem = problem or f"holds {done} records where its _stats.json counts {expected}"
        yield lost_records(reading, unit, f"{unit.path}:row {done + 1}", problem, max(1, expected - done))
    yield from img2dataset.failures(reading, unit)


def _examples(path: epath.Path) -> Iterator[bytes]:
    """The records of a file. The sum of each length is checked; damage inside a picture shows when it is decoded."""
    with remote.opened(path) as file:
        if file.peek(2)[:2] == b"\x1f\x8b":
            file = gzip.open(file)  # noqa: SIM115 (the file below it is closed)
        while head := file.read(12):
            if len(head) < 12:
                raise _Damaged("ends in the middle of a record")
            length, claimed = struct.unpack("<QI", head)
            if _masked_sum(head[:8]) != claimed:
                raise _Damaged("the length of a record is damaged")
            if length > _LARGEST:
                raise _Damaged(f"a record claims {length:,} bytes; at most {_LARGEST:,} are read")
            data = file.read(length + 4)
            if len(data) < length + 4:
                raise _Damaged("ends in the middle of a record")
            yield data[:length]


def _features(data: bytes) -> dict:
    """Feature -> its one value, or the list of them."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        found = tf_example_pb2.Example.FromString(data).features.feature
    except DecodeError as error:
        raise _Damaged(f"a record does not parse as tf.train.Example ({error})") from None
    row = {}
    for name, feature in sorted(found.items()):
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        row[name] = values[0] if len(values) == 1 else values or None
    return row


def _texts(row: dict, encoded: list[str]) -> dict:
    """The row with texts for bytes, but for its pictures."""

    def text(value):
        return value.decode("utf-8", errors="surrogateescape") if isinstance(value, bytes) else value

    return {
        name: value if name in encoded else [text(v) for v in value] if isinstance(value, list) else text(value)
        for name, value in row.items()
    }


@functools.cache
def _sums() -> tuple[int, ...]:
    """CRC-32C of each byte."""
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


def _masked_sum(data: bytes) -> int:
    table, total = _sums(), 0xFFFFFFFF
    for byte in data:
        total = table[(total ^ byte) & 0xFF] ^ (total >> 8)
    total ^= 0xFFFFFFFF
    return (((total >> 15) | (total << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF
