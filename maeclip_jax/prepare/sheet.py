"""`account.html`: the account of a preparation with a contact sheet, 32 pictures that were kept and 32 that were not.

The pictures are those whose names have the smallest hashes: a random sample that depends on nothing but the source.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
from etils import epath

from maeclip_jax.data import decode
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare import suspects
from maeclip_jax.prepare.formats.raw import FAILED, KINDS, printable

FILE = "account.html"
MOST = 32
_SIDE = 224  # pixels of the longer side on the sheet, which shows half of them
_CAPTIONS, _LETTERS = 3, 240  # of a record
_KINDS = {**decode.KINDS, **KINDS, **suspects.KINDS}
_MOST_FAILED = 8  # downloads that failed are shown as text alone, so a few say enough


def name_hash(source: str, key: str) -> int:
    """64 bits of a record's name. A key is unique within its shard or table: two shards may have it."""
    return int.from_bytes(hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=8).digest(), "little")


def kept(example: Mapping[str, Any], split: str) -> dict:
    """What the sheet shows of a record, as JSON."""
    texts = [f"{t[:_LETTERS]}…" if len(t) > _LETTERS else t for t in example["texts"]]
    more = len(texts) - _CAPTIONS
    shown = {"key": example["key"], "source": example["source"], "split": split, "texts": texts[:_CAPTIONS]}
    size = {"width": example["width"], "height": example["height"], "bytes": len(example["image"])}
    return {**shown, **size, "more": max(0, more), "picture": _small(example["image"])}


class Dropped:
    """The dropped records for the sheet: of each kind those with the smallest hashes, `MOST` at most."""

    def __init__(self, tree: Mapping[str, Sequence] | None = None):
        self._kinds = {kind: [tuple(entry) for entry in found] for kind, found in (tree or {}).items()}

    def add(self, outcome) -> None:
        """Takes an `image_text.Dropped`, if its hash is small enough."""
        found = self._kinds.setdefault(outcome.kind, [])
        order = name_hash(outcome.source, outcome.key)
        if len(found) == MOST and order >= found[-1][0]:
            return
        entry = outcome.json() | {"picture": _small(outcome.image)}
        self._insert(found, order, entry)

    def update(self, other: Dropped) -> None:
        for kind, entries in other._kinds.items():
            for order, entry in entries:
                self._insert(self._kinds.setdefault(kind, []), order, entry)

    def _insert(self, found: list, order: int, entry: dict) -> None:
        bisect.insort(found, (order, entry), key=lambda one: one[0])
        del found[MOST:]

    def json(self) -> dict[str, list]:
        return self._kinds

    def chosen(self) -> list[dict]:
        """`MOST` entries at most, of each kind in turn, kinds in the order of their names."""
        entries = {kind: [entry for _, entry in found] for kind, found in sorted(self._kinds.items())}
        if FAILED in entries:
            entries[FAILED] = entries[FAILED][:_MOST_FAILED]
        turn = [(place, kind) for kind, found in entries.items() for place in range(len(found))]
        picked = sorted(sorted(turn)[:MOST], key=lambda one: (one[1], one[0]))
        return [entries[kind][place] for place, kind in picked]


def _small(image: bytes) -> str:
    """A JPEG for the sheet in base64; "" for bytes that show no picture."""
    if not image:
        return ""
    try:
        pixels = decode.decode(image, truncated="fill", reduce_to=(_SIDE, _SIDE))
    except (BadRecord, MemoryError):
        return ""
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
    return base64.b64encode(encoded.tobytes()).decode()


def page(tree: Mapping[str, Any], shown: Mapping[str, list], notes: Sequence[str] = ()) -> str:
    """The page. `tree`: a manifest. `shown`: the entries by "kept" and "dropped". `notes`: a sentence each."""
    import jinja2

    folder = epath.resource_path("maeclip_jax") / "templates"
    source = {p.name: p.read_text() for p in folder.iterdir() if p.name.endswith(".j2")}
    setting = {"loader": jinja2.DictLoader(source), "trim_blocks": True, "lstrip_blocks": True}
    html = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, **setting)
    records = tree["records"]
    failed = sum(records["failed_downloads"].values())
    shares = [("kept", records["kept"], "var(--good)"), ("dropped", records["dropped"], "var(--bad)"),
              ("failed downloads", failed, "var(--soft)")]  # fmt: skip
    values = {
        "tree": tree, "kinds": _KINDS, "notes": notes, "shares": [s for s in shares if s[1]], "failed": failed,
        "kept": shown["kept"], "dropped": shown["dropped"], "most": MOST,
    }  # fmt: skip
    return printable(html.get_template("account.html.j2").render(values))
