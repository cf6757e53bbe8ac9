"""Ops on the text of a record, and on what it keeps: pure functions (example, rng, arguments) -> example."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maeclip_jax.data.decode import Picture
from maeclip_jax.data.image_ops import field
from maeclip_jax.errors import BadRecord, UserError


def pick_caption(example, rng, key="texts", out="text"):
    """One of the captions in `key`, drawn at random (empty ones never), as `out`."""
    if key == "texts" and key not in example and "text" in example:
        return example
    texts = [t for t in field(example, key) if t.strip()]
    if not texts:
        raise BadRecord("no_text", "no caption, or only empty ones")
    return {**example, out: texts[int(rng.integers(len(texts)))]}


def captions(example, rng, k, key="texts", out="text"):
    """The first k captions as a list, which tokenize makes int32 [k, length]; `_captions` counts the real ones."""
    texts = [t for t in _as_list(field(example, _caption_key(example, key))) if t.strip()][:k]
    if not texts:
        raise BadRecord("no_text", "no caption, or only empty ones")
    return {**example, out: texts + [None] * (k - len(texts)), "_captions": np.int32(len(texts))}


def lower(example, rng, key="text"):
    """Text in lower case (before tokenize)."""
    return _map_text(example, key, str.lower)


def prefix(example, rng, words, key="text"):
    """`words` put before the text, as they stand: prefix("a photo of ")."""
    return _map_text(example, key, lambda text: words + text)


def tokenize(example, rng, length, key="text", out="text", *, tokenizer):
    """Text in `key` to int32 [length], 0 = padding, cut at `length`; a list of texts to [k, length].

    A record with several captions in `texts` and no `text` gives one of them at random, as pick_caption does.
    """
    if key == "text" and key not in example and "texts" in example:
        example = pick_caption(example, rng)
    text = field(example, key)
    if isinstance(text, np.ndarray):
        raise UserError(f"{key!r} is tokenized already; give each tokenize its own key")
    rows = [np.zeros(length, np.int32) if t is None else tokenizer(t, length) for t in _as_list(text)]
    for words, ids in zip(_as_list(text), rows):
        # Nothing to read: a row without tokens has no meaning to align a picture with.
        if words is not None and not (words.strip() and ids.any()):
            raise BadRecord("no_text", f"{key} has no tokens: {words[:40]!r}")
    return {**example, out: np.stack(rows) if isinstance(text, list | tuple) else rows[0]}


def label(example, rng, key="label", out="label"):
    """The integer in `key` as int32 `out`: label("coarse_label")."""
    value = field(example, key)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{key!r} is {type(value).__name__} ({str(value)[:40]!r}), not an integer")
    return {**example, out: np.int32(value)}


def labels(example, rng, count, key="labels", out="labels"):
    """The integers in `key` (any number of classes at once) as int32 [count] `out`, filled up with -1."""
    values = np.asarray(field(example, key))
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise UserError(f"{key!r} is {values.dtype}{list(values.shape)}, not a list of integers")
    if len(values) > count:
        raise UserError(f"{key!r} holds {len(values)} labels; valid: labels({len(values)}) or more")
    return {**example, out: np.concatenate([values, np.full(count - len(values), -1)]).astype(np.int32)}


def answers(example, rng, most):
    """The answers of a question (records of source kind "questions"), the commonest first, filled up to `most`.

    `answer` int32: ids in the vocabulary, -1 = none; `score` float32: soft targets; `credit` float32: the official
    accuracy of giving that answer. A question whose answers are all outside the vocabulary has none.
    """
    out = dict(example)
    for name, source, fill in (("answer", "ids", -1), ("score", "scores", 0), ("credit", "credits", 0)):
        values = field(example, f"answer_{source}")
        out[name] = np.full(most, fill, values.dtype)
        out[name][: len(values)] = values[:most]
    return out


def keep(example, rng, *names):
    """The last op: the names of the batch. Names that begin with an underscore stay too."""
    out = {name: value for name, value in example.items() if name.startswith("_")}
    for name in names:
        value = field(example, name)
        if isinstance(value, Picture):
            value = value.read()
        if isinstance(value, list) and any(isinstance(v, str | None) for v in value):
            raise UserError(f"{name!r} is a list of texts; pick_caption or captions(k), then tokenize it")
        if isinstance(value, bytes):
            raise UserError(f"{name!r} is encoded bytes; decode it first")
        out[name] = value
    return out


def _as_list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _caption_key(example: dict, key: str) -> str:
    """A record has `texts` (list) or `text` (str); ops on captions take whichever is there."""
    other = {"text": "texts", "texts": "text"}.get(key)
    return other if other in example and key not in example else key


def _map_text(example: dict, key: str, change: Callable[[str], str]) -> dict:
    key = _caption_key(example, key)
    value = field(example, key)
    if isinstance(value, np.ndarray):
        raise UserError(f"{key!r} is tokenized already; put this op before tokenize")
    if isinstance(value, str):
        return {**example, key: change(value)}
    return {**example, key: [t if t is None else change(t) for t in value]}
