"""Folders of pictures become labelled data sets; every way to lay them out wrongly gets one line."""

import subprocess
import sys

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import image_folder, manual
from maeclip_jax.prepare.builders.image_folder import ImageFolder, read_layout
from tests.data.labelled_sources import opened, records, write_tree
from tests.golden import ROOT
from tests.prepare.pair_sources import digests, picture


def pets(root, **more):
    """Two classes with three pictures each, one of them nested, one PNG in capitals."""
    names = ("cat/1.jpg", "cat/2.JPEG", "cat/in/3.jpg", "dog/1.PNG", "dog/2.jpg", "dog/3.jpg")
    files = {n: picture(i, format="PNG" if "PNG" in n else "JPEG") for i, n in enumerate(names)}
    return write_tree(root / "pets", {**files, ".hidden/x.jpg": b"", "cat/notes.md": b"", **more})


def build(root, out, **kwargs):
    return manual.build(ImageFolder, root, out, "pets", **kwargs)


def test_pictures_are_kept_byte_for_byte_with_labels(tmp_path):
    root = pets(tmp_path)
    folder = build(root, tmp_path / "data")
    assert folder == tmp_path / "data/pets/1.0.0" and "tensorflow" not in sys.modules
    found = records(folder, "train")
    assert set(found) == {p for p in digests(root) if p.lower().endswith(("jpg", "jpeg", "png")) and p[0] != "."}
    assert opened(folder, "train").classes == ["cat", "dog"]
    for path, record in found.items():
        assert record["image"] == (root / path).read_bytes() and record["file_name"] == path
        assert record["label"] == (0 if path.startswith("cat") else 1)


def test_split_lists_and_class_names(tmp_path, caplog):
    lists = {"train.txt": "cat/1.jpg\n\ndog/2.jpg\ncat/1.jpg\n./cat/1.jpg\n", "test.txt": "./cat/in/3.jpg\ndog/3.jpg\n"}
    root = pets(tmp_path, **lists, **{"classes.txt": "dog\tlarge dog\ncat\tcat, or kitten\n"})
    folder = build(root, tmp_path / "data")
    assert f"2 of 6 pictures of {root} are in no split and left out, the first: cat/2.JPEG" in caplog.text
    assert set(records(folder, "train")) == {"cat/1.jpg", "dog/2.jpg"}
    assert {k: r["label"] for k, r in records(folder, "test").items()} == {"cat/in/3.jpg": 1, "dog/3.jpg": 0}
    assert opened(folder, "test").classes == ["large dog", "cat, or kitten"]  # in the order of classes.txt


def test_byte_order_marks_of_lists_are_no_part_of_names(tmp_path):
    lists = {"train.txt": "cat/1.jpg\ndog/2.jpg\n", "classes.txt": "cat\tthe cat\ndog\n"}
    layout = read_layout(pets(tmp_path, **{name: text.encode("utf-8-sig") for name, text in lists.items()}))
    assert layout.splits == {"train": ["cat/1.jpg", "dog/2.jpg"]} and layout.classes == {"cat": "the cat", "dog": "dog"}


def test_a_line_ends_at_a_newline_alone(tmp_path, capsys):
    listed = ["cat/1.jpg", "cat/2.JPEG", "dog/a\u2028b.jpg", "dog/c\x85d.jpg"]
    root = pets(tmp_path, **{"dog/a\u2028b.jpg": picture(7), "dog/c\x85d.jpg": b"not one"},
                **{"train.txt": "\n".join(listed), "classes.txt": "dog\tdog\u2028s\r\ncat\r\n"})  # fmt: skip
    assert read_layout(root).classes == {"dog": "dog\u2028s", "cat": "cat"}
    words = ["--src", str(root), "--name", "pets", "--data_dir", str(tmp_path / "data")]
    made = manual.run(ImageFolder, manual.folder_parser(ImageFolder).parse_args(words))
    assert set(records(made, "train")) == set(listed[:3])
    assert "1 pictures dropped (not_an_image 1)" in capsys.readouterr().out


def test_split_folders(tmp_path):
    for split, classes in {"train": ("a_b", "c"), "val": ("a_b",)}.items():
        write_tree(tmp_path / "src", {f"{split}/{c}/{i}.jpg": picture(i) for c in classes for i in range(2)})
    layout = read_layout(tmp_path / "src")
    assert layout.classes == {"a_b": "a b", "c": "c"} and {s: len(p) for s, p in layout.splits.items()} == {
        "train": 4,
        "val": 2,
    }
    assert {r["label"] for r in records(build(tmp_path / "src", tmp_path / "data"), "val").values()} == {0}


