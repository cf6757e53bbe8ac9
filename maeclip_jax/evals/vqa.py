"""Visual question answering: the official accuracy of an objective that answers questions, and what text alone gives.

Accuracy of an answer is that of Antol et al. 2015 where a question has ten references (see data/answers.py), and 1 or
0 where it has one. Beside it stands what can be had without looking: the best of several ways to answer from the
question alone, all learnt from the training questions.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.protocol import (
    Context,
    Detail,
    Metric,
    NotApplicable,
    Picture,
    as_bytes,
    as_text,
    key_rows,
    keys_of,
    percent,
    select,
)

_TOGETHER = 64  # training questions that are read together
KIND_BYTES = 32  # of a question's kind, which travels between processes as numbers


class Vqa:
    """`data`, `train`: questions to answer, and those that text-only baselines learn from (None: no baselines).

    Their source is of kind "questions"; the ops keep "image", "text" (the question), "answer", "score", "credit".
    Metrics in percent: `accuracy`, whose reference is the best of the text-only baselines (all of them in the table);
    `text_only`, that baseline's own accuracy; `accuracy_<kind>` where the data set tells kinds of questions apart; and
    `answerable`, the accuracy of somebody who always picks the best answer of the vocabulary. At most `questions`
    training questions are read, in runs of neighbours that are evenly spread.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        train: Mapping | None = None,
        batch_size: int = 256,
        questions: int = 50_000,
        examples: int = 24,
    ):
        if not callable(getattr(context.objective, "answer", None)):
            raise NotApplicable("this objective answers no questions; finetune it with experiments/vqa.py")
        self.context, self.data, self.train, self.batch_size = context, data, train, batch_size
        self.questions, self.examples, self.blind = questions, examples, None
        self.answers = list(getattr(context.source(data), "answers", None) or ())
        if not self.answers:
            raise UserError('vqa: its data has no answers; valid: a source of kind "questions"')
        trained, known = context.objective.outputs()["answer"], context.names.get("answer", self.answers)
        if len(self.answers) != trained or list(known) != self.answers:
            raise UserError(
                f"vqa: the data's vocabulary has {len(self.answers)} answers, the model was made for {trained}"
                f"{'' if len(self.answers) != trained else ' others'}; give it the vocabulary of training"
            )
        self.logits = context.compile(
            lambda model, params, batch: model.apply({"params": params}, batch, method="answer")
        )

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, the table of kinds and baselines, examples."""
        parts = []
        for batch in self.context.batches(self.data, self.batch_size):
            arrays = select(batch, "image", "text", "answer", "credit", who="vqa")
            kind = as_bytes(batch.get("_kind", [""] * len(arrays["text"])), KIND_BYTES)
            held = {k: arrays[k] for k in ("text", "answer", "credit", "_valid")}
            rows = self.context.rows(held | {"kind": kind, "key": key_rows(batch, len(kind))})
            logits = self.logits(params, {k: arrays[k] for k in ("image", "text", "_valid")})
            rows["guess"] = logits.argmax(axis=1).astype(np.int32) if len(logits) else np.zeros(0, np.int32)
            parts.append(rows)
        rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}
        if not rows or not len(rows["guess"]):
            raise UserError("vqa found no questions in its data; check the split")
        right_N = credit(rows["guess"], rows["answer"], rows["credit"])
        kind_N = np.array([as_text(kind) for kind in rows["kind"]])
        kinds = {kind: kind_N == kind for kind in sorted({*kind_N.tolist()} - {""})}
        table = [["the model", len(right_N), 100 * float(right_N.mean())]]
        if self.train is not None:
            if self.blind is None:  # the same at every checkpoint
                self.blind = text_only(*self._training(rows["text"].shape[1]), rows["text"])
            scores = {name: credit(guess, rows["answer"], rows["credit"]) for name, guess in self.blind.items()}
            table += [[f"text only: {name}", len(right_N), 100 * float(s.mean())] for name, s in scores.items()]
            best_N = max(scores.values(), key=np.mean)
        reference = max((row[2] for row in table[1:]), default=None)
        keys = keys_of(rows["key"], len(right_N))
        yield percent("accuracy", 100 * right_N.mean(), reference=reference, items=asked(keys, right_N))
        for kind, here in kinds.items():
            items = asked(np.array(keys)[here], right_N[here])
            yield percent(f"accuracy_{kind}", 100 * right_N[here].mean(), items=items)
        most_N = rows["credit"].max(axis=1).astype(np.float64)
        yield Metric("answerable", 100 * most_N.mean(), "%", items=asked(keys, most_N))
        if self.train is not None:
            yield Metric("text_only", 100 * best_N.mean(), "%", items=asked(keys, best_N))
        for kind, here in kinds.items():
            table.append([f"the model, {kind} questions", int(here.sum()), 100 * float(right_N[here].mean())])
            if self.train is not None:
                table.append([f"text only, {kind} questions", int(here.sum()), 100 * float(best_N[here].mean())])
        note = f"{len(self.answers)} answers to choose from; a question with none of them counts as wrong."
        columns = ["who answers", "questions", "accuracy (%)"]
        yield Detail("table", {"kind": "table", "columns": columns, "rows": table, "note": note})
        lines = [self._line(rows, i) for i in range(min(self.examples, len(right_N)))]
        columns = ["question", "answered", "best answer in the vocabulary", "accuracy (%)"]
        note = "The first questions."
        yield Detail("examples", {"kind": "table", "columns": columns, "rows": lines, "note": note})

    def _line(self, rows: Mapping[str, np.ndarray], i: int) -> list:
        best = int(rows["answer"][i][rows["credit"][i].argmax()])
        right = credit(rows["guess"][i : i + 1], rows["answer"][i : i + 1], rows["credit"][i : i + 1])[0]
        question = self.context.tokenizer.decode([t for t in rows["text"][i].tolist() if t])
        return [question, self.answers[rows["guess"][i]], self.answers[best] if best >= 0 else "", 100 * float(right)]

    def _training(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(token ids [N, T], answer ids [N]) of training questions that have an answer."""
        source = self.context.source(self.train)
        if list(source.answers) != self.answers:
            raise UserError("vqa: `train` and `data` have different vocabularies; give both the same `vocabulary`")
        count = min(self.questions, len(source))
        ids, right = [], []
        with self.context.progress("training questions", count) as progress:
            for record in self.context.records(self.train, _spread(len(source), count)):
                if len(record["answer_ids"]):
                    ids.append(self.context.tokenizer(record["question"], length))
                    right.append(int(record["answer_ids"][0]))
                progress.update()
        if not ids:
            raise UserError("vqa: `train` has no question with an answer of the vocabulary")
        return np.stack(ids), np.array(right)


