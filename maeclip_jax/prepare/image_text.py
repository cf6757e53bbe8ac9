"""Image-text pairs as a TFDS data set: the features, and how a raw record becomes an example or is dropped.

`outcomes` is the whole of the work on a unit; the processes of one machine (`assembly`) and the workers of
Apache Beam (`image_text_beam`) run the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maeclip_jax import errors
from maeclip_jax.data import decode
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare import records, suspects
from maeclip_jax.prepare.formats import names
from maeclip_jax.prepare.formats.raw import Raw, printable
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit
from maeclip_jax.prepare.near import Near

VERSION = "1.0.0"
_SHOWN = 1 << 23  # bytes of a dropped picture that may be on the contact sheet


@dataclasses.dataclass(frozen=True)
class Storing:
    """How pictures are kept. `short_side` 0 keeps every size; otherwise larger pictures shrink to it, none grows."""

    short_side: int = 0
    quality: int = 92
    max_pixels: int = decode.MAX_PIXELS

    def __post_init__(self):
        limits = {"short_side": (0, 1 << 16), "quality": (1, 100), "max_pixels": (1, 1 << 31)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise errors.UserError(f"{name}={getattr(self, name)}; valid: {low} to {high}")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A picture as it is kept. Sizes in pixels, upright; `verbatim`: the bytes are the source's."""

    image: bytes
    width: int
    height: int
    source_width: int
    source_height: int
    verbatim: bool
    turned: bool = False  # as the source's own account says, for the picture itself does not
    suspect: tuple[tuple[str, str], ...] = ()  # (kind of `suspects.KINDS`, detail)


@dataclasses.dataclass(frozen=True)
class Kept:
    split: str
    key: str
    example: dict
    stored: Stored
    source_bytes: int
    rows: int
    empty_captions: int  # empty ones beside others that are kept
    extras: int = 0  # further pictures and texts of the sample, left out
    digest: int = 0  # 64 bits of the SHA-256 of the picture in the source


@dataclasses.dataclass(frozen=True)
class Dropped:
    """`image`: the bytes, where there are any, for the contact sheet; the account does not have them."""

    key: str
    source: str
    kind: str
    detail: str
    rows: int = 1
    records: int = 1
    url: str = ""
    status: str = ""  # of a download that failed
    image: bytes = dataclasses.field(default=b"", repr=False, compare=False)

    def json(self) -> dict:
        entry = {name: value for name, value in vars(self).items() if value != "" and name != "image"}
        return entry | {"detail": printable(self.detail)[:300]}


def features() -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "texts": tfds.features.Sequence(tfds.features.Text()),
            "width": np.int32,
            "height": np.int32,
            "source": tfds.features.Text(),
        }
    )


def serialize(example: dict) -> bytes:
    """The bytes TFDS stores for an example, features in the order of their names."""
    from tensorflow_datasets.proto import tf_example_pb2

    found = tf_example_pb2.Example()
    features = found.features.feature
    for name in ("image", "key", "source"):
        value = example[name]
        features[name].bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    features["texts"].bytes_list.value.extend(text.encode() for text in example["texts"])
    for name in ("height", "width"):
        features[name].int64_list.value.append(example[name])
    return found.SerializeToString(deterministic=True)


def parse(data: bytes) -> dict:
    """The inverse of `serialize`."""
    from tensorflow_datasets.proto import tf_example_pb2

    stored = tf_example_pb2.Example.FromString(data).features.feature
    return {
        "key": stored["key"].bytes_list.value[0].decode(),
        "image": stored["image"].bytes_list.value[0],
        "texts": [t.decode() for t in stored["texts"].bytes_list.value],
        "width": stored["width"].int64_list.value[0],
        "height": stored["height"].int64_list.value[0],
        "source": stored["source"].bytes_list.value[0].decode(),
    }


def store(data: bytes, storing: Storing, orientation: int = 0, near: Near | None = None) -> Stored:
    """The picture in `data` as JPEG, fully decoded once so that whatever is stored is known to decode.

    JPEG that is upright, grey or RGB, and small enough stays byte for byte. The rest is shrunk (area average, after
    libjpeg's own halving where that still leaves more than is needed) and encoded upright at `quality`, without EXIF.
    `orientation`: how the source says that the picture is stored. `near`: pictures that it is compared with. Raises
    BadRecord with a kind of `decode.KINDS`.
    """
    picture = decode.probe(data, max_pixels=storing.max_pixels, orientation=orientation)
    height, width = picture.height, picture.width
    target = _target(height, width, storing.short_side)
    verbatim = target == (height, width) and picture.plain
    # Bytes that are kept are decoded at the smallest scale: that reads all of them, and shows whether they are whole.
    # Half-scale decoding by libjpeg costs 6 dB where it leaves less than twice what is needed.
    least = near.side if near else 1
    pixels = picture.read(reduce_to=(least, least) if verbatim else (2 * target[0], 2 * target[1]))
    suspect = _suspect(pixels, near)
    if verbatim:
        return Stored(data, width, height, width, height, True, suspect=suspect)
    if pixels.shape[:2] != target:
        pixels = cv2.resize(pixels, target[::-1], interpolation=cv2.INTER_AREA)
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, storing.quality))[1]
    return Stored(encoded.tobytes(), target[1], target[0], width, height, False, picture.turned, suspect)


