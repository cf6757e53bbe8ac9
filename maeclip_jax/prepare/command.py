"""Converts image-text data into a TFDS data set (ArrayRecord files; no TensorFlow) and accounts for every record.

    python -m maeclip_jax.prepare --src photos/ --out data --name photos --short_side 256

reads a folder or file (formats: `prepare/formats`), checks every picture, and writes `data/photos/1.0.0`, which
`tfds.builder_from_directory("data/photos/1.0.0").as_data_source("train")` opens. The same command again continues, or
says that nothing is left to do. --src and --out may be in buckets (gs://). Such an --out is filled shard by shard from
a local folder, --scratch, and is a data set once all are there. `--runner beam` does the same work through TFDS's Beam
builder, for data that is too large for one machine: `--beam_options="--runner=DataflowRunner --project=..."`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path

from etils import epath

from maeclip_jax import cli, errors
from maeclip_jax.errors import storage
from maeclip_jax.prepare import crawl, formats

RUNNERS = ("local", "beam")
CHOICES = ("keep", "drop")


def parser() -> cli.Parser:
    p = cli.Parser("maeclip_jax.prepare", __doc__)
    p.add_argument("--src", required=True, help="folder or file to read")
    p.add_argument("--out", required=True, help="TFDS data directory; the data set goes to OUT/NAME/1.0.0")
    p.add_argument("--scratch", default="", help="local folder for unfinished work, if --out is in a bucket (.)")
    p.add_argument("--name", default="my_pairs", help="name of the data set: small letters, digits, _ (%(default)s)")
    p.add_argument("--format", default="auto", help=f"auto, {', '.join(formats.FORMATS)} (%(default)s)")
    p.add_argument("--image_column", default="", help="column of picture paths or bytes (the first usual name)")
    p.add_argument(
        "--caption_column",
        default="",
        help="field of captions, or a path to it such as captions[].text (the first usual name)",
    )
    p.add_argument("--split_column", default="", help="column that names the split ('split' if there is one)")
    p.add_argument(
        "--ignore_split", action="store_true", help="all go to --split, whatever columns and names of files say"
    )
    p.add_argument("--split", default="train", help="split of records that name none (%(default)s)")
    p.add_argument("--image_dir", default="", help="where picture paths start (beside the table, or in images/ there)")
    p.add_argument("--short_side", type=int, default=0, help="shrink larger pictures to it, e.g. 256 (0: keep sizes)")
    p.add_argument("--quality", type=int, default=92, help="JPEG quality of re-encoded pictures (%(default)s)")
    p.add_argument("--max_pixels", type=int, default=1 << 26, help="larger pictures are dropped (%(default)s)")
    p.add_argument(
        "--same_bytes", default="keep", help="keep or drop pictures with the bytes of an earlier one (%(default)s)"
    )
    p.add_argument(
        "--not_in", default="", help="an evaluation set, a folder of pictures or FOLDER:SPLIT: drop what looks like it"
    )
    p.add_argument(
        "--near_duplicates", default="drop", help="drop what looks like --not_in, or keep and count it (%(default)s)"
    )
    p.add_argument("--unit_records", type=int, default=0, help="records of a unit of work (0: 1/64; a tar is one)")
    p.add_argument("--max_bad", type=float, default=0.5, help="share of bad records that is an error (%(default)s)")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    p.add_argument("--runner", default="local", help=f"{' or '.join(RUNNERS)} (%(default)s)")
    p.add_argument("--beam_options", default="", help="options of the Beam pipeline, one string")
    p.add_argument("--tokenizer", default="", help="count captions that it cuts: bytes, bert:FILE, clip:FILE, ...")
    p.add_argument("--text_length", type=int, default=0, help="tokens at which --tokenizer cuts a caption")
    p.add_argument(
        "--check", action="store_true", help="read a sample of every shard and say what would be; prepare nothing"
    )
    p.add_argument("--overwrite", action="store_true", help="replace an existing data set of this name and version")
    return p


def prepare(args: argparse.Namespace) -> dict:
    """Runs one preparation (see `parser` for the fields) and returns its manifest. Raises UserError."""
    _check(args)
    plan = crawl.plan(
        args.src,
        format=args.format,
        image_column=args.image_column,
        caption_column=args.caption_column,
        split_column=None if args.ignore_split else args.split_column,
        image_dir=args.image_dir,
        split=args.split,
        unit_records=args.unit_records,
    )
    from maeclip_jax.prepare import image_text, manifest, near

    storing = image_text.Storing(args.short_side, args.quality, args.max_pixels)
    close = near.read(args.not_in, args.near_duplicates == "drop") if args.not_in else None
    if args.check:
        return _dry_run(plan, storing, close, args)
    counting = manifest.Counting(args.tokenizer, args.text_length) if args.tokenizer else None
    reading = dataclasses.asdict(plan.reading)
    source = {name: reading.pop(name) for name in ("format", "root")} | {"files": plan.files}
    options = reading | dataclasses.asdict(storing) | {"unit_records": args.unit_records, "runner": args.runner}
    options |= {"same_bytes": args.same_bytes}
    if close:
        options |= {"not_in": f"{args.not_in} {close.digest()}", "near_duplicates": args.near_duplicates}
    if counting:
        options |= dataclasses.asdict(counting)
    identity = {"options": options, "source": source}
    out = crawl.located(args.out) / args.name / image_text.VERSION
    scratch = _scratch(args)
    if args.overwrite:
        _remove(out, scratch, args.name)
    there = out / "dataset_info.json" if scratch else out  # a bucket is filled file by file, and this is the last one
    if crawl.exists(there):
        return _finished(out, identity)
    for note in plan.notes:
        print(note, file=sys.stderr)
    arguments = {"out": out, "name": args.name, "max_bad": args.max_bad, "identity": identity}
    arguments |= {"near": close, "drop_same": args.same_bytes == "drop"}
    then = "the same command continues when it can be written" if args.runner == "local" else ""
    with storage.writing(out, then=then):
        if args.runner == "beam":
            from maeclip_jax.prepare import image_text_beam

            tree = image_text_beam.run(plan, storing, options=args.beam_options, **arguments)
        else:
            from maeclip_jax.prepare import assembly

            if scratch:
                print(
                    f"unfinished work lies in {assembly.building(out, args.name, scratch)} until all is in {out}",
                    file=sys.stderr,
                )
            arguments |= {"counting": counting, "workers": args.workers, "progress": _bar, "scratch": scratch}
            tree = assembly.run(plan, storing, **arguments)
    print(manifest.report(tree))
    print(f"written to {out}")
    return tree


def _dry_run(plan, storing, close, args: argparse.Namespace) -> dict:
    from maeclip_jax.prepare import dry_run

    for note in plan.notes:
        print(note)
    page = crawl.located(args.out) / args.name / dry_run.FILE
    print(dry_run.report(plan, storing, args.max_bad, page, close))
    return {}


def _check(args: argparse.Namespace) -> None:
    if args.ignore_split and args.split_column:
        raise errors.UserError(f"--ignore_split and --split_column={args.split_column} exclude each other; give one")
    for name, valid in (("runner", RUNNERS), ("same_bytes", CHOICES), ("near_duplicates", CHOICES)):
        if getattr(args, name) not in valid:
            raise errors.unknown(name, getattr(args, name), valid)
    if args.near_duplicates != "drop" and not args.not_in:
        given = f"--near_duplicates={args.near_duplicates} needs an evaluation set"
        raise errors.UserError(f"{given}; valid: --not_in=FOLDER or --not_in=FOLDER:SPLIT beside it")
    if bool(args.tokenizer) != (args.text_length > 0):
        raise errors.UserError(
            f"--tokenizer={args.tokenizer} and --text_length={args.text_length} go together; valid: both, such as "
            "--tokenizer=bytes --text_length=64, or neither"
        )
    if args.tokenizer and args.runner == "beam":
        raise errors.UserError("--tokenizer is counted by runner local; valid: --runner local, or no --tokenizer")
    if args.tokenizer:
        from maeclip_jax.prepare import manifest

        manifest.Counting(args.tokenizer, args.text_length).make()  # a wrong one is said before any work
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name):
        raise errors.UserError(f"name {args.name!r} is not a TFDS name; valid: small letters, digits and _")
    if args.scratch and ("://" in args.scratch or "://" not in args.out or args.runner != "local"):
        choice = "a local folder, with --out in a bucket and --runner local; else leave it out"
        given = f"scratch={args.scratch!r} with out={args.out!r} and runner {args.runner}"
        raise errors.UserError(f"{given}; valid: {choice}")
    for name, low, high in (("workers", 1, 4096), ("max_bad", 0, 1), ("unit_records", 0, 10**9)):
        if not low <= getattr(args, name) <= high:
            raise errors.UserError(f"{name}={getattr(args, name)}; valid: {low} to {high}")


def _finished(out: epath.Path, identity: dict) -> dict:
    from maeclip_jax.prepare import manifest

    path = out / "manifest.json"  # the last file to be written
    if not path.exists():
        raise errors.UserError(f"{str(out)!r} holds another data set; valid: another --name or --out, or --overwrite")
    tree = json.loads(path.read_text())
    manifest.check_same(tree, identity, out)
    print(manifest.report(tree))
    print(f"nothing left to do: {out} is complete")
    return tree


def _scratch(args: argparse.Namespace) -> Path | None:
    """The local folder for unfinished work; None where that lies beside the data set."""
    remote = "://" in args.out and args.runner == "local"
    return Path(args.scratch or ".").expanduser().resolve() if remote else None


def _remove(out: epath.Path, scratch: Path | None, name: str) -> None:
    from maeclip_jax.prepare import assembly
    from maeclip_jax.prepare.formats import remote

    if scratch:
        remote.remove(out)
        shutil.rmtree(assembly.building(out, name, scratch), ignore_errors=True)
        return
    for folder in (out, assembly.building(out, name)):
        if crawl.exists(folder):
            folder.rmtree()


def _bar(total: int | None, what: str):
    import tqdm

    return tqdm.tqdm(total=total, unit=" records", smoothing=0.05, dynamic_ncols=True, desc=what)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 for an error that the user can correct (one line on stderr), 130 interrupted."""

    def run() -> None:
        prepare(parser().parse_args(argv))

    return cli.guarded(run)
