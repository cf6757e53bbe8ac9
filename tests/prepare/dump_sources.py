"""Small sources in the layouts that img2dataset 1.47, datasets 5.2 and webdataset 1.0 write, for tests of `prepare`."""

import json
import struct
from pathlib import Path

import pair_sources
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare import command, crawl, records
from maeclip_jax.prepare.formats.raw import Raw

STATUSES = ("success", "failed_to_download", "failed_to_resize")


def downloads(alive: int, dead: int, start: int = 0, **more) -> list[dict]:
    """The rows of img2dataset's table for `alive` pictures and `dead` URLs; `more`: fields of the alive ones."""
    rows = []
    for i in range(alive + dead):
        number = start + i
        row = {"url": f"http://x/{number}.jpg", "key": f"{number:09d}", "caption": f"caption of {number}"}
        if i < alive:
            row |= {"status": "success", "error_message": None, "exif": "{}"} | more
        else:
            failed = STATUSES[1 + i % 2]
            row |= {"status": failed, "error_message": "HTTP Error 404: Not Found", "exif": None}
        rows.append(row)
    return rows


def img2dataset(root: Path, layout: str, shards: list[list[dict]], pictures=None, finished: int | None = None) -> Path:
    """img2dataset's output in one of its layouts. `finished`: shards with counts; the others were being written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True, exist_ok=True)
    picture = pictures or (lambda row: pair_sources.picture(int(row["key"])))
    for number, rows in enumerate(shards):
        done = finished is None or number < finished
        stem, alive = f"{number:05d}", [row for row in rows if row["status"] == "success"]
        _WRITERS[layout](root, stem, rows, alive, picture)
        if layout != "parquet":
            schema = pa.schema([(name, pa.string()) for name in rows[0]])
            pq.write_table(pa.Table.from_pylist(rows, schema), root / f"{stem}.parquet")
        if not done:
            if layout != "parquet":
                (root / f"{stem}.parquet").write_bytes(b"")
            continue
        counts = {name: sum(row["status"] == name for row in rows) for name in STATUSES}
        stats = {"count": len(rows), "successes": counts["success"]}
        stats |= {name: counts[name] for name in STATUSES[1:]}
        (root / f"{stem}_stats.json").write_text(json.dumps(stats))
    return root


def _members(rows, picture) -> list[tuple[str, bytes]]:
    found = []
    for row in rows:
        data = [picture(row), json.dumps(row, indent=4).encode(), row["caption"].encode()]
        found += [(f"{row['key']}.{e}", d) for e, d in zip(("jpg", "json", "txt"), data)]
    return found


def _webdataset(root, stem, rows, alive, picture):
    pair_sources.write_tar(root / f"{stem}.tar", _members(alive, picture))


def _files(root, stem, rows, alive, picture):
    (root / stem).mkdir()
    for name, data in _members(alive, picture):
        (root / stem / name).write_bytes(data)


def _parquet(root, stem, rows, alive, picture):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row | {"jpg": picture(row) if row["status"] == "success" else None} for row in rows]
    names = [n for n in rows[0] if n != "jpg"]
    schema = pa.schema([*((name, pa.string()) for name in names), ("jpg", pa.binary())])
    pq.write_table(pa.Table.from_pylist(rows, schema), root / f"{stem}.parquet")


def _tfrecord(root, stem, rows, alive, picture):
    texts = [{n: v.encode() for n, v in row.items() if v is not None} for row in alive]
    write_tfrecord(root / f"{stem}.tfrecord", [t | {"jpg": picture(r), "width": 40} for t, r in zip(texts, alive)])


_WRITERS = {"webdataset": _webdataset, "files": _files, "parquet": _parquet, "tfrecord": _tfrecord}
LAYOUTS = tuple(_WRITERS)


def write_tfrecord(path: Path, rows: list[dict]) -> Path:
    """tf.train.Example records of bytes and whole numbers, with TensorFlow's framing."""
    from google_crc32c import value
    from tensorflow_datasets.proto import tf_example_pb2

    def masked(data: bytes) -> bytes:
        total = value(data)
        return struct.pack("<I", (((total >> 15) | (total << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for row in rows:
            example = tf_example_pb2.Example()
            for name, entry in row.items():
                feature = example.features.feature[name]
                (feature.bytes_list if isinstance(entry, bytes) else feature.int64_list).value.append(entry)
            data = example.SerializeToString()
            length = struct.pack("<Q", len(data))
            file.write(length + masked(length) + data + masked(data))
    return path


def hugging_face(root: Path, splits: dict[str, int], column: str = "image", split: dict | None = None) -> Path:
    """`save_to_disk` of a DatasetDict; of a Dataset where the one split is "". `split`: a column of some of them."""
    import pyarrow as pa

    for name, count in splits.items():
        folder = root / name
        folder.mkdir(parents=True)
        rows = [{column: {"bytes": pair_sources.picture(i), "path": None}, "text": f"c{i}"} for i in range(count)]
        rows = [row | ({"split": split[name]} if name in (split or {}) else {}) for row in rows]
        table = pa.Table.from_pylist(rows)
        path = str(folder / "data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": name or None}
        state |= {"_fingerprint": "0", "_format_columns": None, "_format_kwargs": {}, "_format_type": None}
        (folder / "state.json").write_text(json.dumps(state | {"_output_all_columns": False}))
        (folder / "dataset_info.json").write_text(json.dumps({}))
    if "" not in splits:
        (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root


def prepared(src, out, *options) -> tuple[dict, list[dict], dict[str, list[dict]]]:
    """(manifest, account, split -> records) of a preparation by one process."""
    import tensorflow_datasets as tfds

    argv = ("--src", src, "--out", out, "--name", "n", "--workers", 1, *options)
    assert command.main([str(a) for a in argv]) == 0
    folder = Path(out) / "n" / "1.0.0"
    tree = json.loads((folder / "manifest.json").read_text())
    account = [json.loads(line) for line in (folder / "account.jsonl").read_text().splitlines()]
    counts = tree["records"]
    assert counts["in"] == counts["kept"] + counts["dropped"] + sum(counts["failed_downloads"].values())
    assert sum(entry["records"] for entry in account) == counts["in"] - counts["kept"]
    decoders = {"image": tfds.decode.SkipDecoding()}
    builder = tfds.builder_from_directory(str(folder))
    found = {split: list(builder.as_data_source(split, decoders=decoders)) for split in builder.info.splits}
    return tree, account, found


def read(src, **options) -> list[Raw]:
    plan = crawl.plan(str(src), **options)
    return [raw for unit in plan.units for raw in records.read(plan.reading, unit)]


def kinds(found) -> list[str]:
    return [raw.error.kind if raw.error else "" for raw in found]


def message(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        crawl.plan(*map(str, args), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
