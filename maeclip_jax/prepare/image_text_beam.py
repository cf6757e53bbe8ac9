"""Image-text pairs through TFDS's Beam builder: the same units and the same work on each, on any Beam runner."""

from __future__ import annotations

import functools
import json
import tempfile

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from maeclip_jax import errors
from maeclip_jax.prepare import image_text, manifest, packing, sheet, suspects, tfds_shards
from maeclip_jax.prepare.formats import img2dataset
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit
from maeclip_jax.prepare.image_text import Dropped, Kept
from maeclip_jax.prepare.manifest import Tally
from maeclip_jax.prepare.near import Near


class ImageText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`ImageText(plan, storing, name=..., ..., data_dir=...).download_and_prepare(...)`, then `.manifest`.

    The (hashed, hence shuffled) order is TFDS's; so is the commit, one rename at the end.
    Workers must see source, output and `scratch` (for the account) under the same path: gs://, or a mount.
    """

    VERSION = tfds.core.Version(image_text.VERSION)

    def __init__(self, plan: Plan, storing: image_text.Storing, *, name: str, scratch: str, max_bad: float,
                 identity: dict, near: Near | None = None, drop_same: bool = False, **kwargs):  # fmt: skip
        if not plan.splits:
            choice = "no --split_column, --ignore_split, or --runner local"
            raise errors.UserError(f"beam must know the splits before it reads {plan.reading.format}; valid: {choice}")
        self.name, self.plan, self.storing, self.scratch = name, plan, storing, epath.Path(scratch)
        self.max_bad, self.identity, self.manifest = max_bad, identity, {}
        self.near, self.drop_same = near, drop_same
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        text = image_text.description(self.plan)
        return tfds.core.DatasetInfo(builder=self, features=image_text.features(), description=text)

    def _example_writer(self):
        return _Writer(self.info.file_format)

    def _split_generators(self, dl_manager, pipeline):
        del dl_manager
        import apache_beam as beam

        work = functools.partial(_positioned, self.plan.reading, self.storing, self.plan.splits, self.near)
        found = pipeline | "Units" >> beam.Create(self.plan.units) | beam.Reshuffle() | "Read" >> beam.FlatMap(work)
        kept = found | "Kept" >> beam.Filter(_is_kept)
        # Only names travel to find out which record came first; pictures stay where they are.
        later = kept | "Places" >> beam.Map(_key_and_place) | beam.GroupByKey() | "Later" >> beam.FlatMap(_later)
        later = beam.pvalue.AsDict(later)
        unique = kept | "First" >> beam.Filter(_is_first, later)
        left = [kept | "Repeated" >> beam.FlatMap(_as_left_out, later)]
        digests = unique | "Digests" >> beam.Map(_digest_and_name) | "Equal" >> beam.GroupByKey()
        same = beam.pvalue.AsDict(digests | "Same" >> beam.FlatMap(_later_names))
        if self.drop_same:
            left.append(unique | "SameBytes" >> beam.FlatMap(_as_left_out, same))
            unique = unique | "FirstBytes" >> beam.Filter(_is_first, same)
        dropped = (found | "Bad" >> beam.Filter(_is_dropped), *left) | "Dropped" >> beam.Flatten()
        self._write_report(unique, dropped, unique | "Suspects" >> beam.FlatMap(_suspects, same))
        return {split: unique | f"Split{split}" >> beam.FlatMap(_of_split, split) for split in self.plan.splits}

    def _generate_examples(self):
        raise NotImplementedError("the pipeline of _split_generators is all there is")

    def _download_and_prepare(self, dl_manager, download_config):
        super()._download_and_prepare(dl_manager, download_config)
        # The data set still lies in TFDS's temporary folder: what fails here leaves nothing behind.
        tally, dropped, odd, shown = _read_report(self.scratch)
        manifest.check_share(tally, self.max_bad)
        shards = {split: _shards(info) for split, info in sorted(self.info.splits.items())}
        upstream = img2dataset.upstream_total(self.plan)
        self.manifest = manifest.build(self.name, self.identity, tally, shards, upstream)
        for file, entries in ((manifest.ACCOUNT, dropped), (suspects.FILE, odd)):
            lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            (self.data_path / file).write_text(lines)
        (self.data_path / "report.txt").write_text(manifest.report(self.manifest))
        (self.data_path / sheet.FILE).write_text(sheet.page(self.manifest, shown))
        (self.data_path / "manifest.json").write_text(manifest.dump(self.manifest))

    def _write_report(self, kept, dropped, odd) -> None:
        import apache_beam as beam

        self.scratch.mkdir(parents=True, exist_ok=True)
        totals = (kept, dropped) | "Outcomes" >> beam.Flatten() | "Tally" >> beam.CombineGlobally(_sum_of_outcomes)
        top = beam.combiners.Top
        best = kept | "Hashes" >> beam.Map(_hashed) | "Chosen" >> top.Smallest(sheet.MOST, key=_first)
        worst = dropped | "Kinds" >> beam.Map(_kind_and_hash) | "Worst" >> top.SmallestPerKey(sheet.MOST, key=_first)
        lines = {
            "tally": totals | "Json" >> beam.Map(_tally_line),
            "dropped": dropped | "Lines" >> beam.Map(_line),
            "odd": odd | "OddLines" >> beam.Map(_odd_line),
            "best": best | "Best" >> beam.Map(_best_line),
            "worst": worst | "WorstLines" >> beam.Map(_worst_line),
        }
        for name, found in lines.items():
            _ = found | f"Write{name}" >> beam.io.WriteToText(str(self.scratch / name))


class _Writer(tfds.core.ExampleWriter):
    """Writes a shard here and copies it there: ArrayRecord writes to local files only, `path` may be gs://."""

    def write(self, path, examples) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = epath.Path(folder) / "shard"
            writer = array_record_module.ArrayRecordWriter(str(local), packing.WRITER)
            for _, example in examples:
                writer.write(example)
            writer.close()
            local.copy(path, overwrite=True)


