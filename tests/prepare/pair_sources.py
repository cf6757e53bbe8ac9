"""Small image-text sources in the layouts that `prepare` reads; the pictures are noise, so all differ."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size=(40, 30), format="JPEG", **options) -> bytes:
    """An encoded picture of `size` (width, height) that depends on `number`."""
    small = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.BILINEAR).save(file, format, **options)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def pair(key: str, number: int, caption: str | None = None, size=(40, 30)) -> list[tuple[str, bytes]]:
    """The three members that img2dataset writes for a picture."""
    caption = f"caption of {number}" if caption is None else caption
    row = {"key": key, "caption": caption, "status": "success", "width": size[0], "height": size[1]}
    data = [picture(number, size), caption.encode(), json.dumps(row, indent=4).encode()]
    return [(f"{key}.{extension}", d) for extension, d in zip(("jpg", "txt", "json"), data)]


def webdataset(root: Path, shards: int = 3, records: int = 4, size=(40, 30), failed: int = 0) -> Path:
    """img2dataset's default output: 00000.tar with its 00000.parquet and 00000_stats.json.

    `failed`: downloads that failed, a shard.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in range(shards):
        keys = [f"{shard:05d}{i:04d}" for i in range(records)]
        numbers = [shard * records + i for i in range(records)]
        write_tar(root / f"{shard:05d}.tar", [m for k, n in zip(keys, numbers) for m in pair(k, n, size=size)])
        lost = [f"{shard:05d}9{i:03d}" for i in range(failed)]
        rows = {
            "key": keys + lost,
            "url": [f"http://x/{k}.jpg" for k in keys + lost],
            "status": ["success"] * records + ["failed_to_download"] * failed,
            "error_message": [None] * records + ["HTTP Error 404: Not Found"] * failed,
        }
        pq.write_table(pa.table(rows), root / f"{shard:05d}.parquet")
        stats = {"count": records + failed, "successes": records, "failed_to_download": failed, "failed_to_resize": 0}
        (root / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return root


def files(root: Path, folders: int = 2, records: int = 3) -> Path:
    """img2dataset's `--output_format files`."""
    for folder in range(folders):
        (root / f"{folder:05d}").mkdir(parents=True)
        (root / f"{folder:05d}.parquet").write_bytes(b"beside the folders, and not read")
        for i in range(records):
            for name, data in pair(f"{folder:05d}{i:04d}", folder * records + i):
                (root / f"{folder:05d}" / name).write_bytes(data)
    return root


def table(root: Path, rows: list[dict], name: str = "captions.jsonl", pictures: int | None = None) -> Path:
    """A folder with `images/` (0.jpg, 1.jpg, ...) and a table."""
    (root / "images").mkdir(parents=True)
    for i in range(len(rows) if pictures is None else pictures):
        (root / "images" / f"{i}.jpg").write_bytes(picture(i))
    if name.endswith(".jsonl"):
        (root / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        with open(root / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    return root


def digests(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
