"""Zero-shot classification: the class whose prompts lie nearest to the picture.

Per class every prompt template is filled in, embedded and L2-normalised; the class embedding is their L2-normalised
mean (Radford et al. 2021, section 3.1.4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError, unknown
from maeclip_jax.evals.protocol import Functions, embed_texts, need_shared_space, select, unit

WORDS = Path(__file__).parent / "words"


class ZeroShot:
    """`data`: config of the pictures; its ops keep "image" and "label". `length`: tokens of a prompt.

    `classes`: None = the class names of the source; a list in label order; or a file: .txt with a name a line (or
    `source name<TAB>readable name`), .json with a list or {source name: readable name}. `templates`: the name of a
    packaged set, a file with a list, or a list; "{}" is the class name and "{a}" the article that fits it ("a",
    "an"). Metrics in percent: `top1`, `top5` (more than 5 classes), `mean_per_class`; chance: `chance`,
    `chance_top5`. A wrong class that scores the same as the right one counts as before it: a collapsed model scores
    0.
    """

    def __init__(
        self,
        fns: Functions,
        *,
        data: Mapping,
        length: int,
        classes: str | Sequence[str] | None = None,
        templates: str | Sequence[str] = "plain",
        batch_size: int = 256,
    ):
        need_shared_space(fns.objective, "zero-shot classification")
        self.fns, self.data, self.batch_size = fns, data, batch_size
        self.classes = class_names(classes, getattr(fns.source(data), "classes", None))
        self.templates = read_templates(templates)
        prompts = [fill(t, c) for c in self.classes for t in self.templates]
        self.prompts_PxT = np.stack([fns.tokenizer(p, length) for p in prompts])

    def class_embeddings(self, params: Any) -> np.ndarray:
        """[C, D] float32, rows of length 1."""
        per_class, total, start = len(self.templates), None, 0
        for z_BxD in embed_texts(self.fns, params, self.prompts_PxT, self.batch_size):
            if total is None:
                total = np.zeros((len(self.classes), z_BxD.shape[1]), np.float32)
            np.add.at(total, np.arange(start, start + len(z_BxD)) // per_class, z_BxD)
            start += len(z_BxD)
        return unit(total)

    def run(self, params: Any) -> Iterator[tuple[str, Any]]:
        """Metrics, then the table of classes."""
        z_CxD = self.class_embeddings(params)
        ranks, labels, guesses = [], [], []
        for batch in self.fns.batches(self.data, self.batch_size):
            z_BxD = self.fns.embed(params, select(batch, "image", who="zero_shot"))["image"]
            label_B = self.fns.rows(select(batch, "label", who="zero_shot"))["label"]
            if len(label_B) == 0:
                continue
            self._check(label_B)
            score_BxC = unit(z_BxD) @ z_CxD.T
            true_B = score_BxC[np.arange(len(label_B)), label_B]
            # Classes that are not strictly worse: ties, and anything that is not a number, count against the model.
            ranks.append(len(self.classes) - 1 - (score_BxC < true_B[:, None]).sum(1))
            score_BxC[np.arange(len(label_B)), label_B] = np.where(ranks[-1] == 0, np.inf, -np.inf)
            guesses.append(score_BxC.argmax(1))  # the best class; of a tie, the wrong one
            labels.append(label_B)
        if not labels:
            raise UserError("zero_shot found no pictures in its data; check the split")
        rank_N, label_N, guess_N = (np.concatenate(x) for x in (ranks, labels, guesses))
        count, seen_C = len(self.classes), np.bincount(label_N, minlength=len(self.classes))
        right_C = np.bincount(label_N, weights=rank_N == 0, minlength=count)
        yield "top1", 100 * float(np.mean(rank_N == 0))
        yield "mean_per_class", 100 * float(np.mean(right_C[seen_C > 0] / seen_C[seen_C > 0]))
        yield "chance", 100 / count
        if count > 5:
            yield "top5", 100 * float(np.mean(rank_N < 5))
            yield "chance_top5", 500 / count
        yield "classes", self._table(label_N, guess_N, seen_C, right_C)

    def _check(self, label_B: np.ndarray) -> None:
        low, high = int(label_B.min()), int(label_B.max())
        if low < 0 or high >= len(self.classes):
            raise UserError(
                f"zero_shot: label {low if low < 0 else high} in the data, but there are {len(self.classes)} class "
                f"names (valid labels: 0 to {len(self.classes) - 1}); set `classes` to the names in label order"
            )

    def _table(self, label_N, guess_N, seen_C, right_C) -> dict:
        rows = []
        for c in np.flatnonzero(seen_C):
            wrong = guess_N[(label_N == c) & (guess_N != c)]
            taken_for = self.classes[np.bincount(wrong).argmax()] if len(wrong) else ""
            rows.append([self.classes[c], int(seen_C[c]), 100 * float(right_C[c] / seen_C[c]), taken_for])
        columns = ["class", "pictures", "top-1 (%)", "most often taken for"]
        example = fill(self.templates[0], self.classes[0])
        note = (
            f"{len(self.classes)} classes, {len(label_N)} pictures, {len(self.templates)} prompts a class: {example!r}"
        )
        note += ", ..." if len(self.templates) > 1 else ""
        return {"kind": "table", "columns": columns, "rows": rows, "note": note}


def read_list(path: str, what: str) -> list | dict:
    """The JSON value or the lines of a file; UserError if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text) if path.endswith(".json") else [x for x in text.splitlines() if x.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise UserError(f"cannot read {what} from {path!r}: {e}") from e
    if isinstance(value, dict) and isinstance(value.get(what), list):
        value = value[what]
    strings = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if not value or not isinstance(value, list | dict) or not all(isinstance(x, str) for x in strings):
        raise UserError(f"{path!r} holds no {what}; valid: a JSON list of strings, or a text file with one a line")
    return value


def class_names(classes: str | Sequence[str] | None, source: Sequence[str] | None) -> list[str]:
    """Readable class names in label order; UserError where they do not match those of the source."""
    if classes is None:
        if not source:
            raise UserError(
                "zero_shot: the data source has no class names; set `classes` to a list, .json or .txt file"
            )
        return [c.replace("_", " ") for c in source]
    named = f"the file {classes!r}" if isinstance(classes, str) else "`classes`"
    names = read_list(classes, "classes") if isinstance(classes, str) else list(classes)
    if isinstance(names, list) and names and all("\t" in n for n in names):
        names = dict(n.split("\t", 1) for n in names)
    if isinstance(names, dict):
        if not source:
            raise UserError(f"zero_shot: {named} renames classes, but the data source has no class names")
        absent = [c for c in source if c not in names]
        if absent:
            missing = f"{len(absent)} of {len(source)} missing"
            raise UserError(f"zero_shot: {named} has no name for class {absent[0]!r} ({missing})")
        return [names[c] for c in source]
    if source and len(names) != len(source):
        raise UserError(
            f"zero_shot: {named} has {len(names)} class names, the data source {len(source)} "
            f"({', '.join(list(source)[:5])}, ...); they must match one to one, in label order"
        )
    if len(names) < 2:
        raise UserError(f"zero_shot: {named} has {len(names)} class names; at least 2 are needed")
    return names


def read_templates(templates: str | Sequence[str]) -> list[str]:
    """Prompt templates, each with a place for the class name."""
    named = repr(templates)
    if isinstance(templates, str) and Path(templates).suffix in (".json", ".txt"):
        templates = read_list(templates, "templates")
    elif isinstance(templates, str):
        packaged = {p.stem: p for p in WORDS.glob("*.json")}
        if templates not in packaged:
            raise unknown("prompt templates", templates, [*sorted(packaged), "a .json or .txt file"])
        templates = read_list(str(packaged[templates]), "templates")
    bad = [t for t in templates if "{}" not in t]
    if bad or not len(templates):
        raise UserError(f"prompt template {bad[0] if bad else ''!r} of {named} has no {{}} for the class name")
    return list(templates)


def fill(template: str, name: str) -> str:
    """`a photo of {a} {}`, `orange cube` -> `a photo of an orange cube`."""
    article = "an" if re.match(r"(?i)[aeio]|u(?!n?i|s)|hour|heir", name) else "a"  # by ear, not by letter
    return template.replace("{a}", article).replace("{}", name)
