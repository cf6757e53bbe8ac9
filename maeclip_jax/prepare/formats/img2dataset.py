"""What img2dataset writes beside and into its shards: counts, the downloads that failed, how a picture was stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from maeclip_jax import errors
from maeclip_jax.errors import BadRecord
from maeclip_jax.prepare.formats import batches, names, remote
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import Raw, printable
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit, splits_of, unit_split

DOWNLOAD = ("img2dataset --url_list {list} --input_format {format} --url_col {url} --caption_col {caption} "
            "--output_format webdataset --output_folder pairs --resize_mode keep_ratio --image_size 256")  # fmt: skip
_TURNED = {
    "Horizontal (normal)": 1,
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}
_FAILED = "failed_to_"  # download or resize; video2dataset: subsample
_COLUMNS = ("key", "url", "status", "error_message")


def beside(look: Listing, path: str) -> tuple[str, bool]:
    """(the table of all downloads of a shard or "", whether there are counts, which come when it is finished)."""
    folder, _, _ = path.rpartition("/")
    stem = f"{folder}/{names.stem(path)}" if folder else names.stem(path)
    side = f"{stem}.parquet"
    return side if side in look.files and side != path else "", f"{stem}_stats.json" in look.files


def is_side(look: Listing, path: str) -> bool:
    """Whether a parquet file or json is img2dataset's own account of a shard."""
    if path.endswith("_stats.json"):
        return True
    stem = path.removesuffix(".parquet")
    if stem in look.pairs or any(stem + suffix in look.files for suffix in (*names.TARS, ".tfrecord")):
        return True
    return bool(look.pairs) and stem.rpartition("/")[2].isdigit()  # none of its downloads gave a picture


def unfinished(look: Listing, paths: list[str]) -> list[str]:
    """The shards without counts where others have them, or where each has a table."""
    found = {path: beside(look, path) for path in paths}
    if not any(side or done for side, done in found.values()):
        return []
    return [path for path, (_, done) in found.items() if not done]


def is_output(look: Listing, paths: list[str]) -> bool:
    """Whether img2dataset wrote these shards. video2dataset and DataComp's resharder write other counts."""
    found = {path: beside(look, path) for path in paths}
    counted = next((path for path, (_, done) in found.items() if done), "")
    if counted:
        return "failed_to_resize" in upstream(look.root / counted)
    return any(side for side, _ in found.values())


def described(look: Listing, paths: list[str], what: str) -> str:
    """One line such as "img2dataset webdataset output: 12 shards, 1 unfinished"."""
    count = f"{len(paths)} shard{'s' * (len(paths) != 1)}"
    if not is_output(look, paths):
        return f"{what}: {count}"
    left = unfinished(look, paths)
    return f"img2dataset {what} output: {count}" + (f", {len(left)} unfinished" if left else "")


def notes(look: Listing, paths: list[str]) -> tuple[str, ...]:
    left = unfinished(look, paths)
    if not left:
        return ()
    some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    return (
        f"Unfinished, for there is no _stats.json: {some}; what is there is read. The img2dataset command of the "
        "download with --incremental_mode=incremental finishes it.",
    )


def upstream(shard: epath.Path) -> dict[str, int]:
    """The counts in img2dataset's `00000_stats.json` of this shard ({} if missing): count, successes, failed_*."""
    try:
        found = json.loads(remote.read(shard.parent / f"{names.stem(shard.name)}_stats.json") or b"{}")
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, errors.UserError):  # which is a ValueError
            raise
        return {}
    counts = ("count", "successes", "failed_to_download", "failed_to_resize")
    return (
        {n: int(found[n]) for n in counts if isinstance(found.get(n), int | float)} if isinstance(found, dict) else {}
    )


def upstreams(root: epath.Path, look: Listing, paths: list[str]) -> list[dict[str, int]]:
    """`upstream` of each shard; nothing is asked for where the listing has no counts."""
    with ThreadPoolExecutor(32) as threads:  # a remote file system answers slowly, but many at a time
        return list(threads.map(lambda path: upstream(root / path) if beside(look, path)[1] else {}, paths))


def whole_shards(reading: Reading, look: Listing, paths: list[str], wanted: dict) -> Plan:
    """The plan of shards that are a unit each, with what stands beside them."""
    units = []
    for path, count in zip(paths, upstreams(look.root, look, paths)):
        size, side = look.files[path], beside(look, path)[0]
        mark = f"{size}+{look.files[side]}" if side else f"{size}"
        expected = count.get("count" if side else "successes")
        split = unit_split(path, wanted)
        units.append(Unit(len(units), path, mark, size, expected, split=split, side=side))
    return Plan(reading, tuple(units), splits_of(reading, units), notes(look, paths))


def upstream_total(plan: Plan) -> Counter[str]:
    """The sum of `upstream` over all shards."""
    root, total = epath.Path(plan.reading.root), Counter()
    with ThreadPoolExecutor(32) as threads:
        for counts in threads.map(upstream, [root / path for path in plan.files]):
            total.update(counts)
    return total


def failed(row: dict, pictured: bool = True) -> bool:
    """Whether a row tells of a download that failed, by img2dataset's words for that.

    Other tools may have other words, but theirs count only where the row has no picture (`pictured` False): a column
    `status` may mean anything.
    """
    status = row.get("status")
    if not isinstance(status, str) or status == "success":
        return False
    return status.startswith(_FAILED) or not pictured


def failure(key: str, row: dict, reading: Reading, unit: Unit) -> Raw:
    """The record of a download that failed."""
    message = " ".join(str(row.get("error_message") or "no message").split())
    facts = {"url": printable(str(row.get("url") or "")), "status": printable(row["status"])}
    error = BadRecord("failed_download", printable(message))
    return Raw(printable(key), unit.path, unit.split or reading.split, **facts, error=error)


def failures(reading: Reading, unit: Unit) -> Iterator[Raw]:
    """The downloads that failed, as the table beside the shard names them. A table that is cut short names none."""
    if not unit.side:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = epath.Path(reading.root) / unit.side
    try:
        with remote.opened(path, remote.SHORT) as file, pq.ParquetFile(file) as table:
            columns = [c for c in table.schema_arrow.names if c in _COLUMNS]
            if "status" not in columns:
                return
            for batch in table.iter_batches(batch_size=1000, columns=columns):
                for row in batches.rows(batch):
                    if failed(row):
                        yield failure(str(row.get("key") or row.get("url")), row, reading, unit)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return


def orientation(exif: object) -> int:
    """1 to 8 by the words in img2dataset's field `exif` (a JSON text); 0 where it says nothing."""
    if not isinstance(exif, str) or "Image Orientation" not in exif:
        return 0
    try:
        found = json.loads(exif)
    except (ValueError, RecursionError):
        return 0
    return _TURNED.get(str(found.get("Image Orientation", "")).strip(), 0) if isinstance(found, dict) else 0
