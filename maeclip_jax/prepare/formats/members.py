"""A record from the members that share a key: a picture, a text, a json. Tars and loose files are made of them."""

from __future__ import annotations

import dataclasses
import json

from maeclip_jax import errors
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats import captions, img2dataset, names
from maeclip_jax.prepare.formats.raw import Raw, printable
from maeclip_jax.prepare.formats.units import SPLIT, Reading, Unit, split_of

_SPLIT = f'"{SPLIT}"'.encode()


def reading(base: Reading, wanted: dict, first: list[dict[str, bytes]], where: str) -> Reading:
    """Completes `base` by the columns that were asked for and the first samples of the source.

    Pictures and captions are told by extension; other captions and a split may stand in the json.
    """
    if wanted["image"]:
        choice = "leave it out, or --format table or parquet"
        raise errors.UserError(f"image_column has no meaning for {base.format}; valid: {choice}")
    rows = [row for row in map(_json, first) if row]
    if wanted["caption"] and rows:
        captions.check(wanted["caption"], rows[0], where)
    lonely = [_json(m) for m in first if ".txt" not in m and ".json" in m]
    if lonely and lonely[0] and not wanted["caption"] and captions.of_row(lonely[0]) is None:
        raise errors.UserError(
            f"{where} has no usual caption in its json members; valid: --caption_column with one of "
            f"{captions.described(lonely[0])}"
        )
    split = wanted["split"] or ""
    if split and rows and not any(split in row for row in rows):
        raise errors.UserError(f"{where}: {errors.unknown('split_column', split, rows[0])}")
    if split and not rows and any(".txt" in sample for sample in first):
        raise errors.UserError(f"{where}: its first samples have no json that could hold split_column {split!r}; "
                               "valid: a source whose samples have, or leave it out")  # fmt: skip
    if wanted["split"] == "" and any(isinstance(row.get(SPLIT), str) for row in rows):
        split = SPLIT
    return dataclasses.replace(base, caption_column=wanted["caption"], split_column=split)


def fields(first: list[dict[str, bytes]]) -> dict:
    """The fields of the first sample: its json, and `txt` for its text."""
    for sample in first:
        text = {"txt": sample[".txt"].decode(errors="replace")} if ".txt" in sample else {}
        return text | _json(sample)
    return {}


def absent(reading: Reading) -> str:
    """What is said of a record without the field of captions that was asked for."""
    return f"there is no field {reading.caption_column!r}"


def check_shard(lacking: int, count: int, reading: Reading, unit: Unit) -> None:
    """Raises UserError if no record of a shard has the field of captions: that is another name, and no bad records."""
    if count and lacking == count:
        raise errors.UserError(
            f"{unit.path}: none of its {count} records has a field {reading.caption_column!r}; valid: a field that all "
            "shards have, or the shards that have it as a source of their own (finished work is kept)"
        )


def _json(members: dict[str, bytes]) -> dict:
    try:
        row = json.loads(members.get(".json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def joined(key: str, members: dict[str, bytes], texts: list[bytes], reading: Reading, unit: Unit) -> Raw:
    """A record from members (extension -> bytes). Captions: the json's only where all texts are empty.

    `texts`: several texts of the sample, each a caption.
    """
    raw = Raw(printable(key), unit.path, unit.split or reading.split)
    if ".txt" in members:
        texts = [members[".txt"]]
    told = any(text.strip() for text in texts)
    try:
        row = _row(members, told, reading)
        raw = dataclasses.replace(raw, split=split_of(row, reading, unit.split))
        image = next((members[e] for e in names.PICTURES if e in members), None)
        if image is None:
            raise BadRecord("missing_image", f"only {', '.join(sorted(members)) or 'texts'}")
        raw = dataclasses.replace(raw, image=image, orientation=img2dataset.orientation(row.get("exif")))
        if reading.caption_column:
            caption = captions.pick(row, reading.caption_column)
            if caption is None and not captions.holds(row, reading.caption_column):
                raise BadRecord("no_caption", absent(reading))
        elif not told and (not texts or captions.of_row(row) is not None):
            caption = captions.of_row(row)
        else:
            caption = [text.decode("utf-8", errors="surrogateescape") for text in texts]
        return dataclasses.replace(raw, texts=captions.texts(caption))
    except BadRecord as error:
        return dataclasses.replace(raw, error=error)


def _row(members: dict[str, bytes], texts: bool, reading: Reading) -> dict:
    """The json, where anything of it is needed."""
    data = members.get(".json")
    needed = not texts or reading.caption_column or reading.split_column
    if data is None or not (needed or b"Image Orientation" in data or (reading.named_splits and _SPLIT in data)):
        return {}
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        if not needed:
            return {}
        raise BadRecord("unreadable_row", f"json member: {error}") from None
    if not isinstance(row, dict):
        raise BadRecord("unreadable_row", f"json member: a {type(row).__name__}, not an object")
    return row
