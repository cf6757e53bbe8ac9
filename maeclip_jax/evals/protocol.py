"""What an evaluator is and what it may ask of its surroundings.

An evaluator is plain numpy around `Context`, which hide the device, the mesh and the other processes:

    class MyEvaluator:
        def __init__(self, context, *, data, batch_size=256): ...   # may raise NotApplicable, UserError
        def run(self, params):                                      # iterator of Metric | Picture | Detail
            yield Metric("top1", 61.8, "%", "higher", chance=0.1)

A Metric is logged as `<eval>/<name>` and says its unit and which direction is better where it is made: tables, figures
and `checkpoint.best` read that. A class may live in a person's own module: `type="my_module:MyEvaluator"` in a config.

The runner owns when an evaluator runs, its prefix, timing, logging and files. Every process makes the same calls in
the same order and gets the same values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from maeclip_jax.errors import UserError, unknown
from maeclip_jax.evals import statistics
from maeclip_jax.evals.items import Items, one_by_one, short

KEY_BYTES = 160  # keys of records travel between processes as rows of bytes; longer ones end in a digest
Batch = Mapping[str, Any]
BETTER = ("higher", "lower", "none")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number. `unit`: "%", "nats", ...; "" for a number without one. `better`: higher | lower | none.

    `chance`: what guessing gives; `reference`: what a rule without a model gives (the commonest answer, a mean colour);
    `interval`: (low, high) in which the value lies, at 95 %; `n`: of how many items; `how` it was found, in words. All
    in the metric's unit. `items`: what the value is the mean of. They are kept, and the runner finds an interval by
    them where there is none. `note`: what the value is of, in a few words, where the data was too small for what its
    name says ("all 12 neighbours").
    """

    name: str
    value: float
    unit: str = ""
    better: str = "none"
    chance: float | None = None
    reference: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    n: int | None = None
    how: str = ""
    items: Items | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.better not in BETTER:
            raise unknown(f"better of metric {self.name!r}", self.better, BETTER)

    def about(self) -> dict[str, Any]:
        """All but name, value and items, as evals/<step>.json holds it."""
        fields = (f.name for f in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name not in ("name", "value", "items")}

    def estimated(self) -> Metric:
        """The same with an interval, if it has items and no interval yet."""
        if self.items is None or self.interval is not None:
            return self
        return dataclasses.replace(self, **statistics.of_items(self.items, self.unit)._asdict())


@dataclasses.dataclass(frozen=True)
class Picture:
    """uint8 pixels [H, W, 3] under a name."""

    name: str
    pixels_HxWx3: np.ndarray


@dataclasses.dataclass(frozen=True)
class Detail:
    """What the report shows beside numbers, in JSON's types.

    `value` names its `kind`: "table" (columns, rows), "tiles" (examples with small pictures), "captions" (words filled
    in), "sheet" (a contact sheet); readers skip kinds that they do not know.
    """

    name: str
    value: Mapping[str, Any]


def batch_within(context: Context, batch_size: int, rows: int) -> int:
    """The rows of a batch where the data has but `rows` of them: as many as all processes can have alike."""
    return min(batch_size, rows - rows % context.process_count)


def percent(name: str, value: float, **about: Any) -> Metric:
    """An accuracy or a recall: a metric in percent of which more is better."""
    return Metric(name, float(value), "%", "higher", **about)


class NotApplicable(Exception):
    """The objective cannot serve this evaluator; the message says why, as an end of "... is not applicable: "."""


