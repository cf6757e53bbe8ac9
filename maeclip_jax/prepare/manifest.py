"""The account of a preparation: what went in, what was kept, what was dropped and why, how large it is.

`manifest.json` holds it for programs and `report.txt` for people. Neither holds a time or a number of workers: the
same source and options give the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable

from etils import epath

from maeclip_jax import errors
from maeclip_jax.data import tokenizer as tokenizers
from maeclip_jax.prepare import suspects
from maeclip_jax.prepare.formats.raw import FAILED

QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
QUANTITIES = {
    "source_width": "pixels",
    "source_height": "pixels",
    "source_short_side": "pixels",
    "width": "pixels, as stored",
    "height": "pixels, as stored",
    "short_side": "pixels, as stored",
    "picture_bytes": "bytes, as stored",
    "captions": "a picture",
    "caption_words": "words",
    "caption_characters": "characters",
}
ACCOUNT = "account.jsonl"  # every record that was not kept, and why
PACKAGES = ("array_record", "numpy", "opencv-python-headless", "pillow", "tensorflow-datasets")


@dataclasses.dataclass(frozen=True)
class Counting:
    """`tokenizer`: a type and its file, such as "bert:bert_vocab.txt", or "bytes". `text_length`: where it cuts."""

    tokenizer: str
    text_length: int

    def make(self):
        """The tokenizer. UserError for an unknown type or a file that is not there."""
        kind, _, path = self.tokenizer.partition(":")
        return tokenizers.make({"type": kind} | ({"path": path} if path else {}))

    @functools.cached_property
    def made(self):
        """The tokenizer, made once."""
        return self.make()


class Tally:
    """Counts and histograms of outcomes; tallies of parts add up to the tally of the whole.

    Values above 1000 are rounded to three digits in the histograms, so that a billion records need no more memory than
    a thousand.
    """

    def __init__(self, counting: Counting | None = None):
        self.counting = counting
        self.totals: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()  # by split
        self.dropped: Counter[str] = Counter()  # by kind
        self.failed: Counter[str] = Counter()  # downloads that failed before, by status
        self.suspects: Counter[str] = Counter()  # kept, by kind of `suspects.KINDS`
        self.histograms: dict[str, Counter[int]] = {name: Counter() for name in QUANTITIES}

    @property
    def records(self) -> int:
        """Records that went in, without the downloads that had failed before."""
        return self.kept.total() + self.dropped.total()

    @property
    def bad(self) -> int:
        """Records that were dropped without having been asked for."""
        return sum(n for kind, n in self.dropped.items() if kind not in suspects.ON_REQUEST)

    @property
    def seen(self) -> int:
        """Records that went in, and downloads that had failed before."""
        return self.records + self.failed.total()

    def add(self, outcome) -> None:
        """Counts a `Kept` or `Dropped` of `image_text`."""
        self.totals["rows"] += outcome.rows
        if not hasattr(outcome, "stored"):
            if outcome.kind == FAILED:
                self.failed[outcome.status] += 1
                return
            self.dropped[outcome.kind] += outcome.records
            return
        stored, texts = outcome.stored, outcome.example["texts"]
        self.kept[outcome.split] += 1
        self.totals["kept_verbatim"] += stored.verbatim
        self.totals["turned_upright"] += stored.turned
        self.suspects.update(kind for kind, _ in stored.suspect)
        self.totals["empty_captions_left_out"] += outcome.empty_captions
        self.totals["further_members_left_out"] += outcome.extras
        self.totals["source_picture_bytes"] += outcome.source_bytes
        self.totals["stored_picture_bytes"] += len(stored.image)
        values = {
            "source_width": stored.source_width,
            "source_height": stored.source_height,
            "source_short_side": min(stored.source_width, stored.source_height),
            "width": stored.width,
            "height": stored.height,
            "short_side": min(stored.width, stored.height),
            "picture_bytes": len(stored.image),
            "captions": len(texts),
        }
        for name, value in values.items():
            self.histograms[name][_rounded(value)] += 1
        for text in texts:
            self.histograms["caption_words"][_rounded(len(text.split()))] += 1
            self.histograms["caption_characters"][_rounded(len(text))] += 1
            if self.counting:
                self.totals["captions_tokenized"] += 1
                self.totals["captions_cut"] += self.counting.made.count(text) > self.counting.text_length

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        total = cls()
        for tally in tallies:
            for mine, other in zip(total._counters(), tally._counters()):
                mine.update(other)
        return total

    def _counters(self) -> list[Counter]:
        return [*self._parts().values(), *self.histograms.values()]

    def _parts(self) -> dict[str, Counter]:
        return {name: getattr(self, name) for name in ("totals", "kept", "dropped", "failed", "suspects")}

    def json(self) -> dict:
        parts = {name: _sorted(counter) for name, counter in self._parts().items()}
        return {**parts, "histograms": {name: _sorted(h) for name, h in self.histograms.items()}}

    @classmethod
    def from_json(cls, tree: dict) -> Tally:
        tally = cls()
        for name, counter in tally._parts().items():
            counter.update(tree[name])
        for name, histogram in tree["histograms"].items():
            tally.histograms[name].update({int(v): n for v, n in histogram.items()})
        return tally

    def quantiles(self, name: str) -> dict[str, int]:
        """{'0': smallest, ..., '1': largest} of a quantity; empty if no record was kept."""
        histogram = sorted((v, n) for v, n in self.histograms[name].items() if n > 0)
        total = sum(n for _, n in histogram)
        result, below, rest = {}, 0, iter(histogram)
        value = None
        for q in QUANTILES if total else ():
            while value is None or below < max(q * total, 1):
                value, count = next(rest)
                below += count
            result[f"{q:g}"] = value
        return result


def _rounded(value: int) -> int:
    return value if value < 1000 else int(float(f"{value:.3g}"))


def _sorted(counter: Counter) -> dict[str, int]:
    return {str(k): n for k, n in sorted(counter.items()) if n}


def build(name: str, identity: dict, tally: Tally, shards: dict[str, list[dict]], upstream: Counter) -> dict:
    """The tree of `manifest.json`. `shards`: split -> [{file, records, bytes, sha256}] in order."""
    return {
        "name": name,
        "options": identity["options"],
        "source": identity["source"],
        "upstream": _sorted(upstream),
        "records": {
            "in": tally.seen,
            "kept": tally.kept.total(),
            "kept_by_split": _sorted(tally.kept),
            "dropped": tally.dropped.total(),
            "dropped_by_kind": _sorted(tally.dropped),
            "failed_downloads": _sorted(tally.failed),
            "suspects": _sorted(tally.suspects),
        },
        "totals": _sorted(tally.totals),
        "splits": {
            split: {"records": sum(s["records"] for s in files), "shards": files} for split, files in shards.items()
        },
        "quantiles": {q: tally.quantiles(q) for q in QUANTITIES},
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def report(manifest: dict) -> str:
    """The manifest for people: records, drops by class, sizes."""
    records, totals = manifest["records"], manifest["totals"]
    lines = [f"{manifest['name']} from {manifest['source']['format']} in {manifest['source']['root']}", ""]
    upstream = manifest["upstream"]
    if upstream:
        named = ", ".join(f"{n:,} {k.replace('_', ' ')}" for k, n in upstream.items())
        lines += [f"img2dataset says of its own part: {named}", ""]
    failed = sum(records["failed_downloads"].values())
    if totals.get("rows", 0) != records["in"]:
        lines.append(f"{totals.get('rows', 0):>12,} rows or entries read, joined into")
    lines.append(f"{records['in']:>12,} records in")
    for split, entry in manifest["splits"].items():
        shards = len(entry["shards"])
        lines.append(f"{entry['records']:>12,} kept in split {split} ({shards} shard{'s' * (shards > 1)})")
    for kind, count in records["dropped_by_kind"].items():
        lines.append(f"{count:>12,} dropped: {kind}")
    for status, count in records["failed_downloads"].items():
        lines.append(f"{count:>12,} downloads had failed before: {status}")
    share = records["dropped"] / max(1, records["in"] - failed)
    what = "dropped in all ({share:.2%}), failed downloads apart" if failed else "dropped in all ({share:.2%})"
    lines.append(f"{records['dropped']:>12,} {what.format(share=share)}; each is named in {ACCOUNT}")
    for kind, count in records["suspects"].items():
        lines.append(f"{count:>12,} kept, but look at them: {suspects.KINDS[kind]}")
    lines += [f"{'':12s} {suspects.FILE} names each"] * bool(records["suspects"]) + [""]
    verbatim = totals.get("kept_verbatim", 0)
    lines.append(f"{verbatim:>12,} pictures stored byte for byte, {records['kept'] - verbatim:,} encoded anew")
    if totals.get("turned_upright"):
        lines.append(f"{totals['turned_upright']:>12,} pictures turned upright, as the source says that they lay")
    if totals.get("further_members_left_out"):
        lines.append(f"{totals['further_members_left_out']:>12,} further pictures and texts of a sample left out")
    if totals.get("empty_captions_left_out"):
        lines.append(f"{totals['empty_captions_left_out']:>12,} empty captions left out beside others of their picture")
    if totals.get("captions_tokenized"):
        cut, options = totals.get("captions_cut", 0), manifest["options"]
        share, length = cut / totals["captions_tokenized"], options["text_length"]
        lines.append(f"{cut:>12,} captions ({share:.2%}) cut at {length} tokens by {options['tokenizer']}")
    before, after = totals.get("source_picture_bytes", 0), totals.get("stored_picture_bytes", 0)
    lines += [f"{after / 1e6:>12,.1f} MB of pictures stored, of {before / 1e6:,.1f} MB read", ""]
    lines.append(f"{'quantile':24s}" + "".join(f"{f'{q:.0%}':>10s}" for q in QUANTILES))
    for quantity, unit in QUANTITIES.items():
        values = manifest["quantiles"][quantity]
        lines.append(f"{quantity:24s}" + "".join(f"{v:>10,}" for v in values.values()) + f"  {unit}")
    return "\n".join(lines) + "\n"


def check_share(tally: Tally, max_bad: float, account: object = "") -> None:
    """Raises UserError with the counts when more than `max_bad` of the records were dropped, or nothing was kept.

    `account`: the file that names each of them.
    """
    bad, records = tally.bad, tally.records
    if bad <= max_bad * records and tally.kept.total():
        return
    kinds = ", ".join(f"{kind} {n}" for kind, n in tally.dropped.most_common()) or "the source is empty"
    if not tally.kept.total():
        bad = tally.dropped.total()
    limit = f"more than max_bad={max_bad:g}" if tally.kept.total() else "so nothing is left"
    where = f"; {account} names each" if account else ""
    raise errors.UserError(
        f"{bad} of {records} records are bad ({kinds}), {limit}{where}; "
        "valid: other columns, a better source, or a larger --max_bad (finished work is kept)"
    )


def check_same(before: dict, now: dict, where: epath.Path) -> None:
    """Raises UserError with the differences between the preparation stored in `where` and the requested one."""
    for part in ("options", "source"):
        for name in sorted(before[part].keys() | now[part].keys()):
            old, new = before[part].get(name), now[part].get(name)
            if old == new:
                continue
            change = _changed_file(old, new) if name == "files" else f"{name}={old!r}, which is now {new!r}"
            raise errors.UserError(
                f"{str(where)!r} was prepared with {change}; "
                "valid: the same as before, another --name or --out, or --overwrite"
            )


def _changed_file(old: dict[str, str], new: dict[str, str]) -> str:
    changed = [p for p in sorted(old.keys() | new.keys()) if old.get(p) != new.get(p)]
    path = changed[0]
    what = "which is gone" if path not in new else "which has changed" if path in old else "absent"
    more = f" (and {len(changed) - 1} more differ)" if len(changed) > 1 else ""
    return f"source file {path!r} {what}{more}" if what == "absent" else f"source file {path!r}, {what}{more}"


def dump(tree: dict) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def sha256(path: epath.Path) -> str:
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
