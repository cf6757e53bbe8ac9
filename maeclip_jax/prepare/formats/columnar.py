"""What parquet, arrow and tfrecord share: which columns hold pictures, and a record from a row."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping

from maeclip_jax import errors
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats import batches, captions, img2dataset, pictures, table_rows
from maeclip_jax.prepare.formats.raw import Raw, key_prefix, printable
from maeclip_jax.prepare.formats.units import Reading, Unit, split_field, split_of

FACTS = ("key", "__key__", "exif", "status", "error_message", "url")


def image_columns(schema) -> tuple[list[str], list[str]]:
    """(columns that hold bytes, or Hugging Face's struct of bytes and path; usual ones that hold paths)."""
    import pyarrow as pa

    def holds_bytes(kind) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
        return any(test(kind) for test in tests)

    encoded = [f.name for f in schema if holds_bytes(f.type)]
    texts = [f.name for f in schema if batches.as_bytes(f.type) is not None]
    paths = [name for name in texts if name.lower() in table_rows.IMAGE_COLUMNS]
    return encoded, paths


def columns(wanted: Mapping, names: list[str], encoded: list[str], paths: list[str], row: Mapping, where: str) -> dict:
    """As `table_rows.columns`, for a source whose picture column holds bytes or paths. `row`: its first one."""
    if wanted["image"] and wanted["image"] not in names:
        raise errors.unknown("image_column", wanted["image"], encoded or paths or ("none: no column holds bytes",))
    if wanted["image"] and encoded and wanted["image"] not in encoded:
        raise errors.unknown("image_column", wanted["image"], encoded)
    usual = [c for c in table_rows.IMAGE_COLUMNS if c in encoded]
    image = wanted["image"] or (usual or encoded or paths)[0]
    first = {name: row.get(name, "") for name in names}
    return table_rows.columns({**wanted, "image": image}, first, where)


def needed(reading: Reading, names: Iterable[str]) -> list[str]:
    """The columns of a file that are read."""
    caption = reading.caption_column.partition(".")[0].removesuffix("[]")
    wanted = {reading.image_column, reading.caption_column, caption, split_field(reading), *FACTS}
    return [name for name in names if name in wanted]


def splits(column, reading: Reading, told: str) -> set[str]:
    """The splits that the values of a split column tell, in a file whose names tell the split `told`."""
    import pyarrow as pa

    with contextlib.suppress(pa.ArrowNotImplementedError):  # of views and lists
        column = column.unique()
    return {split_of({split_field(reading): value}, reading, told) for value in column.to_pylist()}


def raw(row: dict, number: int, reading: Reading, unit: Unit) -> tuple[Raw, str]:
    """The record of a row, and the path of its picture if that is not in the row."""
    taken = (reading.image_column, reading.caption_column)
    key = next((row[n] for n in ("key", "__key__") if n not in taken and row.get(n) is not None), None)
    key = f"{key_prefix(unit.path)}{key}" if key is not None else f"{unit.path}:row {number + 1}"
    image = row.get(reading.image_column)
    path = image if isinstance(image, str) else ""
    if isinstance(image, dict):
        path, image = image.get("path") or "", image.get("bytes")
    if img2dataset.failed(row, pictured=bool(image or path)):
        return img2dataset.failure(key, row, reading, unit), ""
    found = Raw(printable(key), unit.path, split_of(row, reading, unit.split))
    try:
        if not isinstance(image, bytes) and not path:
            raise BadRecord("missing_image", f"{reading.image_column} is {image!r:.60}")
        texts = captions.texts(captions.pick(row, reading.caption_column))
        turned = img2dataset.orientation(row.get("exif"))
        image = image if isinstance(image, bytes) else b""
        return dataclasses.replace(found, image=image, texts=texts, orientation=turned), "" if image else path
    except BadRecord as error:
        return dataclasses.replace(found, error=error), ""


def check_paths(rows: list[dict], reading: Reading, unit: Unit) -> None:
    """Raises UserError if the first rows of a source hold paths of pictures, and none of them is there."""
    found = [raw(row, number, reading, unit) for number, row in enumerate(rows)]
    paths = [path for _, path in found if path]
    if not paths or any(one.image for one, _ in found):
        return
    if any(isinstance(data, bytes) for data in pictures.fetched(paths, pictures.folders(reading, unit))):
        return
    raise errors.UserError(
        f"{unit.path} holds the paths of pictures and no pictures, and {paths[0]!r} is not there; valid: "
        "--image_dir, or where the pictures are: python -c \"from datasets import *; load_dataset('parquet', "
        f"data_files='{unit.path}', split='train').save_to_disk('embedded')\""
    )