def test_split_folders_and_lists_are_known_by_other_words_and_capitals(tmp_path):
    folders = ("train/cat", "Test/cat", "testing/dog", "TRAINING/dog", "val/dog")
    root = write_tree(tmp_path / "src", {f"{f}/{n}.jpg": picture(n) for n, f in enumerate(folders)})
    layout = read_layout(root)
    assert list(layout.classes) == ["cat", "dog"]
    assert {s: sorted(p) for s, p in layout.splits.items()} == {
        "test": ["Test/cat/1.jpg", "testing/dog/2.jpg"],
        "train": ["TRAINING/dog/3.jpg", "train/cat/0.jpg"],
        "val": ["val/dog/4.jpg"],
    }
    write_tree(root, {"Train.txt": "train/cat/0.jpg\n", "testing.TXT": "val/dog/4.jpg\n"})
    assert read_layout(root).splits == {"train": ["train/cat/0.jpg"], "test": ["val/dog/4.jpg"]}


def test_what_is_left_out_for_its_extension_or_place_is_counted_and_named(tmp_path, caplog):
    more = {
        "cat/4.xcf": b"",
        "dog/deep/5.xcf": b"",
        "dog/LICENSE": b"",
        "6.jpg": picture(6),
        "classes.txt": "cat\ndog\n",
    }
    layout = read_layout(root := pets(tmp_path, **more))
    assert len(layout.splits["train"]) == 6
    said = [r.getMessage() for r in caplog.records]
    assert said == [
        f"4 files of {root} are left out for their extensions (.xcf 2, .md 1, none 1), the first: cat/4.xcf",
        f"1 of 7 pictures of {root} are in no folder of a class and left out, the first: 6.jpg",
    ]


def test_a_picture_in_a_folder_of_a_split_is_of_no_class(tmp_path, caplog):
    root = write_tree(
        tmp_path, {"train/cat/1.jpg": picture(1), "train/2.jpg": picture(2), "test/cat/3.jpg": picture(3)}
    )
    layout = read_layout(root)
    assert layout.classes == {"cat": "cat"} and layout.splits == {
        "train": ["train/cat/1.jpg"],
        "test": ["test/cat/3.jpg"],
    }
    assert "1 of 3 pictures of" in caplog.text and "left out, the first: train/2.jpg" in caplog.text


def test_a_class_may_be_called_train(tmp_path):
    """As in VOC: a folder of pictures is a class, a folder of folders a split."""
    root = write_tree(tmp_path, {"train/1.jpg": picture(1), "car/1.jpg": picture(2)})
    assert read_layout(root, "test") == image_folder.Layout(
        root, {"car": "car", "train": "train"}, {"test": ["car/1.jpg", "train/1.jpg"]}
    )


def test_equal_readable_names_are_told_apart(tmp_path):
    root = pets(tmp_path, **{"classes.txt": "dog\tpet\ncat\tpet\n"})
    assert list(read_layout(root).classes.values()) == ["pet (dog)", "pet (cat)"]


def test_bad_pictures_are_dropped_counted_and_named(tmp_path):
    root = pets(tmp_path, **{"cat/bad.jpg": b"not one", "dog/cut.jpg": picture(9, (300, 300))[:-500]})
    folder = build(root, tmp_path / "data")
    assert len(opened(folder, "train")) == 6
    dropped = (folder / "dropped.jsonl").read_text().splitlines()
    assert len(dropped) == 2 and '"key": "cat/bad.jpg", "kind": "not_an_image"' in dropped[0]
    assert '"key": "dog/cut.jpg", "kind": "truncated"' in dropped[1]


def test_mostly_bad_pictures_are_an_error_and_leave_nothing(tmp_path):
    root = write_tree(tmp_path / "src", {"a/1.jpg": picture(1), "a/2.jpg": b"x", "b/3.jpg": b""})
    with pytest.raises(UserError) as e:
        build(root, tmp_path / "data")
    assert "2 of 3 pictures of split 'train' cannot be used (empty 1, not_an_image 1); the last: b/3.jpg" in str(
        e.value
    )
    assert not (tmp_path / "data/pets/1.0.0").exists()


