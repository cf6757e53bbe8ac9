"""What a preparation would do, by a sample of every unit of work: no data set is written."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict

from etils import epath

from maeclip_jax.errors import storage
from maeclip_jax.prepare import formats, image_text, manifest, sheet, suspects
from maeclip_jax.prepare.formats import captions
from maeclip_jax.prepare.formats.units import Plan
from maeclip_jax.prepare.image_text import Kept, Storing
from maeclip_jax.prepare.manifest import Tally
from maeclip_jax.prepare.near import Near

FILE = "check.html"
_RECORDS = 2000  # of all units together, but at least
_LEAST = 4  # of each
_MOST = 64


def report(plan: Plan, storing: Storing, max_bad: float, page: epath.Path, near: Near | None = None) -> str:
    """The account of the sample, for people. The contact sheet of the sample is written to `page`."""
    each = min(_MOST, max(_LEAST, _RECORDS // len(plan.units)))
    tally, examples, places = Tally(), {}, defaultdict(set)
    kept: list[tuple[int, Kept]] = []
    dropped, digests = sheet.Dropped(), set()
    for unit in plan.units:
        for outcome in itertools.islice(image_text.outcomes(plan.reading, storing, unit, near), each):
            tally.add(outcome)
            if not isinstance(outcome, Kept):
                examples.setdefault(outcome.kind, f"{outcome.source}, {outcome.key}: {outcome.detail}")
                dropped.add(outcome)
                continue
            places[outcome.key].add(outcome.example["source"])
            tally.suspects[suspects.SAME] += outcome.digest in digests
            digests.add(outcome.digest)
            order = sheet.name_hash(outcome.example["source"], outcome.key)
            if len(kept) < sheet.MOST or order < kept[-1][0]:
                bisect.insort(kept, (order, outcome), key=lambda one: one[0])
                del kept[sheet.MOST :]
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
    for kind, count in sorted(tally.suspects.items()):
        if count:
            lines.append(f"{count} of {tally.kept.total()} pictures: {suspects.KINDS[kind]}.")
    if tally.bad > max_bad * max(1, tally.records):
        lines.append(f"More than max_bad={max_bad:g} of the sample is bad: a preparation would end with an error.")
    identity = {"options": {}, "source": {"format": plan.reading.format, "root": plan.reading.root}}
    tree = manifest.build(page.parent.name, identity, tally, {}, Counter())
    shown = {"kept": [sheet.kept(k.example, k.split) for _, k in kept], "dropped": dropped.chosen()}
    said = [f"This is a sample of up to {each} records of each of {len(plan.units)} units of work.", *plan.notes]
    with storage.writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(sheet.page(tree, shown, said))
    lines.append(f"{page} shows some of the pictures. No data set was written; the same command without --check does.")
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