def _positioned(reading: Reading, storing: image_text.Storing, splits: tuple[str, ...],
                near: Near | None, unit: Unit):  # fmt: skip
    """((unit, number in it), outcome): the place says which of two records with one key came first."""
    for number, outcome in enumerate(image_text.outcomes(reading, storing, unit, near)):
        if splits and isinstance(outcome, Kept) and outcome.split not in splits:
            raise errors.UserError(
                f"{outcome.key} names the split {outcome.split!r}, and beam must know the splits before it reads; "
                "valid: --ignore_split, or --runner local"
            )
        yield (unit.index, number), outcome


def _is_kept(item) -> bool:
    return isinstance(item[1], Kept)


def _is_dropped(item) -> bool:
    return isinstance(item[1], Dropped)


def _key_and_place(item):
    return (item[1].example["source"], item[1].key), item[0]


def _later(item):
    return [(place, "") for place in sorted(item[1])[1:]]


def _digest_and_name(item):
    place, kept = item
    return kept.digest, (place, f"{kept.key} in {kept.example['source']}")


def _later_names(item):
    """(place, the name of the first picture with its bytes) of each but that."""
    (_, name), *again = sorted(item[1])
    return [(place, name) for place, _ in again]


def _suspects(item, same):
    place, kept = item
    entry = {"key": kept.key, "source": kept.example["source"]}
    odd = [*kept.stored.suspect, *([(suspects.SAME, f"the same bytes as {same[place]}")] if place in same else [])]
    for kind, detail in odd:
        yield place, entry | {"kind": kind} | ({"detail": detail} if detail else {})


def _is_first(item, later) -> bool:
    return item[0] not in later


def _as_left_out(item, later):
    if item[0] in later:
        yield item[0], image_text.left_out(item[1], later[item[0]])


def _first(item):
    return item[0]


def _hashed(item):
    return sheet.name_hash(item[1].example["source"], item[1].key), item[1]


def _kind_and_hash(item):
    return item[1].kind, (sheet.name_hash(item[1].source, item[1].key), item[1])


def _best_line(found) -> str:
    return json.dumps([sheet.kept(kept.example, kept.split) for _, kept in found])


def _worst_line(item) -> str:
    found = sheet.Dropped()
    for _, dropped in item[1]:
        found.add(dropped)
    return json.dumps(found.json())