def _suspect(pixels: np.ndarray, near: Near | None) -> tuple[tuple[str, str], ...]:
    kind, close = suspects.look(pixels), near.said(pixels) if near else ""
    return (((kind, ""),) if kind else ()) + (((suspects.NEAR, close),) if close else ())


def _target(height: int, width: int, short_side: int) -> tuple[int, int]:
    short = min(height, width)
    if not short_side or short <= short_side:
        return height, width
    return tuple(short_side if side == short else round(side * short_side / short) for side in (height, width))


def example(record: Raw, storing: Storing, near: Near | None = None) -> Kept:
    """A raw record as an example of `features()`.

    Raises BadRecord with a kind of `raw.KINDS`, `decode.KINDS` or `suspects.ON_REQUEST`.
    """
    if record.error:
        raise record.error
    if not names.is_split(record.split):
        raise BadRecord("bad_split", f"{record.split!r}")
    try:
        texts = [t.strip() for t in record.texts]
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRecord("garbled_caption", str(error)) from None
    full = [t for t in texts if t]
    if not full:
        raise BadRecord("empty_caption", f"{len(texts)} of {len(texts)} are empty")
    stored = store(record.image, storing, record.orientation, near)
    if near and near.drops:
        for kind, detail in stored.suspect:
            if kind == suspects.NEAR:
                raise BadRecord(kind, detail)
    fields = {
        "key": record.key,
        "image": stored.image,
        "texts": full,
        "width": stored.width,
        "height": stored.height,
        "source": printable(record.source),
    }
    source_bytes, empty = len(record.image), len(texts) - len(full)
    digest = int.from_bytes(hashlib.sha256(record.image).digest()[:8], "little")
    return Kept(record.split, record.key, fields, stored, source_bytes, record.rows, empty, record.extras, digest)


def outcomes(reading: Reading, storing: Storing, unit: Unit, near: Near | None = None) -> Iterator[Kept | Dropped]:
    """What becomes of each record of a unit, in order. A key that came before in the unit is dropped."""
    seen = set()
    for record in records.read(reading, unit):
        try:
            kept = example(record, storing, near)
            if record.key in seen:
                raise BadRecord("duplicate_key", f"came before in {record.source}")
            seen.add(record.key)
            yield kept
        except BadRecord as bad:
            source = printable(record.source)
            entry = (record.key, source, bad.kind, bad.detail, record.rows, record.lost)
            image = record.image if len(record.image) <= _SHOWN else b""
            yield Dropped(*entry, url=record.url, status=record.status, image=image)


def left_out(kept: Kept, first: str = "") -> Dropped:
    """The entry for a record whose key an earlier unit has, or whose picture is that of `first`."""
    kind, detail = (
        (suspects.SAME, f"the same bytes as {first}") if first else ("duplicate_key", "came before in another unit")
    )
    return Dropped(kept.key, kept.example["source"], kind, detail, kept.rows, image=kept.example["image"])


def write_metadata(folder: Path, plan: Plan, shards: dict[str, list[dict]]) -> None:
    """Writes into `folder` what makes a TFDS data set of shards: split -> [{file, records, bytes}] in order.

    The shards need not be there: TFDS reads their names alone, of empty files in a folder of their own.
    """
    from tensorflow_datasets.core import naming

    with tempfile.TemporaryDirectory(prefix="maeclip-") as empty:
        data_dir, names = epath.Path(empty), {s["file"] for files in shards.values() for s in files}
        for name in names:
            (data_dir / name).touch()
        template = naming.ShardedFileTemplate(data_dir=data_dir, template=naming.DEFAULT_FILENAME_TEMPLATE)
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[s["records"] for s in files],
                num_bytes=sum(s["bytes"] for s in files),
                filename_template=template,
            )
            for split, files in shards.items()
        ]
        tfds.folder_dataset.write_metadata(
            data_dir=data_dir,
            features=features(),
            split_infos=splits,
            version=VERSION,
            description=description(plan),
            check_data=False,  # it would read through TensorFlow
        )
        for path in data_dir.iterdir():
            if path.name not in names:
                shutil.copyfile(path, folder / path.name)


def description(plan: Plan) -> str:
    return f"Image-text pairs prepared by maeclip_jax.prepare from {plan.reading.format} in {plan.reading.root}."
