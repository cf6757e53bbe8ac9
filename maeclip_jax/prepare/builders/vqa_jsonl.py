"""Any questions about any pictures: a folder with questions.jsonl and the folder (or archive) images.

    python -m maeclip_jax.prepare.builders.vqa_jsonl --manual_dir DIR --name daquar --references answer --data_dir data

A line of questions.jsonl is an object of

    image                 path of the picture in `images` (with or without "images/" in front), or its file name alone
                          where no other picture has it
    question
    answer, or answers    one text, or the list of several annotators' answers
    split                 optional: train where there is none
    id                    optional: unique among the questions of a picture; its number there where there is none
    kind                  optional: kinds of questions that are reported one by one

`answers` are references of equal standing, judged by the official rule of VQA, which is made for ten annotators. Where
they are the parts of one answer ("cup, bottle") or only two or three, --references answer takes `answer`, which then
has to be matched as a whole.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError, unknown
from maeclip_jax.prepare.builders import manual, question_sets
from maeclip_jax.prepare.builders.archive import Archive
from maeclip_jax.prepare.formats import names

COLUMNS = ("answers", "answer")
_PAGE = "see --help"
QUESTIONS = manual.File(
    ("questions.jsonl",), _PAGE, "any size", "a line a question: image, question, answer or answers"
)
PICTURES = manual.File(
    ("images", "images.zip", "images.tar", "images.tar.gz"), _PAGE, "any size", "the pictures that the lines name"
)

log = logging.getLogger(__name__)


class VqaJsonl(question_sets.Builder):
    """Questions about pictures, from a table of json lines and a folder of pictures."""

    FILES = (QUESTIONS, PICTURES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = manual.instructions(*FILES)
    OPTIONS = {**question_sets.Builder.OPTIONS, "references": ""}

    def splits(self, folder: Path) -> dict:
        file = QUESTIONS.need(folder)
        pictures = Archive(PICTURES.need(folder))
        found = read(file, pictures, self.options["references"])
        return {split: self.pictures_of(split, asked, pictures, file) for split, asked in sorted(found.items())}


def read(file: Path, pictures: Archive, references: str = "") -> dict[str, question_sets.Asked]:
    """Split -> picture -> questions. `references`: the column they stand in; "": answers, else answer.

    A picture that goes by several names has the first of them. Raises UserError, with its line, for what is not a
    question.
    """
    if references not in ("", *COLUMNS):
        raise unknown("references", references, COLUMNS)
    splits: dict[str, question_sets.Asked] = {}
    few, seen, called = 0, set(), {}
    for number, row in _rows(file):
        image, split = row["image"], str(row.get("split") or "train")
        if not names.is_split(split):
            raise UserError(f"{file}, line {number}: {split!r} is not a split name; valid: letters, digits and _")
        places = question_sets.places_of(pictures, image) or [image]
        image = called.setdefault((split, *places), image)
        asked = splits.setdefault(split, {}).setdefault(image, [])
        given = _references(row, references, f"{file}, line {number}")
        few += len(given) in (2, 3)
        entry = question_sets.question(row.get("id", len(asked)), row["question"], given, str(row.get("kind") or ""))
        name = (split, image, entry["id"])
        if name in seen:
            raise UserError(f"{file}, line {number}: {image} has a question with id {entry['id']!r} already")
        seen.add(name)
        asked.append(entry)
    if not splits:
        raise UserError(f"{file} is empty; expected: {QUESTIONS}")
    if few:
        log.warning(
            "%d questions have two or three answers, on which the official accuracy stays below 100 %%; "
            "--references answer takes one for each", few,
        )  # fmt: skip
    return splits


def _rows(file: Path) -> Iterator[tuple[int, dict]]:
    """(number of the line, its object), checked for what every question has."""
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error}); expected: {QUESTIONS}") from None
        for name in ("image", "question"):
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                raise UserError(f"{file}, line {number}: no {name!r} in {line[:80]!r}; expected: {QUESTIONS}")
        yield number, row


def _references(row: dict, wanted: str, where: str) -> list[str]:
    """The annotators' answers; empty if they are not known (a test split: no column, "" or [])."""
    column = wanted or next((c for c in COLUMNS if c in row), "answer")
    given = row.get(column)
    if wanted and column not in row and any(c in row for c in COLUMNS):
        raise UserError(f"{where}: no {column!r}; valid: --references {', '.join(c for c in COLUMNS if c in row)}")
    given = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(g, str | int | float) for g in given):
        raise UserError(f"{where}: {column!r} is {given!r:.60}; expected: a text, or a list of texts")
    return [str(g) for g in given if str(g).strip()]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = manual.parser(VqaJsonl)
    flags.add_argument("--references", default="", help="column they stand in: answers (if there is one), or answer")
    return flags


if __name__ == "__main__":
    sys.exit(guarded(lambda: question_sets.run(VqaJsonl, parser())))
