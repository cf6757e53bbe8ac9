"""Questions about pictures as a source: one record for each question of a source whose records have several.

    dict(kind="questions", of=dict(kind="tfds", name="vqav2", split="validation"), vocabulary=dict(min_count=9))

A record is that of the picture (`image`, ...) without its list of questions, and

    key             the picture's key / the question's id
    question, kind  str; kind is "" if the data set has no kinds
    answers         list of str: the references as they stand; empty where they are hidden (test splits)
    answer          the most common reference, unchanged; "" if there is none
    answer_ids      int32 [n]: those answers of the question that are in the vocabulary, the commonest first
    answer_scores   float32 [n]: their soft targets, min(annotators / 3, 1)
    answer_credits  float32 [n]: the official accuracy of giving that answer
    _references, _kind   for evaluators: `answers.split(row)` gives the list back. Text, because names with an
                    underscore pass through the pipeline as they are, and lists of different lengths could not

The op `answers(k)` pads ids, scores and credits to rows of a batch.

An *index* of the split says how many questions each picture has and how often answers are given. It is made once, by
reading the whole split, and kept beside the data where that can be written (else in memory); its name and content say
what data it was made of, so that an old one is never used for new data.

The vocabulary comes from training annotations: every question counts once, for the answer most of its annotators
gave. The usual sizes are those of `USUAL`: VQAv2's 3,129 are the answers of at least 9 questions of train and
validation together (min_count=9, split="train+validation": only if validation is not what is measured), GQA's 1,842
and CLEVR's 28 are all that occur. A size that differs is reported, never forced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections import Counter
from typing import Any

import numpy as np
from etils import epath

from maeclip_jax.data import answers, source
from maeclip_jax.data.ahead import readable, scan
from maeclip_jax.errors import UserError, unknown

FIELDS = ("questions", "question_answer")  # where records keep them; the second is CLEVR's of the TFDS catalogue
USUAL = {"vqav2": 3129, "gqa": 1842, "clevr": 28}
RULES = 1  # of normal forms and of what an index holds: raise it when they change
_SAMPLE = 32  # pictures whose questions identify the data

log = logging.getLogger(__name__)
_indices: dict[str, Index] = {}  # of this process
_said: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Question:
    """id: unique among the questions of its picture. references: answers as annotators gave them."""

    id: str
    text: str
    references: tuple[str, ...]
    kind: str = ""

    @staticmethod
    def of(record: dict) -> list[Question]:
        """The questions of a record: a list of dicts or a dict of lists of `question`, `answer` or `answers`, and,
        where there are any, `id` and `kind`. `answers` is a list, or a text with a line each. UserError without."""
        held = next((record[name] for name in FIELDS if name in record), None)
        if held is None:
            names = ", ".join(sorted(k for k in record if not k.startswith("_")))
            raise UserError(
                f"record {record.get('key')!r} holds no {FIELDS[0]}, but {names}; valid: a data set with questions "
                '(vqav2, gqa, clevr, one of builders.vqa_jsonl, prepared scenes, scenes drawn with truth="all")'
            )
        rows = [dict(zip(held, row)) for row in zip(*held.values())] if isinstance(held, dict) else held
        if not all(isinstance(row, dict) and "question" in row for row in rows):
            raise UserError(
                f"questions of record {record.get('key')!r} are {rows!r:.60}; valid: dicts (or a dict of lists) of "
                "question, answer or answers, and, where there are any, id and kind"
            )
        return [_question(row, place) for place, row in enumerate(rows)]


def _question(row: dict, place: int) -> Question:
    given = row["answers"] if "answers" in row else [row.get("answer", "")]
    given = answers.split(given) if isinstance(given, str) else given
    references = tuple(r for r in map(str, given) if r.strip())
    return Question(str(row.get("id", place)), row["question"], references, row.get("kind", ""))


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of the questions of a split without reading it again.

    counts_N: questions of each of the N pictures. sets: answers of a question (their normal forms, the commonest
    first, a line each) -> questions that have just these.
    """

    counts_N: np.ndarray
    sets: dict[str, int]

    def given(self) -> Counter[str]:
        """Answer -> questions whose commonest answer it is."""
        counts: Counter[str] = Counter()
        for given, n in self.sets.items():
            if given:
                counts[answers.split(given)[0]] += n
        return counts

    def outside(self, vocabulary) -> int:
        """How many questions have no answer in the vocabulary."""
        return sum(n for given, n in self.sets.items() if not any(a in vocabulary for a in answers.split(given)))


