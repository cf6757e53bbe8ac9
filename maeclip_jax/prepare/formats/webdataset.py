"""Tar shards of `KEY.jpg` with `KEY.txt` or `KEY.json`, as img2dataset and webdataset write them; also .gz and .zst."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import tempfile
from collections.abc import Iterator

from etils import epath

from maeclip_jax.errors import BadRecord, UserError
from maeclip_jax.prepare.formats import img2dataset, members, names, remote, tarball
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import Raw, key_prefix, lost_records, printable
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit

NAME = "webdataset"
SAID = "*.tar, .tar.gz or .tar.zst, such as those of img2dataset"

_COMPRESSIONS = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd"}
_CHUNK = 8 << 20
_PEEKED = 64  # members of the first shard that are looked at when the work is planned
_MOST_PEEKED = 8 << 20  # bytes of it
_PIECE = 1 << 18
_LEAST = 1 << 30  # bytes that any compressed shard may expand to; more only in proportion to its size
_MOST_EXPANSION = 10


def find(look: Listing, wanted: dict, forced: bool) -> list[str]:
    del wanted, forced
    return look.with_suffix(*names.TARS)


def described(look: Listing, plan: Plan) -> str:
    return img2dataset.described(look, list(plan.files), NAME)


def divide(reading: Reading, look: Listing, paths: list[str], wanted: dict, unit_records: int) -> Plan:
    del unit_records  # a tar is one unit
    reading = members.reading(reading, wanted, _first_samples(look, paths), paths[0])
    return img2dataset.whole_shards(reading, look, paths, wanted)


def _first_samples(look: Listing, paths: list[str]) -> list[dict[str, bytes]]:
    """The first samples of the first shard, as far as they are cheap to get."""
    path = paths[0]
    with contextlib.ExitStack() as stack:
        file, whole = _beginning(epath.Path(look.root) / path, stack)
        if file is None:
            return []
        found = tarball.index(file, os.fstat(file).st_size, _PEEKED)
        if whole and not found.members and found.others & {*names.TARS, ".gz", ".tgz", ".zip"}:
            raise UserError(
                f"{path} holds archives and no pictures; valid: unpack it first: mkdir shards && tar -xf "
                f"{look.root / path} -C shards"
            )
        pictures = [m for m in found.members if names.key_and_extension(m.name)[1] in names.PICTURES]
        videos = sorted(found.others & {*names.VIDEOS})
        if whole and videos and not pictures:
            raise UserError(
                f"{path} holds videos and no pictures; valid: frames of them, such as video2dataset's FrameSubsampler "
                f"makes, or: mkdir frames && tar -xf {look.root / path} -C frames && for f in frames/*{videos[0]}; "
                f'do ffmpeg -i "$f" -frames:v 1 "${{f%.*}}.jpg"; done'
            )
        samples = list(tarball.samples(found.members))[:-1][:4] or list(tarball.samples(found.members))
        return [{e: os.pread(file, m.size, m.start) for e, m in s.parts.items()} for s in samples]


def _beginning(path: epath.Path, stack: contextlib.ExitStack) -> tuple[int | None, bool]:
    """(the descriptor of a file with the first members of a shard, whether these are all that `_PEEKED` asks for)."""
    try:
        source = _source(path, stack, remote.SHORT)
    except OSError:  # which is said when the shard is read
        return None, False
    if _is_plain(path):
        return source.fileno(), True
    target, size = stack.enter_context(tempfile.TemporaryFile(buffering=0)), 0  # noqa: SIM115 (the stack closes it)
    while size < _MOST_PEEKED:
        try:
            data = source.read(_PIECE)
        except OSError:
            break
        size += target.write(data)
        if not data or len(tarball.index(target.fileno(), size, _PEEKED).members) == _PEEKED:
            return target.fileno(), True
    return target.fileno(), False


def _is_plain(path: epath.Path) -> bool:
    """Whether a shard can be read in any order where it lies."""
    return names.suffix(path.name) not in _COMPRESSIONS and not remote.is_remote(path)


class _Sips(io.RawIOBase):
    """A file of which a reader gets little at a time: a decompressor that meets damage loses what it was given."""

    def __init__(self, file):
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._file.readinto(memoryview(buffer)[: tarball.BLOCK])


def _source(path: epath.Path, stack: contextlib.ExitStack, block: int = remote.LONG, careful: bool = False):
    """The bytes of a tar, uncompressed, from the beginning. `careful`: nothing is lost of what lies before damage."""
    source = stack.enter_context(remote.opened(path, block))
    source = _Sips(source) if careful else source
    compression = _COMPRESSIONS.get(names.suffix(path.name))
    if compression:
        import pyarrow as pa

        source = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(source), compression))
    return source


def fields(reading: Reading, unit: Unit) -> dict:
    look = Listing(epath.Path(reading.root), False, {unit.path: unit.size})
    return members.fields(_first_samples(look, [unit.path]))


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    with contextlib.ExitStack() as stack:
        file, problem = _descriptor(reading, unit, stack)
        if file is None:
            yield lost_records(reading, unit, f"{unit.path}@0", problem, max(1, _expected(reading, unit)))
        else:
            yield from _read(reading, unit, file, problem)
    yield from img2dataset.failures(reading, unit)


def _read(reading: Reading, unit: Unit, file: int, problem: str) -> Iterator[Raw]:
    found = tarball.index(file, os.fstat(file).st_size)
    prefix, count, lacking = key_prefix(unit.path), 0, 0
    split = unit.split or reading.split
    by_split = {"": unit, unit.split: unit}
    for sample in tarball.samples(found.members):
        count += 1
        told = _split(sample.key.rpartition("/")[0]) if reading.named_splits else ""
        if told not in by_split:
            by_split[told] = dataclasses.replace(unit, split=told)
        if sample.problem:
            error = BadRecord("several_images", printable(sample.problem))
            yield Raw(printable(prefix + sample.key), unit.path, split, error=error)
            continue
        parts = {e: os.pread(file, m.size, m.start) for e, m in sample.parts.items() if _is_needed(e, sample.parts)}
        texts = [os.pread(file, m.size, m.start) for m in sample.texts]
        raw = members.joined(prefix + sample.key, parts, texts, reading, by_split[told])
        lacking += raw.error is not None and raw.error.detail == members.absent(reading)
        yield dataclasses.replace(raw, extras=sample.extras) if sample.extras else raw
    members.check_shard(lacking, count, reading, unit)
    for name, why in found.refused:
        yield Raw(printable(name), unit.path, split, error=BadRecord("unsafe_member", why))
    problem = problem or found.problem
    expected = _expected(reading, unit)
    if problem or expected > count:
        problem = problem or f"holds {count} records where its _stats.json counts {expected}"
        yield lost_records(reading, unit, f"{unit.path}@{found.where}", problem, max(1, expected - count))


@functools.cache
def _split(folder: str) -> str:
    """The split that a folder in the archive tells."""
    return names.split(f"{folder}/")


def _is_needed(extension: str, parts: dict) -> bool:
    """Whether a member is read: of several pictures only the first usual one is."""
    if extension not in names.PICTURES:
        return True
    return extension == next(e for e in names.PICTURES if e in parts)


def _expected(reading: Reading, unit: Unit) -> int:
    return img2dataset.upstream(epath.Path(reading.root) / unit.path).get("successes", 0)


def _descriptor(reading: Reading, unit: Unit, stack: contextlib.ExitStack) -> tuple[int | None, str]:
    """(the descriptor of the shard as a local plain file, what is wrong with it).

    Shards of a bucket and compressed ones are copied to a temporary file, so that their members can be read in any
    order.
    """
    path = epath.Path(reading.root) / unit.path
    try:
        source = _source(path, stack)
    except OSError as error:
        return None, error.strerror or str(error)
    if _is_plain(path):
        return source.fileno(), ""
    target = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (it is closed by the stack)
    compressed = names.suffix(path.name) in _COMPRESSIONS
    most = max(_LEAST, _MOST_EXPANSION * unit.size) if compressed else unit.size
    problem, damaged = _copied(source, target, _CHUNK, most)
    if damaged and compressed:  # a read that fails gives nothing: once more, in small ones from where it began
        with contextlib.ExitStack() as again:
            source = _source(path, again, careful=True)
            for start in range(0, (whole := target.tell()), _CHUNK):
                source.read(min(_CHUNK, whole - start))
            _copied(source, target, tarball.BLOCK, most)
    target.flush()
    return target.fileno(), problem


def _copied(source, target, piece: int, most: int) -> tuple[str, bool]:
    """(what is wrong with the source, "" if all of it was copied to `target`; whether a read of it failed)."""
    while True:
        try:
            data = source.read(piece)
        except OSError as error:
            return " ".join(str(error).split()), True
        if not data:
            return "", False
        if target.tell() + len(data) > most:
            return f"expands to more than {most:,} bytes", False
        target.write(data)
