"""Folders of Hugging Face datasets: `save_to_disk`, with a folder a split where it was a DatasetDict."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator

from etils import epath

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.formats import batches, columnar, names, pictures, remote
from maeclip_jax.prepare.formats.listing import Listing
from maeclip_jax.prepare.formats.raw import Raw, lost_records
from maeclip_jax.prepare.formats.units import Plan, Reading, Unit, split_field, unit_goal, unit_split

NAME = "arrow"
SAID = "folders of datasets' save_to_disk"

_BATCH = 100


def find(look: Listing, wanted: dict, forced: bool) -> list[str]:
    del wanted, forced
    folders: dict[str, list[str]] = {}
    for path in look.with_suffix(".arrow"):
        if not names.stem(path).startswith("cache-"):
            folders.setdefault(path.rpartition("/")[0], []).append(path)
    if not look.single:
        folders = {f: _named(look, f, found) for f, found in folders.items() if _is_split(look, f)}
    return [path for found in folders.values() for path in found]


def _is_split(look: Listing, folder: str) -> bool:
    """Whether a folder is of the data set: `save_to_disk` over another one leaves the splits of that behind."""
    above, _, name = folder.rpartition("/")
    told = _json(look, f"{above}/dataset_dict.json" if above else "dataset_dict.json").get("splits")
    return not folder or not isinstance(told, list) or name in told


def _named(look: Listing, folder: str, found: list[str]) -> list[str]:
    """The files of a folder that its `state.json` names, in that order; all of them where there is none."""
    prefix = f"{folder}/" if folder else ""
    files = _json(look, f"{prefix}state.json").get("_data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) and "filename" in file for file in files):
        return found
    told = [f"{prefix}{file['filename']}" for file in files]
    gone = [path for path in told if path not in look.files]
    if gone:
        look.notes.append(f"Not there, though {prefix}state.json names them: {', '.join(gone[:4])}.")
    return [path for path in told if path in look.files]


def _json(look: Listing, path: str) -> dict:
    """An object beside the data; {} where there is none."""
    try:
        found = json.loads(remote.read(look.root / path) or b"{}") if path in look.files else {}
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):  # which is a ValueError
            raise
        return {}
    return found if isinstance(found, dict) else {}


def described(look: Listing, plan: Plan) -> str:
    dictionary = any(path.rpartition("/")[2] == "dataset_dict.json" for path in look.files)
    what = "Hugging Face DatasetDict" if dictionary else "Hugging Face dataset"
    count = len(plan.files)
    return f"{what}: {count} arrow file{'s' * (count != 1)}"


def divide(reading: Reading, look: Listing, paths: list[str], wanted: dict, unit_records: int) -> Plan:
    import pyarrow as pa

    units, splits, counted, damage = [], set(), [], {}
    for path in paths:
        lengths: list[int] = []
        try:
            with _batches(look.root / path) as (schema, found):
                for batch in found:
                    if not lengths and not any(counted):
                        reading = _reading(reading, schema, batch, wanted, path)
                    lengths.append(batch.num_rows)
                    told, field = unit_split(path, wanted), split_field(reading)
                    named = field and field in schema.names
                    splits |= columnar.splits(batch.column(field), reading, told) if named else {told or reading.split}
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            damage[path] = str(error)
        counted.append(lengths)
    if not any(counted):
        raise UserError(f"no arrow file in {reading.root!r} can be read ({next(iter(damage.values()), 'no rows')}); "
                        "valid: the folder that save_to_disk wrote, whole")  # fmt: skip
    goal = unit_goal(sum(map(sum, counted)), unit_records)
    for path, lengths in zip(paths, counted):
        size, split = look.files[path], unit_split(path, wanted)
        first = row = held = 0
        for number, count in enumerate(lengths):
            held += count
            if held >= goal or number == len(lengths) - 1:
                place = {"start": first, "stop": number + 1, "row": row, "split": split}
                units.append(Unit(len(units), path, f"{size}", size * held // max(1, sum(lengths)), held, **place))
                first, row, held = number + 1, row + held, 0
        if path in damage:
            units.append(Unit(len(units), path, f"{size}", 0, 0, first, -1, row, split))
    return Plan(reading, tuple(units), tuple(sorted(s for s in splits if names.is_split(s))))


def _reading(reading: Reading, schema, batch, wanted: dict, path: str) -> Reading:
    encoded, paths = columnar.image_columns(schema)
    if not encoded and not paths:
        raise UserError(
            f"{path} has no column of encoded pictures and none of picture paths (columns: {', '.join(schema.names)}); "
            "valid: a data set that has"
        )
    others = [n for n in schema.names if n not in encoded]
    row = batches.rows(batch.select(others).slice(0, 1), trusted=False)[0] if batch.num_rows and others else {}
    reading = dataclasses.replace(reading, **columnar.columns(wanted, schema.names, encoded, paths, row, path))
    first = batches.rows(batch.select(columnar.needed(reading, schema.names)).slice(0, 20), trusted=False)
    columnar.check_paths(first, reading, Unit(0, path, "", 0))
    return reading


@contextlib.contextmanager
def _batches(path: epath.Path):
    """(schema, the batches in order) of a stream, or of a file with a footer."""
    import pyarrow as pa

    with contextlib.ExitStack() as stack:
        if remote.is_remote(path):
            source = stack.enter_context(pa.PythonFile(stack.enter_context(remote.opened(path))))
        else:
            source = stack.enter_context(pa.memory_map(str(path)))
        try:
            reader = stack.enter_context(pa.ipc.open_stream(source))
            yield reader.schema, reader
        except pa.ArrowInvalid as error:
            if "Expected to read" not in str(error) and "metadata" not in str(error):
                raise
            source.seek(0)
            reader = stack.enter_context(pa.ipc.open_file(source))
            yield reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def fields(reading: Reading, unit: Unit) -> dict:
    with _batches(epath.Path(reading.root) / unit.path) as (schema, found):
        names = [name for name in schema.names if name != reading.image_column]
        return next(
            (batches.rows(batch.select(names).slice(0, 1), trusted=False)[0] for batch in found if batch.num_rows), {}
        )


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    import pyarrow as pa

    path = epath.Path(reading.root) / unit.path
    done, problem, folders = 0, "", pictures.folders(reading, unit)
    try:
        with _batches(path) as (schema, found):
            columns = columnar.needed(reading, schema.names)
            for number, whole in enumerate(found):
                if number < unit.start:
                    continue
                whole = whole.select(columns)
                for begin in range(0, whole.num_rows, _BATCH):
                    rows = batches.rows(whole.slice(begin, _BATCH), trusted=False)
                    raws = [columnar.raw(row, unit.row + done + i, reading, unit) for i, row in enumerate(rows)]
                    yield from pictures.filled(raws, folders)
                    done += len(rows)
                if number + 1 == unit.stop:
                    break
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        lost = max(1, (unit.records or 0) - done)
        yield lost_records(reading, unit, f"{unit.path}:row {unit.row + done + 1}", problem, lost)