def index(made: Any, config: dict | None = None) -> Index:
    """The index of a source: known, read from beside the data, or made (with a bar, where that takes long).

    config: what the source was made of; without one (records of a notebook) nothing is kept.
    """
    if config is None:
        return _scan(made)
    mark, folder = _mark(made, config), getattr(made, "folder", None)
    path = folder and folder / _file_name(made.name, mark)
    kept = bool(path) and path.exists()
    if mark not in _indices and kept:
        held = json.loads(path.read_text())
        _indices[mark] = Index(np.asarray(held["counts"], np.int32), held["sets"])
    elif mark not in _indices:
        _indices[mark] = _scan(made)
    if path and not kept:
        _keep(path, mark, _indices[mark])
    return _indices[mark]


def _mark(made: Any, config: dict) -> str:
    """Identifies data: name, version, split, the columns read, its length and a sample, but not its location."""
    which = [int(i) for i in np.linspace(0, len(made) - 1, min(_SAMPLE, len(made)))]
    sample = [Question.of(record) for record in scan(made, which)]
    if folder := getattr(made, "folder", None):
        sample.append((folder / "dataset_info.json").read_text())  # has the bytes of all splits
    rest = {k: v for k, v in config.items() if k not in ("kind", "dir", "name", "split") and v is not None}
    seen = hashlib.sha256(repr(sample).encode()).hexdigest()[:16]
    mark = {"rules": RULES, "name": made.name, "pictures": len(made), "sample": seen, **rest}
    return json.dumps(mark, sort_keys=True, default=str)


def _file_name(name: str, mark: str) -> str:
    split = re.sub(r"\W+", "-", name.rpartition(":")[2]).strip("-")
    return f"questions-{split}-{hashlib.sha256(mark.encode()).hexdigest()[:8]}.json"


def _keep(path: epath.Path, mark: str, made: Index) -> None:
    content = {"of": json.loads(mark), "counts": made.counts_N.tolist(), "sets": made.sets}
    aside = path.parent / f"{path.name}.tmp{os.getpid()}"  # several processes may come here at once
    with contextlib.suppress(OSError):  # data that cannot be written to is read every time
        aside.write_text(json.dumps(content, ensure_ascii=False))
        aside.rename(path)


def _scan(made: Any) -> Index:
    from tqdm import tqdm

    counts_N, sets = np.zeros(len(made), np.int32), Counter()
    name = getattr(made, "name", "records")
    records = tqdm(scan(made), f"questions of {name}", len(made), unit=" pictures", delay=5, mininterval=1)
    for i, record in enumerate(records):
        asked = Question.of(record)
        counts_N[i] = len(asked)
        sets.update(answers.join(answers.soft_scores(q.references)) for q in asked)
    return Index(counts_N, dict(sorted(sets.items())))