class Context(Protocol):
    """What the runner gives to an evaluator.

    A batch holds the rows of THIS process (`_valid` False where a row only fills the last batch); what comes back are
    the rows of ALL processes in global order, without filling rows, as numpy arrays on every process.
    """

    objective: Any  # the flax module; `.streams`, `.contrastive`, `.generative` say what it can do
    tokenizer: Any  # `(text, length) -> int32 [length]`, `.decode(ids) -> str`, `.token(id) -> str`; or None
    names: Mapping[str, list[str]]  # vocabularies that the objective was trained with ("answer", "label"); may be {}
    process_index: int
    process_count: int

    def source(self, config_data: Mapping) -> Any:
        """The data source, for its length and its `.classes` (list of str, or None)."""

    def records(self, config_data: Mapping, indices: Iterable[int]) -> Iterator[dict]:
        """The records of the source at `indices`, in turn; of a bucket, neighbours come together and ahead of time."""

    def batches(self, config_data: Mapping, batch_size: int) -> Iterator[Batch]:
        """One pass over the data in order; `batch_size` is the global number of rows."""

    def train_batches(self, config_data: Mapping, batch_size: int, seed: int) -> Iterator[Batch]:
        """Endless batches in a shuffled order, augmented as the ops say; close() it."""

    def rows(self, batch: Batch) -> dict[str, np.ndarray]:
        """The numeric arrays of a batch as they are: uint8, int32, float32 or bool [B, ...]."""

    def want(self, config_data: Mapping, *pools: str) -> None:
        """Announces, in the constructor, what `run` will ask of `features`: one pass then makes all of it."""

    def features(self, params: Any, config_data: Mapping, batch_size: int, pool: str) -> dict[str, np.ndarray]:
        """A whole data set as features, made once for all evaluators: "image" float32 [N, D], and the other arrays
        that the ops keep ("label", ...), and "key", see `keys_of`. `pool`: "own" (the tower's pooling, before any
        projection), a pooling word without parameters ("gap", "max", "cls", ...), or "embed" (what the objective
        compares)."""

    def compile(self, function: Callable) -> Callable:
        """`function(objective, params, arrays, *rest) -> tree of [B, ...]`, jitted, to be called as (params, batch,
        *rest) -> numpy. `arrays`: all of the batch whose name begins with no "_"; `rest`: the same on all processes."""

    def progress(self, what: str, total: int) -> Any:
        """A context whose `update(n)` prints, every 15 s, how much is done and how long the rest takes."""

    def embed(self, params: Any, batch: Batch) -> dict[str, np.ndarray]:
        """{"image": [B, D], "text": [B, D]} of the modalities in the batch."""

    def encode(self, params: Any, batch: Batch) -> dict[str, Any]:
        """Dense tokens per stream."""

    def loss(self, params: Any, batch: Batch, seed: int) -> dict[str, float]:
        """Losses and metrics of a batch with no filling rows: {"loss": ..., ...}, mask drawn from `seed`."""

    def reconstruct(self, params: Any, batch: Batch, seed: int) -> dict[str, np.ndarray]:
        """What is filled in: `image` float [B, H, W, 3] in 0..255, `text` int32 [B, T]; `image_mask` bool [B, N] and
        `text_mask` bool [B, T] where."""


def select(batch: Batch, *names: str, who: str) -> dict[str, np.ndarray]:
    """The named arrays and `_valid`; UserError, with what the batch holds, if one is missing."""
    for name in names:
        if name not in batch:
            held = ", ".join(k for k in batch if not k.startswith("_"))
            quoted = ", ".join(f'"{n}"' for n in names if not n.startswith("_"))
            raise UserError(f"{who} needs {name!r} in its batches, which hold: {held}; end the ops with keep({quoted})")
    size = len(batch[names[0]])
    return {"_valid": np.asarray(batch.get("_valid", np.ones(size, bool)))} | {n: np.asarray(batch[n]) for n in names}


def count_rows(context: Context, batch: Batch) -> int:
    """Real rows of a batch over all processes."""
    size = len(next(iter(batch.values())))
    valid = np.asarray(batch.get("_valid", np.ones(size, bool)))
    return len(context.rows({"row": np.arange(size, dtype=np.int32), "_valid": valid})["row"])


def as_bytes(texts: Iterable[Any], width: int) -> np.ndarray:
    """uint8 [B, width]: texts as they travel between processes, cut to `width` bytes of UTF-8."""
    rows = [str(text).encode()[:width].ljust(width, b"\0") for text in texts]
    return np.stack([np.frombuffer(row, np.uint8) for row in rows])


def as_text(row: np.ndarray) -> str:
    """The inverse of `as_bytes` for one row; a letter that was cut through becomes a replacement character."""
    return bytes(row.astype(np.uint8)).rstrip(b"\0").decode(errors="replace")


def key_rows(batch: Batch, size: int) -> np.ndarray:
    """uint8 [B, KEY_BYTES]: the keys of a batch's records, to go through `Context.rows`."""
    return as_bytes([short(str(key), KEY_BYTES) for key in batch.get("_key", [""] * size)], KEY_BYTES)


def keys_of(rows: Any, count: int) -> list[str]:
    """The keys of `count` rows of `key_rows`, no two the same; None, or a record without a key: its number."""
    texts = [""] * count if rows is None else [as_text(row) for row in np.asarray(rows)]
    return one_by_one(texts)


def unit_rows(x_NxD: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; a zero row stays zero."""
    x_NxD = np.asarray(x_NxD, np.float32)
    return x_NxD / np.maximum(np.linalg.norm(x_NxD, axis=-1, keepdims=True), 1e-12)


def need_shared_space(objective: Any, what: str) -> None:
    """NotApplicable unless pictures and texts are embedded where they can be compared."""
    if not getattr(objective, "contrastive", False):
        raise NotApplicable(f"{what} compares pictures with texts, and this objective trains no space they share")


def embed_texts(context: Context, params: Any, ids_NxT: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Embeddings of texts which every process has in full: yields [<= batch_size, D], in order.

    Each process embeds its contiguous block of every batch; the last batch is filled up with padding.
    """
    count, length = ids_NxT.shape
    share = batch_size // context.process_count
    for start in range(0, count, batch_size):
        mine = np.arange(start + context.process_index * share, start + (context.process_index + 1) * share)
        text = np.zeros((share, length), np.int32)
        text[mine < count] = ids_NxT[mine[mine < count]]
        yield unit_rows(context.embed(params, {"text": text, "_valid": mine < count})["text"])