def test_the_same_folder_gives_the_same_records_in_the_same_order(tmp_path):
    root = pets(tmp_path)
    one, two = (opened(build(root, tmp_path / out, workers=w), "train") for out, w in (("a", 1), ("b", 3)))
    assert [one[i] for i in range(6)] == [two[i] for i in range(6)]


def test_built_once(tmp_path):
    root = pets(tmp_path)
    folder = build(root, tmp_path / "data")
    before = folder.stat().mtime
    assert build(root, tmp_path / "data").stat().mtime == before
    with pytest.raises(UserError) as e:
        build(root, tmp_path / "data", split="test")
    assert "data/pets/1.0.0 holds another data set; valid: another --name or --data_dir, or --overwrite" in str(e.value)
    assert len(opened(build(root, tmp_path / "data", split="test", overwrite=True), "test")) == 6


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"classes.txt": "cat\nbird\ndog\n"},
            "classes.txt names 'bird' (1 such), but there are no pictures of it; classes with",
        ),
        ({"classes.txt": "cat\tkitten\n"}, "folder 'dog' is not in "),
        ({"classes.txt": "cat\tkitten\n"}, "classes.txt, which names: cat"),
        ({"classes.txt": "cat\tx\ncat\ty\ndog\n"}, "classes.txt names 'cat' twice"),
        ({"classes.txt": "\n"}, "classes.txt is empty"),
        ({"test.txt": "cat/1.jpg\ncat/9.jpg\n"}, "1 of 2 pictures that test.txt names are not in "),
        ({"test.txt": "cat/1.jpg\ncat/9.jpg\n"}, "the first: cat/9.jpg"),
        (
            {"train.txt": "cat/1.jpg\ncat/2.JPEG\ndog/1.PNG\n", "test.txt": "dog/2.jpg\n.\\cat\\2.JPEG\n"},
            "pets: 1 pictures are in two splits, the first: cat/2.JPEG in 'train' and 'test'; valid: a picture in one",
        ),
        (
            {"test.txt": "cat/1.jpg", "Testing.txt": "cat/2.JPEG"},
            "both name the pictures of 'test'; valid: one of them",
        ),
        ({"train.txt": b"\xff\xfe\xff"}, "train.txt cannot be read"),
    ],
)
def test_what_does_not_match_is_named(tmp_path, files, message):
    root = pets(tmp_path, **files)
    with pytest.raises(UserError) as e:
        build(root, tmp_path / "data")
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "My Pets"}, "name 'My Pets' is not a TFDS name; valid: small letters, digits and _"),
        ({"spilt": "x"}, "unknown option of image_folder: 'spilt' (did you mean 'split'?); valid: split"),
    ],
)
def test_wrong_arguments(tmp_path, kwargs, message):
    with pytest.raises(UserError) as e:
        manual.build(ImageFolder, pets(tmp_path), tmp_path / "data", **kwargs)
    assert message in str(e.value)


def test_a_folder_without_class_folders_and_one_that_is_not_there(tmp_path):
    with pytest.raises(UserError) as e:
        build(write_tree(tmp_path / "flat", {"1.jpg": picture(1)}), tmp_path)
    assert "flat holds no pictures in folders; " in str(e.value) and "flat holds 1.jpg; expected: SRC/" in str(e.value)
    with pytest.raises(UserError) as e:
        build(tmp_path / "none", tmp_path)
    assert "none is not a folder; SRC/CLASS/*.jpg, or SRC/SPLIT/CLASS/*.jpg" in str(e.value) and "\n" not in str(
        e.value
    )


def test_command_line(tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "maeclip_jax.prepare.builders.image_folder", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    root = pets(tmp_path, **{"cat/bad.jpg": b"not one"})
    done = run("--src", root, "--name", "pets", "--data_dir", tmp_path / "data", "--split", "test")
    assert done.returncode == 0, done.stderr
    assert "pets/1.0.0: test 6 (" in done.stdout and "1 pictures dropped (not_an_image 1)" in done.stdout
    done = run("--src", tmp_path / "no", "--data_dir", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "SRC/CLASS/*.jpg" in run("--help").stdout
    assert "error: unknown flag '--scr' (did you mean '--src'?); valid: " in run("--src", root, "--scr", "x").stderr