def asked(keys: Sequence[str], credit_N: np.ndarray) -> Items:
    """Questions, those of a picture together: the key of a question is its picture's, a slash, its own."""
    return Items(100 * credit_N, keys, group=[key.rpartition("/")[0] or key for key in keys])


def _spread(length: int, count: int) -> np.ndarray:
    """At most `count` of `length` indices in order, in runs of neighbours, which a bucket gives by one request."""
    runs = -(-count // _TOGETHER)
    starts = np.linspace(0, max(0, length - _TOGETHER), runs).astype(int)
    found = np.unique(starts[:, None] + np.arange(min(_TOGETHER, length)))
    return found[:count] if count < length else np.arange(length)


def credit(guess_N: np.ndarray, answer_NxK: np.ndarray, credit_NxK: np.ndarray) -> np.ndarray:
    """Accuracy 0..1 of each guessed answer id; `answer_NxK` are the ids that are worth something, -1 none."""
    return np.where(answer_NxK == guess_N[:, None], credit_NxK, 0).max(axis=1).astype(np.float64)


def text_only(ids_MxT: np.ndarray, answer_M: np.ndarray, asked_NxT: np.ndarray) -> dict[str, np.ndarray]:
    """Answers [N] from the question alone, by several rules learnt of M training questions.

    "commonest answer": to anything. "same beginning": the commonest to the same question, if it was asked before, else
    to its longest beginning that was asked at least 5 times. "nearest questions": a vote of the 25 training questions
    nearest by shared words and word pairs (cosine, inverse-frequency weights).
    """
    everywhere = Counter(answer_M.tolist()).most_common(1)[0][0]
    begun: dict[tuple, Counter] = {}
    for ids, answer in zip(ids_MxT.tolist(), answer_M.tolist()):
        tokens = tuple(t for t in ids if t)
        for n in range(1, len(tokens) + 1):
            begun.setdefault(tokens[:n], Counter())[answer] += 1
        begun.setdefault((*tokens, 0), Counter())[answer] += 1  # the whole question

    def by_beginning(ids: list[int]) -> int:
        tokens = tuple(t for t in ids if t)
        if (*tokens, 0) in begun:
            return begun[(*tokens, 0)].most_common(1)[0][0]
        found = (begun[tokens[:n]] for n in range(len(tokens), 0, -1) if tokens[:n] in begun)
        return next((c.most_common(1)[0][0] for c in found if c.total() >= 5), everywhere)

    return {
        "commonest answer": np.full(len(asked_NxT), everywhere),
        "same beginning": np.array([by_beginning(ids) for ids in asked_NxT.tolist()]),
        "nearest questions": _nearest(ids_MxT, answer_M, asked_NxT),
    }


def _nearest(ids_MxT: np.ndarray, answer_M: np.ndarray, asked_NxT: np.ndarray, neighbours: int = 25) -> np.ndarray:
    bags_M, asked_N = ([_terms(ids) for ids in x.tolist()] for x in (ids_MxT, asked_NxT))
    places: dict[Any, list[int]] = {}  # term -> training questions that have it
    for m, bag in enumerate(bags_M):
        for term in bag:
            places.setdefault(term, []).append(m)
    weight = {term: np.log(1 + len(bags_M) / len(where)) ** 2 for term, where in places.items()}
    places = {term: np.array(where) for term, where in places.items()}
    norm_M = np.sqrt([max(1e-9, sum(weight[t] for t in bag)) for bag in bags_M])
    out: dict[frozenset, int] = {}
    for bag in set(asked_N):
        score_M = np.zeros(len(bags_M))
        for term in bag & places.keys():
            score_M[places[term]] += weight[term]
        near = np.argpartition(-score_M / norm_M, min(neighbours, len(bags_M)) - 1)[:neighbours]
        out[bag] = Counter(answer_M[near].tolist()).most_common(1)[0][0]
    return np.array([out[bag] for bag in asked_N])


def _terms(ids: list[int]) -> frozenset:
    """The words of a question and its pairs of neighbours."""
    tokens = [t for t in ids if t]
    return frozenset([*tokens, *itertools.pairwise(tokens)])
