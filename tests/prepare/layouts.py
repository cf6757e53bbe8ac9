"""Sources in the layouts that people have, each with what another reader than ours counts in it.

`python tests/prepare/layouts.py --records=200 --tools=PYTHON` prepares them all and prints the table of
docs/layouts.md. PYTHON is one that has datasets and webdataset, whose own readers then count what is theirs; without it
the standard library and pyarrow count.
"""

import argparse
import csv
import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import dump_sources
import pair_sources

ROOT = Path(__file__).parents[2]


def _pictures(folder: Path, count: int, start: int = 0, name: str = "{}.jpg") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (folder / name.format(i)).write_bytes(pair_sources.picture(i))
    return [name.format(i) for i in range(start, start + count)]


def _tar(path: Path, count: int, start: int = 0, key: str = "{:06d}", extensions: str = "jpg txt json") -> Path:
    members = []
    for i in range(start, start + count):
        found = dict(zip(("jpg", "txt", "json"), (data for _, data in pair_sources.pair("", i))))
        members += [(f"{key.format(i)}.{e}", found[e]) for e in extensions.split()]
    return pair_sources.write_tar(path, members)


def _rows(path: Path, rows: list[dict], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


# What another reader counts.


def in_side_tables(root: Path, **_) -> int:
    """The rows of img2dataset's tables of all downloads."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in root.rglob("[0-9]*.parquet") if path.stat().st_size)


def in_tars(root: Path, tools: str = "") -> int:
    paths = sorted(str(p) for p in root.rglob("*.t*") if p.is_file() and ".tar" in p.name and p.name[0] != ".")
    if tools and not any(path.endswith(".zst") for path in paths):  # webdataset asks a program that may not be there
        code = "import sys, webdataset; found = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, "
        code += "empty_check=False); print(sum(name.endswith('jpg') for sample in found for name in sample))"
        return int(_run(tools, code, *paths))
    return sum(name.rpartition(".")[2] == "jpg" for path in paths for name in _members(path))


def _members(path: str) -> list[str]:
    if path.endswith(".zst"):
        import pyarrow as pa

        with pa.CompressedInputStream(pa.OSFile(path), "zstd") as stream:
            data = io.BytesIO(stream.read())
        with tarfile.open(fileobj=data) as tar:
            return [m.name for m in tar if not m.name.rpartition("/")[2].startswith(".")]
    with tarfile.open(path) as tar:
        return [m.name for m in tar if not m.name.rpartition("/")[2].startswith(".")]


def in_folders(root: Path, **_) -> int:
    return sum(p.suffix in (".jpg", ".png") for p in root.rglob("*"))


def in_lines(root: Path, tools: str = "") -> int:
    """Rows by csv or json; those of one picture count once."""
    del tools
    names = []
    for path in sorted(root.rglob("*.[cjt]s*")):
        with open(path, newline="") as file:
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in file]
            elif path.suffix == ".json":
                rows = json.load(file)
            else:
                rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        names += [(path, row.get("image") or row.get("filepath") or row.get("file_name")) for row in rows]
    return len(set(names))


def in_coco(root: Path, **_) -> int:
    trees = [json.loads(path.read_text()) for path in root.rglob("captions_*.json")]
    return sum(len({note["image_id"] for note in tree["annotations"]}) for tree in trees)


def in_parquet(root: Path, tools: str = "") -> int:
    if tools:
        code = "import sys, datasets; d = datasets.load_dataset('parquet', data_files=sys.argv[1:]); "
        return int(_run(tools, code + "print(sum(map(len, d.values())))", *map(str, root.rglob("*.parquet"))))
    return in_side_tables(root) or sum(_parquet_rows(path) for path in root.rglob("*.parquet"))


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def in_arrow(root: Path, tools: str = "") -> int:
    if tools:
        code = "import sys, datasets; d = datasets.load_from_disk(sys.argv[1]); "
        return int(
            _run(tools, code + "print(sum(map(len, d.values())) if hasattr(d, 'values') else len(d))", str(root))
        )
    import pyarrow as pa

    return sum(pa.ipc.open_stream(path.read_bytes()).read_all().num_rows for path in root.rglob("*.arrow"))


def in_tfrecord(root: Path, **_) -> int:
    count = 0
    for path in root.rglob("*.tfrecord"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            at += 16 + int.from_bytes(data[at : at + 8], "little")
            count += 1
    return count


def _run(python: str, code: str, *argv: str) -> str:
    done = subprocess.run([python, "-c", code, *argv], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


# The layouts. Each writes `n` records, or about as many, into the folder `root`.


def _downloads(layout: str, finished: int | None = None) -> Callable:
    def write(root: Path, n: int) -> None:
        shards = [dump_sources.downloads(n // 2 - n // 8, n // 8, start=1000 * i) for i in range(2)]
        dump_sources.img2dataset(root, layout, shards, finished=finished)

    return write


def _list_inside(root: Path, n: int) -> None:
    _downloads("parquet")(root, n)
    (root / "urls.csv").write_text("url,caption\nhttp://x/1.jpg,a\n")


def _compressed(how: str) -> Callable:
    def write(root: Path, n: int) -> None:
        path = _tar(root / "x.tar", n)
        if how == "gz":
            (root / "x.tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        else:
            import pyarrow as pa

            with pa.CompressedOutputStream(pa.OSFile(str(root / "x.tar.zst"), "wb"), "zstd") as stream:
                stream.write(path.read_bytes())
        path.unlink()

    return write


def _mac(root: Path, n: int) -> None:
    members = []
    for i in range(n):
        names = [(f"./{i}.jpg", pair_sources.picture(i)), (f"./{i}.txt", b"c")]
        members += [(f"./._{name[2:]}", b"\0\5\x16\7") for name, _ in names] + names
    pair_sources.write_tar(root / "mac.tar", members)


def _split_folders(root: Path, n: int) -> None:
    _tar(root / "train" / "0.tar", n - n // 4)
    _tar(root / "val" / "0.tar", n // 4, start=n)


def _split_members(root: Path, n: int) -> None:
    _tar(root / "all.tar", n, key="train/{}")
    _tar(root / "more.tar", n // 4, start=n, key="val/{}")


def _resharded(root: Path, n: int) -> None:
    for shard in range(2):
        _tar(root / f"{shard:08d}.tar", n // 2, start=shard * n)
        (root / f"{shard:08d}_stats.json").write_text(json.dumps({"successes": n // 2}))
    (root / "sizes.json").write_text(json.dumps({f"{shard:08d}.tar": n // 2 for shard in range(2)}))


def _datacomp(root: Path, n: int) -> None:
    dump_sources.img2dataset(root / "shards", "webdataset", [dump_sources.downloads(n - n // 4, n // 4)])
    _parquet(
        root / "metadata" / "0a1b.parquet", [{"uid": f"{i}", "url": f"http://x/{i}.jpg", "text": "c"} for i in range(n)]
    )


def _laion(root: Path, n: int) -> None:
    dump_sources.img2dataset(root, "webdataset", [dump_sources.downloads(n // 2, 0)] * 2)


def _frames(root: Path, n: int) -> None:
    """video2dataset's, with the subsampler that takes a frame of each clip."""
    members = []
    for i in range(n):
        meta = {"url": f"http://x/{i}.mp4", "caption": f"clip {i}", "key": f"{i:07d}", "status": "success",
                "error_message": None, "clips": [[0.0, 2.0]]}  # fmt: skip
        data = (pair_sources.picture(i), f"clip {i}".encode(), json.dumps(meta, indent=4).encode())
        members += [(f"{i:07d}_00000.{e}", d) for e, d in zip(("jpg", "txt", "json"), data)]
    pair_sources.write_tar(root / "00000.tar", members)
    (root / "00000_stats.json").write_text(json.dumps({"count": n, "successes": n, "failed_to_subsample": 0}))


def _loose(root: Path, n: int) -> None:
    for name in _pictures(root, n):
        (root / name).with_suffix(".txt").write_text(f"caption of {name}")


def _loose_json(root: Path, n: int) -> None:
    for name in _pictures(root / "deep" / "er", n):
        (root / "deep" / "er" / name).with_suffix(".json").write_text(json.dumps({"caption": "c"}))


def _jsonl(root: Path, n: int) -> None:
    rows = [{"image": name, "captions": ["a", "b"]} for name in _pictures(root / "images", n)]
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _flickr8k(root: Path, n: int) -> None:
    names = _pictures(root / "images", n)
    _rows(root / "captions.csv", [{"image": name, "caption": f"c{i}"} for name in names for i in range(5)])


def _open_clip(root: Path, n: int) -> None:
    names = _pictures(root / "cc", n)
    _rows(root / "Train_GCC.tsv", [{"title": "c", "filepath": f"cc/{name}"} for name in names], "\t")


def _tables_of_splits(root: Path, n: int) -> None:
    for number, split in enumerate(("train", "val")):
        names = _pictures(root / "images", n // 2, start=number * n)
        _rows(root / f"{split}.csv", [{"image": name, "caption": "c"} for name in names])


def _image_folder(root: Path, n: int) -> None:
    for number, split in enumerate(("train", "test")):
        names = _pictures(root / split, n // 2, start=number * n)
        _rows(root / split / "metadata.csv", [{"file_name": name, "text": "c"} for name in names])


def _image_folder_lines(root: Path, n: int) -> None:
    rows = [{"file_name": name, "text": "c"} for name in _pictures(root, n)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _llava(root: Path, n: int) -> None:
    names = _pictures(root / "images" / "00001", n)
    said = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": "a picture"}]
    rows = [{"id": name, "image": f"00001/{name}", "conversations": said} for name in names]
    (root / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))


def _sharegpt4v(root: Path, n: int) -> None:
    names = _pictures(root / "coco" / "train2017", n)
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "In the picture ..."},
            {"from": "human", "value": "And then?"}, {"from": "gpt", "value": "Nothing."}]  # fmt: skip
    rows = [{"id": name, "image": f"coco/train2017/{name}", "conversations": said} for name in names]
    (root / "sharegpt4v_instruct.json").write_text(json.dumps(rows, indent=2))


def _coco(root: Path, n: int) -> None:
    (root / "annotations").mkdir(parents=True)
    for number, split in enumerate(("train2017", "val2017")):
        names = _pictures(root / split, n // 2, start=number * n, name="{:012d}.jpg")
        images = [{"id": i, "file_name": name, "coco_url": f"http://x/{name}"} for i, name in enumerate(names)]
        notes = [{"id": 5 * i + j, "image_id": i, "caption": f"c{j}"} for i in range(len(names)) for j in range(5)]
        tree = {"info": {}, "licenses": [], "images": images, "annotations": notes}
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(tree))
        boxes = tree | {"annotations": [{"id": 0, "image_id": 0, "bbox": [0, 0, 1, 1]}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(boxes))


def _hub(root: Path, n: int) -> None:
    for number, split in enumerate(("train", "validation")):
        numbers = range(number * n, number * n + n // 2)
        rows = [{"image": {"bytes": pair_sources.picture(i), "path": f"{i}.jpg"}, "text": "c"} for i in numbers]
        _parquet(root / "data" / f"{split}-00000-of-00001.parquet", rows)
    (root / "README.md").write_text("---\n")


def _parquet_of_bytes(root: Path, n: int) -> None:
    _parquet(root / "a.parquet", [{"jpg": pair_sources.picture(i), "caption": "c", "split": "test"} for i in range(n)])


def _parquet_of_paths(root: Path, n: int) -> None:
    _parquet(root / "a.parquet", [{"image_path": name, "caption": "c"} for name in _pictures(root / "images", n)])


def _arrow(splits: tuple[str, ...]) -> Callable:
    return lambda root, n: dump_sources.hugging_face(root, dict.fromkeys(splits, n // len(splits))) and None


def _tfrecord(root: Path, n: int) -> None:
    rows = [{"image/encoded": pair_sources.picture(i), "caption": b"c", "id": i} for i in range(n)]
    dump_sources.write_tfrecord(root / "a.tfrecord", rows)


def _conceptual(list_name: str, folder: str, caption_first: bool, numbered: bool) -> Callable:
    def write(root: Path, n: int) -> None:
        lines = []
        for i in range(n):
            address = f"https://x.org/{i}.jpg?size=1"
            cells = (f"caption {i}", address)
            lines.append("\t".join(cells if caption_first else cells[::-1]) + "\n")
            name = f"{i}_" * numbered + str(zlib.crc32(address.encode()))
            (root / folder).mkdir(parents=True, exist_ok=True)
            if i % 4:
                (root / folder / name).write_bytes(pair_sources.picture(i))
        (root / list_name).write_text("".join(lines))
        (root / "downloaded_training_report.tsv").write_text("a\thttp://x\ttraining\t404\t\n")

    return write


def in_conceptual(root: Path, **_) -> int:
    return sum(len(path.read_text().splitlines()) for path in root.glob("*.tsv") if "report" not in path.name)


_DOWNLOADED = "img2dataset, "
LAYOUTS = {  # name -> (writer, what another reader counts, the splits)
    f"{_DOWNLOADED}webdataset": (_downloads("webdataset"), in_side_tables, "train"),
    f"{_DOWNLOADED}files": (_downloads("files"), in_side_tables, "train"),
    f"{_DOWNLOADED}parquet": (_downloads("parquet"), in_side_tables, "train"),
    f"{_DOWNLOADED}tfrecord": (_downloads("tfrecord"), in_side_tables, "train"),
    f"{_DOWNLOADED}parquet, list of URLs inside": (_list_inside, in_side_tables, "train"),
    "LAION: shards with equal keys": (_laion, in_tars, "train"),
    "DataComp: shards/ and metadata/": (_datacomp, lambda root, **o: in_side_tables(root / "shards"), "train"),
    "DataComp's resharder": (_resharded, in_tars, "train"),
    "video2dataset, frames": (_frames, in_tars, "train"),
    "webdataset": (lambda root, n: _tar(root / "a.tar", n, extensions="jpg txt"), in_tars, "train"),
    "webdataset, captions in json": (lambda root, n: _tar(root / "a.tar", n, extensions="jpg json"), in_tars, "train"),
    "webdataset, dots in keys": (lambda root, n: _tar(root / "a.tar", n, key="a/b.{}", extensions="jpg txt"), in_tars,
                                 "train"),
    "webdataset, .tar.gz": (_compressed("gz"), in_tars, "train"),
    "webdataset, .tar.zst": (_compressed("zst"), in_tars, "train"),
    "webdataset, of a Mac": (_mac, in_tars, "train"),
    "webdataset, train/ and val/": (_split_folders, in_tars, "train, val"),
    "webdataset, train/ and val/ in the archives": (_split_members, in_tars, "train, val"),
    "KEY.jpg and KEY.txt": (_loose, in_folders, "train"),
    "KEY.jpg and KEY.json, two folders down": (_loose_json, in_folders, "train"),
    "jsonl and images/": (_jsonl, in_lines, "train"),
    "csv of Flickr8k, five rows a picture": (_flickr8k, in_lines, "train"),
    "tsv of open_clip": (_open_clip, in_lines, "train"),
    "train.csv and val.csv": (_tables_of_splits, in_lines, "train, val"),
    "imagefolder, a table a split": (_image_folder, in_lines, "test, train"),
    "imagefolder, metadata.jsonl": (_image_folder_lines, in_lines, "train"),
    "LLaVA, json array": (_llava, in_lines, "train"),
    "ShareGPT4V, json array": (_sharegpt4v, in_lines, "train"),
    "COCO: annotations/ and pictures": (_coco, in_coco, "train, val"),
    "CC3M's tsv and downloads": (_conceptual("Train_GCC-training.tsv", "training", True, False), in_conceptual,
                                 "train"),
    "CC12M's tsv and downloads": (_conceptual("cc12m.tsv", "images", False, True), in_conceptual, "train"),
    "Hub: train-*.parquet, validation-*.parquet": (_hub, in_parquet, "train, val"),
    "parquet with bytes and a split column": (_parquet_of_bytes, in_parquet, "test"),
    "parquet with paths": (_parquet_of_paths, in_parquet, "train"),
    "datasets, save_to_disk": (_arrow(("",)), in_arrow, "train"),
    "datasets, DatasetDict": (_arrow(("train", "test")), in_arrow, "test, train"),
    "TFRecord of tf.train.Example": (_tfrecord, in_tfrecord, "train"),
}  # fmt: skip


def _processor() -> float:
    """Processor seconds of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--tools", default="")
    parser.add_argument("--only", default="", help="layouts whose name has this")
    args = parser.parse_args()
    print("| layout | recognised as | in | kept | dropped | failed before | splits | s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (write, count, splits) in LAYOUTS.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            src = Path(folder, "src")
            write(src, args.records)
            began = _processor()
            argv = [
                sys.executable,
                "-m",
                "maeclip_jax.prepare",
                "--src",
                src,
                "--out",
                Path(folder, "out"),
                "--name",
                "n",
            ]
            done = subprocess.run([*map(str, argv), "--workers", "1"], capture_output=True, text=True, cwd=ROOT)
            seconds = _processor() - began
            assert done.returncode == 0, (name, done.stderr[-2000:])
            records = json.loads(Path(folder, "out/n/1.0.0/manifest.json").read_text())["records"]
            counted = count(src, tools=args.tools)
            assert counted == records["in"], (name, counted, records)
            assert ", ".join(records["kept_by_split"]) == splits, (name, records)
            said = textwrap.shorten(done.stderr.splitlines()[0].removesuffix("."), 44, placeholder=" ...")
            numbers = (records["in"], records["kept"], records["dropped"], sum(records["failed_downloads"].values()))
            cells = [name, said, *map(str, numbers), splits, f"{seconds:.1f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
