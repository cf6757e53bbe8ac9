"""The layouts of image-text pairs that are read, each in a file of its own.

A format is a module with

- `NAME`, and `SAID`, which stands in the list of what is valid;
- `find(look, wanted, forced)`: the paths of a `Listing` that are of this format, in order; what is nearly of it but
  cannot be read goes to `look.refusals`, a sentence each that ends in what to do;
- `divide(reading, look, paths, wanted, unit_records)`: a `Plan`, whose reading is complete;
- `described(look, plan)`: one line that says what the source is;
- `fields(reading, unit)`: what else the first record of a unit holds, to choose captions from;
- `read(reading, unit)`: every record of a unit in the order of the source, bad ones too, and the failed downloads.

`wanted` holds the columns that were asked for by role (image, caption, split; "" where none was). A layout more is one
file more, and its line in `FORMATS`.

What layouts share is here, too. `listing` lists a source by `folders`, `names` knows what names of files tell, and
`remote` opens those in buckets. `table_rows`, `json_arrays`, `batches`, `tarball`, `members` and `columnar` take rows
and samples out of files. `img2dataset` knows what that tool writes beside its shards, `captions` which field holds
captions, `pictures` how to fetch pictures that rows only name. `units` has a source divided, `raw` a record as it is
read.
"""

from __future__ import annotations

from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare.formats import (
    arrow,
    files,
    img2dataset,
    names,
    parquet,
    remote,
    table,
    tfrecord,
    url_list,
    webdataset,
)
from maeclip_jax.prepare.formats.listing import Listing

# In this order when the format is to be found.
FORMATS = {module.NAME: module for module in (webdataset, arrow, tfrecord, table, url_list, files, parquet)}


def valid() -> str:
    return "a folder or file of " + ", ".join(f"{module.NAME} ({module.SAID})" for module in FORMATS.values())


def find(look: Listing, format: str, wanted: dict, path: epath.Path) -> tuple[str, list[str]]:
    """(format, its paths in order). The first format with anything to read wins. UserError if there is none."""
    forced = format != "auto"
    for kind in (format,) if forced else FORMATS:
        found = FORMATS[kind].find(look, wanted, forced)
        if found:
            look.notes += [f"Left out: {refusal.partition(';')[0]}." for refusal in look.refusals]
            look.notes += _left_out(look, found) + _loose(look, kind)
            return kind, found
    if look.refusals:
        raise errors.UserError(look.refusals[0])
    if remote.is_remote(path) and format in ("auto", "files") and look.pictures:
        raise errors.UserError(
            f"source {str(path)!r} holds nothing that can be read from a bucket; valid: webdataset, table or parquet "
            f"there, or a local copy of loose files: gcloud storage cp -r {path} ."
        )
    choice = f"a source of {format}, or --format auto, {', '.join(FORMATS)}" if forced else valid()
    raise errors.UserError(f"source {str(path)!r} {_what(look)}; valid: {choice}")


def _left_out(look: Listing, found: list[str]) -> list[str]:
    """A sentence about files beside the source that could hold data, and are not read."""
    data = (*names.TARS, ".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".tfrecord", ".zip")
    said = " ".join(look.refusals)
    rest = [path for path in look.with_suffix(*data) if path not in found and path not in said]
    rest = [path for path in rest if not img2dataset.is_side(look, path)]
    return [f"Left out: {', '.join(rest[:4])}{', ...' if len(rest) > 4 else ''}."] if rest else []


def _loose(look: Listing, kind: str) -> list[str]:
    """A sentence about loose pictures that are not read, but for those that a table may name."""
    if kind == files.NAME:
        where, what = [folder for folder in look.loose if folder not in look.pairs], "pictures without texts"
    elif kind in (webdataset.NAME, tfrecord.NAME):
        where, what = list(look.loose), "loose pictures"
    else:
        where, what = look.pairs, "pictures, as far as no row names them, and the texts beside them"
    some = ", ".join(sorted(where)[:4]) + (", ..." if len(where) > 4 else "")
    return [f"Left out: {sum(look.loose[folder] for folder in where):,} {what}, in {some}."] if where else []


def _what(look: Listing) -> str:
    """Why nothing can be read, as well as names tell it."""
    if look.pictures:
        return f"holds nothing that can be read: {look.pictures:,} pictures, and no captions beside them"
    if not look.files:
        return "is empty"
    found = sorted({names.suffix(file) or "no extension" for file in look.files})
    archives = [f for f in look.files if names.suffix(f) in (".zip", ".rar", ".7z")]
    if archives:
        return f"holds archives that are not read; unpack them first: unzip {archives[0]} -d pairs"
    return f"holds nothing that can be read ({len(look.files):,} files: {', '.join(found[:8])})"
