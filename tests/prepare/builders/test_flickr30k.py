"""Flickr30k from Karpathy's json, or the tables of its splits, and pictures in a folder or an archive."""

import json
import shutil

import pytest
import tensorflow_datasets as tfds

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.flickr30k import Flickr30k, read_captions
from tests.data.labelled_sources import records, write_tree
from tests.prepare.pair_sources import picture

SPLITS = {"train": ("10.jpg", "11.jpg"), "val": ("12.jpg",), "test": ("13.jpg", "14.jpg")}


def captions(name: str) -> list[str]:
    return [f'A "{name[:2]}", seen in {k} ways .' for k in range(5)]


def karpathy(**changed) -> str:
    """The official layout, with what is not read here too."""
    images = [
        {
            "sentids": list(range(5)),
            "imgid": i,
            "sentences": [{"tokens": c.split(), "raw": c, "imgid": i, "sentid": k} for k, c in enumerate(captions(n))],
            "split": split,
            "filename": n,
        }
        for split, names in SPLITS.items()
        for i, n in enumerate(names)
    ]
    return json.dumps({"images": images, "dataset": "flickr30k"} | changed)


def pictures(folder: str = "flickr30k-images") -> dict[str, bytes]:
    names = [n for names in SPLITS.values() for n in names] + ["99.jpg"]  # one that no split has
    return {f"{folder}/{n}": picture(int(n[:2])) for n in names}


def test_splits_and_captions(tmp_path):
    root = write_tree(tmp_path / "src", {"dataset_flickr30k.json": karpathy(), **pictures()})
    folder = manual.build(Flickr30k, root, tmp_path / "data")
    for split, names in SPLITS.items():
        found = records(folder, split)
        assert {n: r["texts"] for n, r in found.items()} == {n: captions(n) for n in names}
        assert all(r["image"] == picture(int(n[:2])) for n, r in found.items())


def test_tfds_runs_the_builder_by_its_name(tmp_path):
    """As any builder of TFDS, without the command line of ours."""
    root = write_tree(tmp_path / "src", {"dataset_flickr30k.json": karpathy(), **pictures()})
    builder = tfds.builder("flickr30k", data_dir=str(tmp_path / "data"), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(root)))
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 2,
    }
    assert len(builder.as_data_source("test")) == 2


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_pictures_in_an_archive(tmp_path, kind):
    files = write_tree(tmp_path / "files", pictures())
    root = write_tree(tmp_path / "src", {"dataset_flickr30k.json": karpathy()})
    shutil.make_archive(str(root / "flickr30k-images"), kind, files)
    assert set(records(manual.build(Flickr30k, root, tmp_path / "data"), "test")) == set(SPLITS["test"])


def test_the_tables_of_splits_serve_too(tmp_path):
    """Lines as the csv writer quotes them: captions have commas and quotation marks."""
    rows = [f'{n},"{c.replace(chr(34), chr(34) * 2)}"\n' for n in SPLITS["test"] for c in captions(n)]
    root = write_tree(
        tmp_path / "src", {"flickr30k_test_karpathy.txt": "image,caption\n" + "".join(rows), **pictures()}
    )
    assert read_captions(root) == {"test": {n: captions(n) for n in SPLITS["test"]}}
    found = records(manual.build(Flickr30k, root, tmp_path / "data"), "test")
    assert found["13.jpg"]["texts"] == captions("13.jpg")
    table = root / "flickr30k_test_karpathy.txt"
    table.write_text(table.read_text(), encoding="utf-8-sig")
    assert read_captions(root) == {"test": {n: captions(n) for n in SPLITS["test"]}}
    table.unlink()
    (root / "dataset_flickr30k.json").write_bytes(b"\xef\xbb\xbf" + karpathy().encode())
    assert read_captions(root)["test"] == {n: captions(n) for n in SPLITS["test"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            "dataset_flickr30k.json is expected: dataset_flickr30k.json, or as flickr30k/dataset.json (capt",
        ),
        ({"dataset_flickr30k.json": karpathy(), "flickr30k-images": None}, "flickr30k-images is expected: "),
        ({"dataset_flickr30k.json": "[1"}, "dataset_flickr30k.json cannot be read as JSON ("),
        ({"dataset_flickr30k.json": '{"annotations": []}'}, "is another file: it has no 'images'; expected: "),
        (
            {"dataset_flickr30k.json": karpathy(images=[{"id": 1}])},
            "is another file: an image of it has no 'sentences'",
        ),
        ({"dataset_flickr30k.json": karpathy(), "flickr30k-images/13.jpg": None}, "1 of 2 pictures are not in "),
        ({"flickr30k_val_karpathy.txt": "no table"}, "a line of it is ['no table']; expected: image,caption"),
    ],
)
def test_wrong_and_missing_files_are_named(tmp_path, files, message):
    tree = {n: d for n, d in (pictures() | files).items() if d is not None}
    if files.get("flickr30k-images", b"") is None:
        tree = {n: d for n, d in tree.items() if not n.startswith("flickr30k-images")}
    with pytest.raises(UserError) as e:
        manual.build(Flickr30k, write_tree(tmp_path / "src", tree), tmp_path / "data")
    assert message in str(e.value) and "\n" not in str(e.value)


def test_the_instructions_name_every_file_its_page_and_its_size():
    text = Flickr30k.MANUAL_DOWNLOAD_INSTRUCTIONS
    for words in ("dataset_flickr30k.json", "caption_datasets.zip", "flickr30k-images", "4.4 GB", "DenotationGraph"):
        assert words in text
