"""VQA v2.0 (Goyal et al. 2017): open questions about COCO pictures, ten annotators each.

    python -m maeclip_jax.prepare.builders.vqav2 --manual_dir ~/downloads/vqav2 --data_dir data

Splits: train, validation, and test and test_dev, whose answers are not published. Those are built whose questions are
in the manual directory. `kind` is the official answer type: yes/no, number, other.
"""

from __future__ import annotations

import sys
from pathlib import Path

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual, question_sets
from maeclip_jax.prepare.builders.archive import Archive

PAGE = "https://visualqa.org/download.html"
COCO = "https://cocodataset.org/#download"


def _questions(part: str, size: str, count: str) -> manual.File:
    name = f"v2_OpenEnded_mscoco_{part}_questions.json"
    return manual.File((name,), PAGE, f"about {size}, unzipped", f"{count} questions", optional=True)


def _annotations(part: str, size: str) -> manual.File:
    what = f"the answers to the questions of {part}"
    return manual.File((f"v2_mscoco_{part}_annotations.json",), PAGE, f"about {size}, unzipped", what, optional=True)


def _pictures(part: str, size: str, count: str) -> manual.File:
    return manual.File((part, f"{part}.zip"), COCO, size, f"{count} pictures, COCO_{part}_*.jpg", optional=True)


_TEST = _pictures("test2015", "12 GB", "81,434")
# Split -> its questions, their answers, its pictures, and the part of COCO these are named after.
SPLITS = {
    "train": (
        _questions("train2014", "45 MB", "443,757"),
        _annotations("train2014", "390 MB"),
        _pictures("train2014", "13 GB", "82,783"),
        "train2014",
    ),
    "validation": (
        _questions("val2014", "22 MB", "214,354"),
        _annotations("val2014", "190 MB"),
        _pictures("val2014", "6 GB", "40,504"),
        "val2014",
    ),
    "test": (_questions("test2015", "45 MB", "447,793"), None, _TEST, "test2015"),
    "test_dev": (_questions("test-dev2015", "11 MB", "107,394"), None, _TEST, "test2015"),
}


class Vqav2(question_sets.Builder):
    """VQA v2.0: open questions about COCO pictures, with the answers of ten annotators each."""

    FILES = tuple(dict.fromkeys(file for row in SPLITS.values() for file in row[:3] if file))
    MANUAL_DOWNLOAD_INSTRUCTIONS = manual.instructions(*FILES)

    def splits(self, folder: Path) -> dict:
        rows = {split: row for split, row in SPLITS.items() if row[0].find(folder)}
        if not rows:
            SPLITS["train"][0].need(folder)
        for row in rows.values():  # all files, before any is read
            for file in filter(None, row[:3]):
                file.need(folder)
        found = {}
        for split, (file, given, pictures, part) in rows.items():
            asked = read(folder, file, given, part)
            found[split] = self.pictures_of(split, asked, Archive(pictures.need(folder)), file.need(folder))
        return found


def read(folder: Path, file: manual.File, given: manual.File | None, part: str) -> question_sets.Asked:
    """The questions of a split by picture. UserError for another file, or questions without annotations."""
    answered = _read_answers(folder, given) if given else None
    asked: question_sets.Asked = {}
    try:
        for row in file.read_json(folder, "questions")["questions"]:
            references, kind = answered.pop(row["question_id"]) if answered is not None else ([], "")
            entry = question_sets.question(row["question_id"], row["question"], references, kind)
            asked.setdefault(f"COCO_{part}_{row['image_id']:012d}.jpg", []).append(entry)
    except (KeyError, TypeError, ValueError) as error:
        if given and isinstance(error, KeyError) and isinstance(error.args[0], int):
            raise UserError(
                f"{given.need(folder)} has no answers to question {error} of {file.names[0]}; expected: both of v2.0"
            ) from None
        raise UserError(
            f"{file.need(folder)} is another file: a question of it has no {error}; expected: {file}"
        ) from None
    return asked


def _read_answers(folder: Path, file: manual.File) -> dict[int, tuple[list[str], str]]:
    """Question id -> (answers, kind)."""
    try:
        return {
            row["question_id"]: ([sys.intern(a["answer"]) for a in row["answers"]], sys.intern(row["answer_type"]))
            for row in file.read_json(folder, "annotations")["annotations"]
        }
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file.need(folder)} is another file: an answer of it has no {error}; expected: {file}"
        ) from None


if __name__ == "__main__":
    sys.exit(guarded(lambda: question_sets.run(Vqav2, manual.parser(Vqav2))))