class QuestionSource:
    """One record for each question of `of`, in the order of its pictures, each exactly once. See the module.

    of: config of a source with an end whose records have questions, or such records themselves.
    vocabulary: dict(split="train", min_count=1, top=0), the answers given at least min_count times in that split of
        `of` (top > 0: no more than so many; split="": in the records of `of` themselves); or the path of a text file
        with an answer a line.
    `answers`: the vocabulary, list of str (normal forms); `answer_counts`: how often each is the commonest answer;
    `outside`: questions with no answer in the vocabulary, which stay, without a target.
    """

    endless = False
    classes = None

    def __init__(self, of, vocabulary=None):
        of = source.plain(of)
        self.source = source.make(of)
        if readable(self.source):  # then the questions are, too: those of a picture have its bytes in common
            self.read, self.record = self._read, self._record
            self.remote, self.record_bytes = self.source.remote, self.source.record_bytes
            self.files = getattr(self.source, "files", 1)
        self.name = f"questions of {getattr(self.source, 'name', 'records')}"
        if getattr(self.source, "endless", False):
            raise UserError(f"{self.name} have no end; valid: a source with an end, for instance with count=1000")
        config = of if isinstance(of, dict) else None
        mine = index(self.source, config)
        self._starts = np.concatenate([[0], np.cumsum(mine.counts_N, dtype=np.int64)])  # of each picture, and the end
        counts = _vocabulary(vocabulary, config, mine)
        self.answers, self.answer_counts = list(counts), list(counts.values())
        self._ids = {answer: i for i, answer in enumerate(self.answers)}
        self.outside = mine.outside(self._ids)
        self._say()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        picture = self._picture(i)
        return self._question(i, picture, self.source[picture])

    def _read(self, begin: int, end: int) -> list[bytes]:
        if begin == end:
            return []
        first = self._picture(begin)
        held = self.source.read(first, self._picture(end - 1) + 1)
        return [held[self._picture(i) - first] for i in range(begin, end)]

    def _record(self, data: bytes, i: int) -> dict:
        picture = self._picture(i)
        return self._question(i, picture, self.source.record(data, picture))

    def _picture(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1

    def _question(self, i: int, picture: int, record: dict) -> dict:
        question = Question.of(record)[i - int(self._starts[picture])]
        rest = {name: value for name, value in record.items() if name not in FIELDS}
        key = f"{record.get('key', picture)}/{question.id}"
        return {**rest, "key": key, "question": question.text, "kind": question.kind, **self._targets(question)}

    def _targets(self, question: Question) -> dict:
        given = list(question.references)
        known = [(a, s) for a, s in answers.soft_scores(given).items() if a in self._ids]
        return {
            "answers": given,
            "answer": Counter(given).most_common(1)[0][0] if given else "",
            "answer_ids": np.array([self._ids[a] for a, _ in known], np.int32),
            "answer_scores": np.array([s for _, s in known], np.float32),
            "answer_credits": np.array([answers.accuracy(a, given) for a, _ in known], np.float32),
            "_references": answers.join(given),
            "_kind": question.kind,
        }

    def _say(self) -> None:
        usual = USUAL.get(self.source.name.partition("/")[0]) if hasattr(self.source, "name") else None
        size = len(self.answers)
        lines = [f"{self.name}: {size} answers; usual are {usual}"] if usual not in (None, size) else []
        if self.outside:
            lines.append(
                f"{self.name}: {self.outside} of {len(self)} have no answer among the {size} of the vocabulary"
            )
        for line in lines:
            if line not in _said:  # a run makes its sources several times
                _said.add(line)
                log.warning("%s", line)


def _vocabulary(wanted, config: dict | None, mine: Index) -> dict[str, int]:
    """Answer -> count, in order. `config`: what the source was made of; `mine`: its index."""
    wanted = source.plain({} if wanted is None else wanted)
    if isinstance(wanted, str | os.PathLike):
        return answers.read(wanted)
    rule = {"split": "train", "min_count": 1, "top": 0}
    if not isinstance(wanted, dict):
        raise UserError(f"a vocabulary is a dict with {', '.join(rule)}, or the path of a text file, not {wanted!r}")
    for name, value in wanted.items():
        if name not in rule:
            raise unknown("key of a vocabulary:", name, rule)
        if type(value) is not type(rule[name]) or (name != "split" and value < 0):
            wanting = "the name of a split" if name == "split" else "a whole number, 0 or more"
            raise UserError(f"vocabulary: {name}={value!r} is not valid; valid: {wanting}")
    rule |= wanted
    split = rule.pop("split")
    if not split:
        counted, where = mine, "these records"
    elif config is None:
        raise UserError('records given as they are have no splits; valid: vocabulary=dict(split=""), or a path')
    else:
        config, where = {**config, "split": split}, f"split {split!r}"
        counted = index(source.make(config), config)
    counts = answers.vocabulary(counted.given(), **rule)
    if not counts:
        raise UserError(
            f"no answer of {where} is given {rule['min_count']} times; valid: a smaller min_count, or a path"
        )
    return counts