def _of_split(item, split: str):
    if item[1].split == split:
        yield f"{item[1].example['source']}:{item[1].key}", item[1].example  # a key is unique within its shard


def _sum_of_outcomes(items) -> Tally:
    """Beam sums sums: the items are outcomes with their places, or tallies of other parts."""
    total = Tally()
    tallies = [total]
    for item in items:
        if isinstance(item, Tally):
            tallies.append(item)
        else:
            total.add(item[1])
    return Tally.sum(tallies)


def _tally_line(tally: Tally) -> str:
    return json.dumps(tally.json())


def _line(item) -> str:
    return json.dumps({"at": item[0], **item[1].json()})


def _odd_line(item) -> str:
    return json.dumps({"at": item[0], **item[1]})


def _read_report(folder: epath.Path) -> tuple[Tally, list[dict], list[dict], dict[str, list]]:
    """The tally, the dropped and the odd records in source order, and what the contact sheet shows, from `folder`."""

    def read(name: str) -> list:
        found = [json.loads(line) for p in folder.glob(f"{name}-*") for line in p.read_text().splitlines()]
        return found if name in ("tally", "best", "worst") else sorted(found, key=lambda entry: entry.pop("at"))

    tally = Tally.from_json(read("tally")[0])
    odd = read("odd")
    tally.suspects[suspects.SAME] = sum(entry["kind"] == suspects.SAME for entry in odd)
    dropped = sheet.Dropped()
    for part in read("worst"):
        dropped.update(sheet.Dropped(part))
    return tally, read("dropped"), odd, {"kept": read("best")[0], "dropped": dropped.chosen()}


def run(plan: Plan, storing: image_text.Storing, *, out: str, name: str, max_bad: float, identity: dict,
        options: str = "", near: Near | None = None, drop_same: bool = False) -> dict:  # fmt: skip
    """Builds the TFDS folder `out` (…/NAME/VERSION) with Beam and returns its manifest.

    `options`: of the pipeline, one string. Nothing of an interrupted run is used again: Beam's runners have their own
    ways to continue. Raises UserError without Apache Beam, or with more than `max_bad` (a share) bad records.
    """
    try:
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise errors.UserError("runner beam needs Apache Beam; valid: pip install maeclip_jax[prepare]") from None
    try:
        FileSystems.get_filesystem(str(out))
    except ValueError:
        choice = "a local or mounted folder, or pip install apache-beam[gcp] (aws, azure) first"
        raise errors.UserError(f"Beam cannot write to out={str(out)!r}; valid: {choice}") from None

    out = epath.Path(out)
    scratch = out.parent / f"{out.name}.report"
    if scratch.exists():
        scratch.rmtree()
    data_dir = str(out.parent.parent)
    arguments = {"name": name, "scratch": str(scratch), "max_bad": max_bad, "identity": identity, "data_dir": data_dir}
    builder = ImageText(plan, storing, near=near, drop_same=drop_same, **arguments)
    config = tfds_shards.DownloadConfig(beam_options=PipelineOptions(options.split()))
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:
        if "names the split" in str(error):  # of a member of an archive; Beam wraps the error
            raise errors.UserError(_told(str(error))) from None
        if "Unable to fetch remote" in str(error):  # what a runner needs besides Python
            choice = "a network, or the option of that runner that names a local file (docs/beam.md)"
            raise errors.UserError(f"{' '.join(str(error).split())[:200]}; valid: {choice}") from None
        if "generated examples is 0" in str(error):  # TFDS refuses an empty split, in the middle of the pipeline
            splits = ", ".join(plan.splits)
            raise errors.UserError(
                f"no record of a split can be kept (splits: {splits}); valid: --runner local names each reason"
            ) from None
        raise
    scratch.rmtree()
    return builder.manifest


def _told(text: str) -> str:
    """Our sentence in an error of Beam."""
    lines = [line for line in text.splitlines() if "names the split" in line]
    return lines[0].rpartition("UserError: ")[2].partition(" [while running")[0]


def _shards(info) -> list[dict]:
    files = [epath.Path(f) for f in info.filepaths]
    return [
        {"file": f.name, "records": n, "bytes": f.stat().length, "sha256": manifest.sha256(f)}
        for f, n in zip(files, info.shard_lengths)
    ]
