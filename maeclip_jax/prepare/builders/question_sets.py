"""What the builders of question sets have in common: one example a picture, with the list of its questions.

An example has `key`, `image` and `questions` (`id`, `question`, `answers`: the references, a line each, `kind`), as
`data.questions` reads them. The index of each split is written with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from maeclip_jax.data import answers, questions, source
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders import manual
from maeclip_jax.prepare.builders.archive import Archive

Asked = dict[str, list[dict]]  # name of a picture (one for each) -> its questions


def question(id: object, text: str, references: list[str], kind: str = "") -> dict:
    """A question as it is stored."""
    return {"id": str(id), "question": text, "answers": answers.join(references), "kind": kind}


class Builder(manual.Builder, skip_registration=True):
    """Pictures with questions. Option skip_missing: questions whose picture is not there are left out and listed."""

    OPTIONS = {"skip_missing": False}

    def _info(self) -> tfds.core.DatasetInfo:
        row = {name: tfds.features.Text() for name in ("id", "question", "answers", "kind")}
        return manual.info(self, self.__doc__.splitlines()[0], {"questions": tfds.features.Sequence(row)})

    def download_and_prepare(self, **kwargs) -> None:
        super().download_and_prepare(**kwargs)
        for split in self.info.splits:
            of = {"kind": "tfds", "dir": str(self.data_dir), "split": split}
            questions.index(source.make(of), of)

    def pictures_of(self, split: str, asked: Asked, pictures: Archive, file: Path) -> tuple[int, Iterator[dict]]:
        """What `splits` gives for a split: its pictures in stored order. `file`: where the questions stand.

        UserError for a file name that several pictures have, and if pictures are missing, unless the option
        skip_missing drops their questions.
        """
        places = {name: places_of(pictures, name) for name in asked}
        unclear = [name for name, paths in places.items() if len(paths) > 1]
        if unclear:
            which = sum(len(asked[name]) for name in unclear)
            raise UserError(
                f"{which} of {sum(map(len, asked.values()))} questions of {file.name} ({split}) name their picture by "
                f"what several files in {pictures.path} are called, the first: {unclear[0]} "
                f"({', '.join(places[unclear[0]][:3])}); valid: the path of one of them"
            )
        missing = [name for name, paths in places.items() if not paths]
        if missing and (len(missing) == len(asked) or not self.options["skip_missing"]):
            lost = sum(len(asked[name]) for name in missing)
            raise UserError(
                f"{lost} of {sum(map(len, asked.values()))} questions of {file.name} ({split}) are about pictures that "
                f"are not in {pictures.path}, the first: {missing[0]}; valid: put them there, or --skip_missing"
            )
        for name in missing:
            detail = f"{len(asked[name])} questions"
            self.dropped.append({"split": split, "key": name, "kind": "missing_image", "detail": detail})
        names = {paths[0]: name for name, paths in places.items() if paths}
        return len(names), _examples(pictures, names, asked)


def places_of(pictures: Archive, name: str) -> list[str]:
    """The paths that the name of a picture may mean: one unchanged or without its first folder; else, of a bare file
    name, those in any folder."""
    if name in pictures:
        return [name]
    if "/" not in name:
        return pictures.places.get(name, [])
    inner = name.partition("/")[2]
    return [inner] if inner in pictures else []


def _examples(pictures: Archive, names: dict[str, str], asked: Asked) -> Iterator[dict]:
    for place in pictures.paths:  # a tar.gz is read once, from its beginning to its end
        if place in names:
            name = names[place]
            yield {"key": name, "image": pictures.read(place), "questions": asked[name]}


def run(cls: type[Builder], parser) -> None:
    """The command line of a builder."""
    parser.add_argument("--skip_missing", action="store_true", help="leave out questions without their picture")
    manual.run(cls, parser.parse_args())
