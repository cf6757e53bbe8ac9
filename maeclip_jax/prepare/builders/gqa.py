"""GQA (Hudson and Manning 2019), balanced: composed questions about Visual Genome pictures, one answer each.

    python -m maeclip_jax.prepare.builders.gqa --manual_dir ~/downloads/gqa --data_dir data

Splits: train, validation, testdev (the one that is reported); those are built whose questions are in the manual
directory. `kind` is the structural type: verify, query, choose, logical, compare.
"""

from __future__ import annotations

import sys
from pathlib import Path

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual, question_sets
from maeclip_jax.prepare.builders.archive import Archive

PAGE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"


def _questions(part: str, count: str) -> manual.File:
    names = (f"{part}_balanced_questions.json", f"questions1.2/{part}_balanced_questions.json")
    return manual.File(names, PAGE, "out of questions1.2.zip, 1.4 GB", f"{count} questions", optional=True)


SPLITS = {
    "train": _questions("train", "943,000"),
    "validation": _questions("val", "132,062"),
    "testdev": _questions("testdev", "12,578"),
}
PICTURES = manual.File(("images", "images.zip"), PAGE, "20.3 GB", "148,854 pictures, 2407890.jpg and so on")


class Gqa(question_sets.Builder):
    """GQA, balanced: composed questions about Visual Genome pictures, with one answer each."""

    FILES = (*SPLITS.values(), PICTURES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = manual.instructions(*FILES)

    def splits(self, folder: Path) -> dict:
        files = {split: file for split, file in SPLITS.items() if file.find(folder)}
        if not files:
            SPLITS["train"].need(folder)
        pictures = Archive(PICTURES.need(folder))
        return {
            split: self.pictures_of(split, read(folder, file), pictures, file.need(folder))
            for split, file in files.items()
        }


def read(folder: Path, file: manual.File) -> question_sets.Asked:
    """The questions of a split by picture; UserError for another file."""
    asked: question_sets.Asked = {}
    try:
        for id, row in file.read_json(folder).items():
            given = [row["answer"]] if "answer" in row else []
            kind = row.get("types", {}).get("structural") or ""
            asked.setdefault(f"{row['imageId']}.jpg", []).append(
                question_sets.question(id, row["question"], given, kind)
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file.need(folder)} is another file: a question of it has no {error}; expected: {file}"
        ) from None
    return asked


if __name__ == "__main__":
    sys.exit(guarded(lambda: question_sets.run(Gqa, manual.parser(Gqa))))
