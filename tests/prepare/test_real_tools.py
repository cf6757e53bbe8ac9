"""The tools themselves write, and `prepare` reads: skipped where they are not installed (they need Python 3.11).

pip install img2dataset==1.47.0 datasets webdataset
"""

import csv
import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading

import dump_sources
import pair_sources
import pytest

PYTHON = os.environ.get("MAECLIP_DUMP_TOOLS", sys.executable)  # a Python that has them


@functools.cache
def _has(package: str) -> bool:
    if sys.executable == PYTHON:
        return importlib.util.find_spec(package) is not None
    return subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True).returncode == 0


def _needs(package: str) -> None:
    if not _has(package):
        pytest.skip(f"{package} is not installed in {PYTHON} (MAECLIP_DUMP_TOOLS names a Python that has it)")


def _run(*argv, **options) -> None:
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, text=True, env=environment, timeout=300, **options
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def web(tmp_path):
    """(folder, address) of a web server of this machine."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
def test_img2dataset_with_dead_urls(layout, web, tmp_path):
    from PIL import Image

    _needs("img2dataset")
    folder, address = web
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(8):
        (folder / f"{i}.jpg").write_bytes(pair_sources.picture(i, quality=95, **({"exif": exif} if i == 2 else {})))
    (folder / "half.jpg").write_bytes(pair_sources.picture(9, (200, 200))[:900])
    addresses = [f"{address}/{n}.jpg" for n in (*range(8), "half", *(f"gone{i}" for i in range(11)))]
    with open(tmp_path / "urls.csv", "w", newline="") as file:
        csv.writer(file).writerows([["url", "caption"], *([a, f"caption of {a}"] for a in addresses)])
    out = tmp_path / "pairs"
    options = f"--url_list {tmp_path}/urls.csv --input_format csv --url_col url --caption_col caption"
    sizes = "--resize_mode keep_ratio --image_size 30 --number_sample_per_shard 10 --processes_count 1 --thread_count 4"
    tool = os.path.join(os.path.dirname(PYTHON), "img2dataset")
    more = ["--output_format", layout, "--output_folder", out, "--retries", 0]
    _run(tool, *options.split(), *sizes.split(), *more)
    shutil.copy(tmp_path / "urls.csv", out)
    tree, account, found = dump_sources.prepared(out, tmp_path / "data")
    assert tree["records"]["in"] == 20 and tree["records"]["kept"] == 8 and tree["records"]["dropped"] == 0
    assert tree["records"]["failed_downloads"] == {"failed_to_download": 11, "failed_to_resize": 1}
    assert {entry["url"] for entry in account} == set(addresses[8:])
    assert "404" in next(entry["detail"] for entry in account if "gone" in entry["url"])
    assert tree["totals"]["turned_upright"] == 1
    assert sorted((r["width"], r["height"]) for r in found["train"])[0] == (30, 40)


_DATASETS = """
import sys
from datasets import Dataset, DatasetDict, Image
root, web = sys.argv[1:]
rows = {"image": [f"{web}/{n}.jpg" for n in range(6)], "text": [f"c{n}" for n in range(6)]}
found = Dataset.from_dict(rows).cast_column("image", Image())
found.to_parquet(f"{root}/paths.parquet")
found.save_to_disk(f"{root}/disk")
DatasetDict({"train": found.select(range(4)), "validation": found.select(range(4, 6))}).save_to_disk(f"{root}/dict")
"""


def test_datasets_folders_and_parquet_of_paths(tmp_path):
    _needs("datasets")
    (tmp_path / "web").mkdir()
    for i in range(6):
        (tmp_path / "web" / f"{i}.jpg").write_bytes(pair_sources.picture(i))
    _run(PYTHON, "-c", _DATASETS, tmp_path, tmp_path / "web")
    for name in ("disk", "dict", "paths.parquet"):
        found = dump_sources.read(tmp_path / name)
        assert [raw.image for raw in found] == [pair_sources.picture(i) for i in range(6)], name
        assert [raw.texts for raw in found] == [(f"c{i}",) for i in range(6)]
    assert [raw.split for raw in dump_sources.read(tmp_path / "dict")] == ["train"] * 4 + ["val"] * 2
    shutil.move(tmp_path / "web", tmp_path / "moved")
    assert "holds the paths of pictures and no pictures" in dump_sources.message(tmp_path / "paths.parquet")


_WEBDATASET = """
import sys, webdataset
with webdataset.TarWriter(sys.argv[1]) as tar:
    for n in range(3):
        tar.write({"__key__": f"a/b.{n}", "jpg": open(f"{sys.argv[2]}/{n}.jpg", "rb").read(), "txt": f"c{n}"})
"""


def test_webdataset_with_dots_in_keys(tmp_path):
    _needs("webdataset")
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(pair_sources.picture(i))
    _run(PYTHON, "-c", _WEBDATASET, tmp_path / "x.tar", tmp_path)
    found = dump_sources.read(tmp_path / "x.tar")
    assert [(raw.key, raw.image, raw.texts) for raw in found] == [
        (f"a/b.{i}", pair_sources.picture(i), (f"c{i}",)) for i in range(3)
    ]


def _command(message: str, mark: str) -> str:
    """The command in a message, for the Python that has the tools."""
    found = message.split(mark)[1].replace("img2dataset --", f"{os.path.dirname(PYTHON)}/img2dataset --")
    return found.replace("python -c", f"{PYTHON} -c")


def _shell(command: str, folder) -> None:
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["urls.csv", "cc12m.tsv"])
def test_the_command_for_a_list_of_urls_makes_a_source(name, web, tmp_path):
    _needs("img2dataset")
    folder, address = web
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(pair_sources.picture(i))
    mark = "," if name.endswith("csv") else "\t"
    lines = [f"{address}/{i}.jpg{mark}caption of {i}" for i in range(4)]
    (tmp_path / name).write_text("\n".join((["url,caption"] if mark == "," else []) + lines) + "\n")
    _shell(_command(dump_sources.message(tmp_path / name), "the output of: "), tmp_path)
    tree, _, found = dump_sources.prepared(tmp_path / "pairs", tmp_path / "out")
    assert tree["records"]["kept"] == 3 and tree["records"]["failed_downloads"] == {"failed_to_download": 1}
    assert sorted(r["texts"][0] for r in found["train"]) == [f"caption of {i}".encode() for i in range(3)]


def test_the_command_for_parquet_of_paths_makes_a_source(tmp_path):
    _needs("datasets")
    (tmp_path / "web").mkdir()
    for i in range(6):
        (tmp_path / "web" / f"{i}.jpg").write_bytes(pair_sources.picture(i))
    _run(PYTHON, "-c", _DATASETS, tmp_path, tmp_path / "web")
    (tmp_path / "web").rename(tmp_path / "moved")
    message = dump_sources.message(tmp_path / "paths.parquet")
    (tmp_path / "moved").rename(tmp_path / "web")
    _shell(_command(message, "where the pictures are: "), tmp_path)
    found = dump_sources.read(tmp_path / "embedded")
    assert [raw.image for raw in found] == [pair_sources.picture(i) for i in range(6)]
