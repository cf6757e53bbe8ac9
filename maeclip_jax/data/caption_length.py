"""How many captions are longer than what a tower reads of them: counted on a sample, said before it is trained on."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from maeclip_jax.data import ahead, text_ops
from maeclip_jax.data.ops import Ops
from maeclip_jax.errors import BadRecord

SAMPLE = 1000  # records: enough for a percent, and read in a second


@dataclasses.dataclass
class Cut:
    """Of `texts` captions, `cut` have more than `length` tokens, the longest `longest` (special tokens included)."""

    texts: int = 0
    cut: int = 0
    length: int = 0
    longest: int = 0

    def add(self, tokens: int, length: int) -> None:
        """Counts a caption of so many tokens."""
        self.texts, self.cut = self.texts + 1, self.cut + (tokens > length)
        self.length, self.longest = max(self.length, length), max(self.longest, tokens)

    def __str__(self) -> str:
        share = f"{100 * self.cut / max(self.texts, 1):.1f} %" if self.cut else "none"
        return f"{share} of {self.texts:,} are cut at {self.length} tokens; the longest has {self.longest}"


class _Counting:
    """A tokenizer that counts on the way."""

    def __init__(self, tokenizer: Any, found: Cut):
        self.tokenizer, self.found = tokenizer, found

    def __call__(self, text: str | bytes, length: int) -> np.ndarray:
        self.found.add(self.tokenizer.count(text), length)
        return self.tokenizer(text, length)


def count(source: Any, records: int, ops: Ops, tokenizer: Any, found: Cut) -> None:
    """Adds to `found` the captions that `ops` make of the first `records` of `source`; pictures are not looked at.

    Records that cannot be read or used are left out: reading them for training counts them and says what is wrong.
    """
    counting, rng = _Counting(tokenizer, found), np.random.default_rng(0)
    steps = [s for s in ops.steps[:-1] if s.function.__module__ == text_ops.__name__]
    errors = (BadRecord, OSError, ValueError)  # a UserError is a ValueError
    for record in ahead.scan(source, range(records), skip=errors):
        with contextlib.suppress(*errors):
            for step in steps:
                given = {"tokenizer": counting} if "tokenizer" in step.kwargs else {}
                record = step.function(record, rng, *step.args, **{**step.kwargs, **given})
