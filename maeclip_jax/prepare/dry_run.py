"""What a preparation would do, by a sample of every unit of work: nothing is written."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import numpy as np

from maeclip_jax.data import decode
from maeclip_jax.prepare import formats, image_text
from maeclip_jax.prepare.formats import captions
from maeclip_jax.prepare.formats.units import Plan
from maeclip_jax.prepare.image_text import Kept, Storing
from maeclip_jax.prepare.manifest import Tally

_RECORDS = 2000  # of all units together, but at least
_LEAST = 4  # of each
_MOST = 64
_LOOKED_AT = 200  # pictures that are looked at for white bars
_WHITE = 250


def report(plan: Plan, storing: Storing, max_bad: float) -> str:
    """The account of the sample, for people."""
    each = min(_MOST, max(_LEAST, _RECORDS // len(plan.units)))
    tally, examples, places = Tally(), {}, defaultdict(set)
    looked, bars, white = 0, 0, 0
    for unit in plan.units:
        for outcome in itertools.islice(image_text.outcomes(plan.reading, storing, unit), each):
            tally.add(outcome)
            if not isinstance(outcome, Kept):
                examples.setdefault(outcome.kind, f"{outcome.source}, {outcome.key}: {outcome.detail}")
                continue
            places[outcome.key].add(outcome.example["source"])
            if looked < _LOOKED_AT:
                looked += 1
                kind = _looks(outcome.stored.image)
                bars += kind == "bars"
                white += kind == "white"
    lines = [f"A sample of up to {each} records of each of {len(plan.units)} units of work:", ""]
    lines += _counts(plan, tally)
    for kind, count in sorted(tally.dropped.items()):
        lines.append(f"{count:>12,} would be dropped: {kind}, such as {examples[kind]:.200}")
    for status, count in sorted(tally.failed.items()):
        lines.append(f"{count:>12,} downloads had failed before: {status}")
    lines.append("")
    lines += _captions(plan)
    repeated = [key for key, found in places.items() if len(found) > 1]
    if repeated:
        lines.append(f"{len(repeated)} keys are in several shards, such as {repeated[0]}; both records are kept.")
    if bars > looked / 4:
        lines.append(
            f"{bars} of {looked} pictures have white bars, as img2dataset's --resize_mode border makes them; "
            "--resize_mode keep_ratio makes none."
        )
    if white:
        lines.append(f"{white} of {looked} pictures are all white, as 16-bit pictures are that were clipped.")
    bad = tally.dropped.total()
    if bad > max_bad * max(1, tally.records):
        lines.append(f"More than max_bad={max_bad:g} of the sample is bad: a preparation would end with an error.")
    lines.append("Nothing was written; the same command without --check prepares the data set.")
    return "\n".join(lines)


def _counts(plan: Plan, tally: Tally) -> list[str]:
    size = sum(unit.size for unit in plan.units)
    lines = [f"{tally.kept[split]:>12,} would be kept in split {split}" for split in sorted(tally.kept)]
    total = [unit.records for unit in plan.units]
    if None not in total:
        lines.append(f"{sum(total):>12,} records in all, as the source counts them")
    lines.append(f"{size / 1e6:>12,.1f} MB to be read")
    read = tally.totals["source_picture_bytes"]
    if read:
        expected = size * tally.totals["stored_picture_bytes"] / read
        lines.append(f"{expected / 1e6:>12,.1f} MB to be written at most, about")
    return lines


def _captions(plan: Plan) -> list[str]:
    """The fields that could be captions, each in as many shards as have it."""
    fields, count = Counter(), 0
    first: dict = {}
    for path in list(plan.files)[:100]:
        unit = next(u for u in plan.units if u.path == path)
        row = formats.FORMATS[plan.reading.format].fields(plan.reading, unit)
        if row:
            count += 1
            first = first or row
            fields.update(list(row))
    if not first:
        return []
    lines = [f"Fields with text: {captions.described(first)}."]
    lacking = [f"{name} ({n} of {count})" for name, n in sorted(fields.items()) if n < count]
    if lacking:
        lines.append(f"Fields that only some shards have: {', '.join(lacking[:8])}.")
    return lines


def _looks(image: bytes) -> str:
    """ "white", "bars" (above and below, or on both sides, of a square) or ""."""
    pixels = decode.decode(image)
    if np.mean(pixels) > _WHITE:
        return "white"
    edges = (pixels[0], pixels[-1]), (pixels[:, 0], pixels[:, -1])
    square = pixels.shape[0] == pixels.shape[1]
    return "bars" if square and any(min(a.mean(), b.mean()) > _WHITE for a, b in edges) else ""
